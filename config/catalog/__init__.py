"""The model catalogue: which provider answers for a model, within which limits, at what price.

In reading order: `tables` (what a catalogue may say; a new key belongs there), `catalog` (all of it, by name), `load`
(the presets, with a user's file over them), `fields` (what one value may be), `texts` (a problem in the words of TOML's
author), `errors`.
"""

from .catalog import Catalog
from .errors import CatalogError, InvalidCatalog, UnknownModel
from .fields import ANY_MODEL
from .load import load_catalog
from .tables import Limits, Model, Price, Profile, Provider, StructuredOutputs, Timeout

__all__ = [
    "ANY_MODEL",
    "Catalog",
    "CatalogError",
    "InvalidCatalog",
    "Limits",
    "Model",
    "Price",
    "Profile",
    "Provider",
    "StructuredOutputs",
    "Timeout",
    "UnknownModel",
    "load_catalog",
]
