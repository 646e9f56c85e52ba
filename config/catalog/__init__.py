"""The model catalogue: which provider answers for a model, within which limits, at what price.

In reading order: `tables` (what a catalogue may say; a new key belongs there), `routing` (the tables of routes),
`catalog` (all of it, by name), `references` (whether each name in it leads somewhere), `load` (the presets, with a
user's file over them), `field_types` (what one value may be), `texts` (a problem in the words of TOML's author),
`errors`.
"""

from .catalog import Catalog
from .errors import CatalogError, InvalidCatalog, UnknownModel
from .field_types import ANY_MODEL
from .load import load_catalog
from .routing import Choice, Route, Rule, When
from .tables import Limits, Model, Price, Profile, Provider, StructuredOutputs, Timeout

__all__ = [
    "ANY_MODEL",
    "Catalog",
    "CatalogError",
    "Choice",
    "InvalidCatalog",
    "Limits",
    "Model",
    "Price",
    "Profile",
    "Provider",
    "Route",
    "Rule",
    "StructuredOutputs",
    "Timeout",
    "UnknownModel",
    "When",
    "load_catalog",
]
