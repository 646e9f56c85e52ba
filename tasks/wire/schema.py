"""The option `schema` as the `response_format` that a chat's body carries. Pure.

A provider that constrains its model to a schema (`strict`) takes only some schemas: every object closed, every property
required. Of the others it gets the schema as a description, and the workers validate the answer.
"""

from __future__ import annotations

from typing import Any, Final

from .vocabulary import JobKind

__all__ = ["NAME", "has_json_schema", "response_format", "schema_conflict"]

NAME: Final = "answer"
"""Providers want a name for a schema."""

_IN_PLACE: Final = ("items", "additionalItems", "contains", "not", "if", "then", "else")
_BY_NAME: Final = ("properties", "$defs", "definitions", "patternProperties")
_IN_LIST: Final = ("anyOf", "allOf", "oneOf", "prefixItems")


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    """What the body of a chat says for a JSON Schema."""
    described: dict[str, Any] = {"name": NAME, "schema": schema}
    if schema.get("type") == "object" and _is_closed(schema):
        described["strict"] = True
    return {"type": "json_schema", "json_schema": described}


def has_json_schema(body: Any) -> bool:
    """Whether the body itself asks for an answer that fits a JSON Schema."""
    wanted = body.get("response_format") if isinstance(body, dict) else None
    return isinstance(wanted, dict) and wanted.get("type") == "json_schema"


def schema_conflict(kind: JobKind, body: Any, *, has_schema: bool, has_repair: bool) -> tuple[str, str] | None:
    """The option of a job that contradicts the rest of it, and why; None: none does."""
    if has_schema and kind != "chat":
        return "schema", "only a chat's answer can fit a schema; leave it out"
    if has_schema and body.get("response_format") is not None:
        return "schema", "stands beside `response_format`, which says the same; leave one of them out"
    if has_repair and not has_schema and not (kind == "chat" and has_json_schema(body)):
        return "repair", "there is no schema that an answer could miss; give `schema` too, or leave it out"
    return None


def _is_closed(schema: Any) -> bool:
    found = [schema]
    for each in found:
        if not isinstance(each, dict):
            continue
        properties = each.get("properties")
        if properties is not None or each.get("type") == "object":
            names = set(properties) if isinstance(properties, dict) else None
            required = each.get("required", [])
            if each.get("additionalProperties") is not False or not isinstance(required, list):
                return False
            if names is None or not all(isinstance(name, str) for name in required) or names != set(required):
                return False
        found += [each[name] for name in _IN_PLACE if name in each]
        for name in _BY_NAME:
            found += each[name].values() if isinstance(each.get(name), dict) else ()
        for name in _IN_LIST:
            found += each[name] if isinstance(each.get(name), list) else ()
    return True
