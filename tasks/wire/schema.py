"""The option `schema` as the `response_format` that a chat's body carries. Pure.

OpenAI and others constrain their model to a schema that is `strict`, and take only some schemas so: every object
closed, every property required, and nothing but the keywords below (OpenAI's guide to structured outputs, November
2026). Any other is sent as a description, and what comes of it the workers validate.
"""

from __future__ import annotations

from typing import Any, Final

from .kinds import KINDS, JobKind

__all__ = ["NAME", "has_json_schema", "response_format", "schema_conflict"]

NAME: Final = "answer"
"""Providers want a name for a schema."""

_CONSTRAINABLE: Final = frozenset(
    {
        "$defs",
        "$ref",
        "additionalProperties",
        "anyOf",
        "const",
        "definitions",
        "description",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "items",
        "maxItems",
        "maximum",
        "minItems",
        "minimum",
        "multipleOf",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
    }
)
_FORMATS: Final = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uuid"},
)


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    """What the body of a chat says for a JSON Schema."""
    described: dict[str, Any] = {"name": NAME, "schema": schema}
    if schema.get("type") == "object" and _is_constrainable(schema):
        described["strict"] = True
    return {"type": "json_schema", "json_schema": described}


def has_json_schema(body: Any) -> bool:
    """Whether the body itself asks for an answer that fits a JSON Schema."""
    wanted = body.get("response_format") if isinstance(body, dict) else None
    return isinstance(wanted, dict) and wanted.get("type") == "json_schema"


def schema_conflict(kind: JobKind, body: Any, *, has_schema: bool, has_repair: bool) -> tuple[str, str] | None:
    """The option of a job that contradicts the rest of it, and why; None: none does."""
    if has_schema and not KINDS[kind].fits_schema:
        return "schema", f"only a chat's answer is held to it, not that of {KINDS[kind].noun}; leave it out"
    if has_schema and body.get("response_format") is not None:
        return "schema", "stands beside `response_format`, which says the same; leave one of them out"
    if has_repair and not has_schema and not (KINDS[kind].fits_schema and has_json_schema(body)):
        return "repair", "there is no schema that an answer could miss; give `schema` too, or leave it out"
    return None


def _is_constrainable(schema: dict[str, Any]) -> bool:
    found: list[Any] = [schema]
    for each in found:
        if not isinstance(each, dict) or not each.keys() <= _CONSTRAINABLE or not _is_closed(each):
            return False
        if "format" in each and each["format"] not in _FORMATS:
            return False
        found += [each["items"]] if "items" in each else []
        found += each["anyOf"] if isinstance(each.get("anyOf"), list) else []
        for name in ("properties", "$defs", "definitions"):
            found += each[name].values() if isinstance(each.get(name), dict) else []
    return True


def _is_closed(schema: dict[str, Any]) -> bool:
    """Whether it is no object's, or one that has each of its properties and no other."""
    properties = schema.get("properties")
    if properties is None and schema.get("type") != "object":
        return True
    required = schema.get("required", [])
    return (
        schema.get("additionalProperties") is False
        and isinstance(properties, dict)
        and isinstance(required, list)
        and all(isinstance(name, str) for name in required)
        and properties.keys() == set(required)
    )
