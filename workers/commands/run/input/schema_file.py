"""The file of a JSON Schema that the answers of a run have to fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workers.prompt.failure import Failure
from workers.schema.validator import validator_of

from ..errors import UnusableInput

__all__ = ["read_schema"]


def read_schema(path: Path | None) -> dict[str, Any] | None:
    """The schema in the file. Raises `UnusableInput`; not a row is sent with a schema that is none."""
    if path is None:
        return None
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnusableInput(f"Can't read the schema {path}: {error.strerror}. Name a file with --schema.") from None
    except ValueError:
        raise UnusableInput(f"{path} is not JSON. Write a JSON Schema into it.") from None
    if not isinstance(schema, dict) or not schema:
        raise UnusableInput(f"{path} holds no JSON Schema, which is an object. Write one into it.")
    try:
        validator_of(schema)
    except Failure as invalid:
        raise UnusableInput(f"{path}: {invalid.message}. Correct it.") from None
    return schema
