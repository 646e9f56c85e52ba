"""A JSON Schema as Anthropic's structured outputs take it."""

from __future__ import annotations

from typing import Any

__all__ = ["constrainable"]

_TOO_FINE = frozenset(
    {
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "maxItems",
        "uniqueItems",
        "minProperties",
        "maxProperties",
    }
)
"""What Claude's grammar can't hold, and the API refuses. `minItems` may be 0 or 1."""

_BY_NAME = ("properties", "$defs", "definitions")
_IN_LIST = ("anyOf", "oneOf", "allOf")


def constrainable(schema: Any) -> Any:
    """The schema without what the API refuses, which the description says instead, as Anthropic's own SDKs have it. It
    wants closed objects, so those that say nothing of further properties are. The answer is validated by the original.
    """
    if not isinstance(schema, dict):
        return schema
    made = {name: value for name, value in schema.items() if not _is_too_fine(name, value)}
    if told := [f"{name}: {value}" for name, value in schema.items() if name not in made]:
        made["description"] = " ".join(filter(None, [made.get("description"), f"({', '.join(told)})"]))
    if schema.get("type") == "object" or "properties" in schema:
        made.setdefault("additionalProperties", False)
    for name in _BY_NAME:
        if isinstance(made.get(name), dict):
            made[name] = {key: constrainable(each) for key, each in made[name].items()}
    for name in _IN_LIST:
        if isinstance(made.get(name), list):
            made[name] = [constrainable(each) for each in made[name]]
    if "items" in made:
        made["items"] = constrainable(made["items"])
    return made


def _is_too_fine(name: str, value: Any) -> bool:
    return name in _TOO_FINE or (name == "minItems" and value not in (0, 1))
