"""What can go wrong with a catalogue, as one tree::

CatalogError               (also a ValueError)
├── InvalidCatalog         the file can't be used; the text names file, table and key
└── UnknownModel           the catalogue does not name this model        (also a LookupError)
"""

from __future__ import annotations


class CatalogError(ValueError):
    """Base of what the catalogue raises."""


class InvalidCatalog(CatalogError):
    """The catalogue can't be used. One line for each problem, with file, table and key; never a value."""


class UnknownModel(CatalogError, LookupError):
    """The catalogue does not name this model, and no provider takes any model."""
