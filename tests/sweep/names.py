"""Everything that a user can set, by kind, as the code has it."""

from __future__ import annotations

import inspect

from pydantic import BaseModel

from config.catalog import Limits, Model, Price, Provider, Route, Timeout, When
from config.settings import NESTED, PREFIX, settings_variables
from tasks.wire.options import OPTIONS
from workers.commands.run.command import run

__all__ = ["FOR_PEOPLE", "TABLES", "names"]

TABLES: dict[str, type[BaseModel]] = {
    "providers": Provider,
    "models": Model,
    "limits": Limits,
    "price": Price,
    "timeout": Timeout,
    "routes": Route,
    "when": When,
}

FOR_PEOPLE = {
    ("catalog", "price.date"): "says how old a price is to whoever reads the file",
    ("catalog", "price.source"): "says where a price is from to whoever reads the file",
}
"""Names without a behaviour of their own, and why they are there all the same."""


def names() -> set[tuple[str, str]]:
    """Kind and name of each."""
    settings = (variable.removeprefix(PREFIX).replace(NESTED, ".").lower() for variable in settings_variables())
    keys = (f"{table}.{key}" for table, model in TABLES.items() for key in model.model_fields if key != "name")
    found = {"option": OPTIONS, "setting": settings, "catalog": keys, "run": inspect.signature(run).parameters}
    return {(kind, name) for kind, of_kind in found.items() for name in of_kind}
