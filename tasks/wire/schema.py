"""The option `schema` as a body carries it: a chat's in `response_format`, a response's in `text.format`. Pure.

OpenAI and others constrain their model to a schema that is `strict`, and take only some schemas so: every object
closed, every property required, and nothing but the keywords below (OpenAI's guide to structured outputs, November
2026). Any other is sent as a description, and what comes of it the workers validate.
"""

from __future__ import annotations

from typing import Any, Final

from .kinds import KINDS, JobKind

__all__ = ["NAME", "described_schema", "response_format", "schema_conflict", "states_format", "with_schema"]

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
    return {"type": "json_schema", "json_schema": _described(schema)}


def with_schema(kind: JobKind, body: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The body of a kind that fits schemas, asking for one."""
    if KINDS[kind].schema_in != "text":
        return {**body, "response_format": response_format(schema)}
    text = body.get("text")
    wanted = {"type": "json_schema", **_described(schema)}
    return {**body, "text": {**(text if isinstance(text, dict) else {}), "format": wanted}}


def described_schema(kind: JobKind, body: Any) -> Any:
    """What the body itself says of the JSON Schema that the answer is to fit; None where it asks for none."""
    wanted = _format_of(kind, body)
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return None
    return wanted if KINDS[kind].schema_in == "text" else wanted.get("json_schema")


def states_format(kind: JobKind, body: Any) -> bool:
    """Whether the body itself says of what form the answer is to be."""
    return _format_of(kind, body) is not None


def schema_conflict(kind: JobKind, body: Any, *, has_schema: bool, has_repair: bool) -> tuple[str, str] | None:
    """The option of a job that contradicts the rest of it, and why; None: none does."""
    if has_schema and not KINDS[kind].schema_in:
        return "schema", f"only a chat's answer and a response are held to it, not {KINDS[kind].noun}; leave it out"
    if has_schema and states_format(kind, body):
        place = "text.format" if KINDS[kind].schema_in == "text" else "response_format"
        return "schema", f"stands beside `{place}`, which says the same; leave one of them out"
    if has_repair and not has_schema and described_schema(kind, body) is None:
        return "repair", "there is no schema that an answer could miss; give `schema` too, or leave it out"
    return None


def _format_of(kind: JobKind, body: Any) -> Any:
    found = body.get(KINDS[kind].schema_in) if KINDS[kind].schema_in and isinstance(body, dict) else None
    return found.get("format") if isinstance(found, dict) and KINDS[kind].schema_in == "text" else found


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {"name": NAME, "schema": schema}
    if schema.get("type") == "object" and _is_constrainable(schema):
        described["strict"] = True
    return described


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
