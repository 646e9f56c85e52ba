"""A catalogue from its files: the presets (`presets.toml`), and over them a user's own.

A table of the user's file replaces the preset's whole table of the same name.
"""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .catalog import Catalog
from .errors import InvalidCatalog
from .texts import SECTIONS, heading, problem_lines

PRESETS = Path(__file__).parent.with_name("presets.toml")


def load_catalog(path: Path | None = None) -> Catalog:
    """The presets, with the tables of the user's file in place of presets of the same name.

    Raises `InvalidCatalog`. A provider whose key is not set is no error: `config.api_keys` looks at keys.
    """
    document = _read(PRESETS)
    if path is not None:
        document = _overlaid(document, _read(path), path)
    return _validated(document, path or PRESETS)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"), parse_float=Decimal)
    except OSError as error:
        reason = f"can't be read ({error.strerror}); PROMPTMILL_CATALOG has to name a TOML file, or nothing"
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 text (byte {error.start})"
    except tomllib.TOMLDecodeError as error:
        reason = f"is not TOML: {error}"
    except RecursionError:
        reason = "is nested too deeply"
    raise InvalidCatalog(f"{path}: {reason}")


def _overlaid(base: dict[str, Any], top: dict[str, Any], path: Path) -> dict[str, Any]:
    merged = {**base, **top}
    for section in SECTIONS:
        tables = top.get(section, {})
        if not isinstance(tables, dict):
            raise InvalidCatalog(f"{path}: {section}: must be tables such as {heading((section, 'name'))}")
        merged[section] = {**base.get(section, {}), **tables}
    merged["models"] = {name: _rooted(table, path.parent) for name, table in merged["models"].items()}
    return merged


def _rooted(table: Any, folder: Path) -> Any:
    """A model's table with the path of its tokenizer counted from the catalogue's folder."""
    tokenizer = table.get("tokenizer") if isinstance(table, dict) else None
    return {**table, "tokenizer": str(folder / tokenizer)} if isinstance(tokenizer, str) and tokenizer else table


def _validated(document: dict[str, Any], path: Path) -> Catalog:
    try:
        return Catalog.model_validate(document)
    except ValidationError as error:
        # The presets are sound by a test: what is wrong came with the user's file.
        problems = [line for details in error.errors(include_url=False) for line in problem_lines(details)]
        raise InvalidCatalog("\n".join(f"{path}: {problem}" for problem in problems)) from None
