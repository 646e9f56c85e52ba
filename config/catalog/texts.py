"""Problems in the words of a catalogue's author: pydantic speaks of Python's types, an author writes TOML."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ..problems import text_of
from .routing import Route, Rule, When
from .tables import NESTED_TABLES, Model, Provider

SECTIONS: dict[str, type[BaseModel]] = {"providers": Provider, "models": Model, "routes": Route}

# An error's text stays readable with a long name or a long catalogue.
MOST_CHARACTERS = 100
MOST_NAMES = 20

_TEXTS = {
    "model_type": "must be a table",
    "dict_type": 'must be a table, such as { "name" = "value" }',
    "tuple_type": 'must be a list, such as ["..."]',
    "string_type": "must be text in quotes",
    "int_type": "must be a whole number without quotes",
    "decimal_type": "must be a number",
    "decimal_parsing": "must be a number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_too_short": "must not be empty",
    "missing": "is missing. A table stands in place of the preset of the same name, it does not add to it.",
}


def unknown_model(alias: str, known: Iterable[str]) -> str:
    return (
        f"no model is named {_shortened(alias)!r}. {advice(alias, known)} "
        "A [models] table in the file that PROMPTMILL_CATALOG names adds one; PROVIDER/MODEL names a provider's by its "
        "own name."
    )


def advice(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(_shortened(name), known, n=3)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"There are {', '.join(map(repr, known[:MOST_NAMES])) or 'none'}{more}."


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "..."


def problem_lines(details: ErrorDetails) -> Iterator[str]:
    """One line for each thing that is wrong. Values stay out of it: somebody may have pasted a key."""
    if details["type"] == "value_error" and len(details["loc"]) < 2:
        # A check across tables says itself where.
        yield from text_of(details).splitlines()
    elif details["type"] == "extra_forbidden":
        yield _place(details["loc"]) + _unknown_key(details)
    else:
        yield _place(details["loc"]) + (_TEXTS.get(details["type"]) or text_of(details))


def _unknown_key(details: ErrorDetails) -> str:
    *parents, key = map(str, details["loc"])
    keys = _keys_of(parents)
    if near := difflib.get_close_matches(key, keys, n=1, cutoff=0.5):
        return f"there is no such key. Did you mean {near[0]}?"
    if isinstance(details["input"], dict) and len(parents) == 2:
        # [models.gpt-4.1] without quotes is a table "1" in a table "gpt-4" to TOML.
        whole = heading((parents[0], f"{parents[1]}.{key}"))
        return f"there is no such table. A name with a dot needs quotes: {whole}"
    return f"there is no such key. There are {', '.join(keys)}."


def _keys_of(parents: Sequence[str]) -> list[str]:
    match parents:
        case []:
            return list(SECTIONS)
        case [section, _]:
            table = SECTIONS[section]
        case [*_, "rules", _]:
            table = Rule
        case [*_, "when"]:
            table = When
        case _:
            table = NESTED_TABLES[parents[-1]]
    return [key for key in table.model_fields if key != "name"]


def _place(loc: tuple[int | str, ...]) -> str:
    """`[models."gpt-4.1"] limits.rpm: ` for ("models", "gpt-4.1", "limits", "rpm")."""
    table, keys = (heading(loc[:2]), loc[2:]) if len(loc) > 1 else ("", loc)
    dotted = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    return f"{' '.join(filter(None, (table, dotted)))}: "


def heading(names: Iterable[int | str]) -> str:
    """A TOML table's heading. Names go through JSON's quotes, which TOML shares."""
    parts = (name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name) for name in map(str, names))
    return f"[{'.'.join(parts)}]"
