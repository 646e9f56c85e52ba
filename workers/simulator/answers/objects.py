"""Objects that fit a JSON Schema, drawn from the seed: what a model with structured outputs answers. No I/O.

Read are the keywords that providers' own modes take. Of `pattern`, `not`, `if` and `uniqueItems` nothing is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..draws import uniforms

__all__ = ["fitting_object"]

_DEEP: Final = 6
"""From this depth on only what is required is there, so that schemas that refer to themselves come to an end."""
_DEEPEST: Final = 40
_WORDS: Final = ("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "islet", "juniper", "it's 5")
_SPREAD: Final = 1_000
_FORMATS: Final = {
    "date": "2026-05-{:02}",
    "date-time": "2026-05-{:02}T10:00:00Z",
    "time": "10:00:{:02}Z",
    "email": "reader{}@example.org",
    "uri": "https://example.org/{}",
    "uuid": "123e4567-e89b-42d3-a456-4266141740{:02}",
    "ipv4": "192.0.2.{}",
    "hostname": "host{}.example.org",
}


def fitting_object(schema: Any, *, seed: int, key: bytes) -> Any:
    """The value for a schema and a key: the same for the same seed."""
    return _Maker(schema, seed, key).make(schema, 0)


class _Maker:
    def __init__(self, root: Any, seed: int, key: bytes) -> None:
        self._root = root
        self._seed = seed
        self._key = key
        self._drawn = 0

    def make(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict) or depth > _DEEPEST:
            return self._text({})
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._one_of(schema["enum"])
        for choice in ("anyOf", "oneOf"):
            if schema.get(choice):
                options = schema[choice]
                option = options[-1] if depth >= _DEEP else self._one_of(options)
                rest = {name: value for name, value in schema.items() if name != choice}
                return self.make(_merged(rest, option), depth + 1)
        makers: dict[str, Callable[[], Any]] = {
            "object": lambda: self._object(schema, depth),
            "array": lambda: self._array(schema, depth),
            "string": lambda: self._text(schema),
            "integer": lambda: self._number(schema, step=1),
            "number": lambda: self._number(schema, step=0.25),
            "boolean": lambda: self._draw() < 0.5,
            "null": lambda: None,
        }
        return makers.get(_type(schema), makers["string"])()

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Without `$ref` and `allOf`."""
        for _ in range(_DEEPEST):
            if isinstance(target := schema.get("$ref"), str):
                schema = _merged(self._at(target), {name: each for name, each in schema.items() if name != "$ref"})
            elif parts := schema.get("allOf"):
                schema = {name: each for name, each in schema.items() if name != "allOf"}
                for part in parts:
                    schema = _merged(schema, part)
            else:
                break
        return schema

    def _at(self, reference: str) -> Any:
        found = self._root
        for name in reference.removeprefix("#").split("/")[1:]:
            found = found.get(name.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, dict) else {}
        return found

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", [])
        properties = schema.get("properties", {})
        names = [name for name in properties if name in required or (depth < _DEEP and self._draw() < 0.7)]
        made = {name: self.make(properties[name], depth + 1) for name in names}
        return made | {name: self._text({}) for name in required if name not in made}

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        first = [self.make(each, depth + 1) for each in schema.get("prefixItems", [])]
        least = schema.get("minItems", 0 if depth >= _DEEP else 1)
        if schema.get("items") is False:
            return first
        count = min(least + int(self._draw() * 3) * (depth < _DEEP), schema.get("maxItems", least + 3))
        return first + [self.make(schema.get("items", {}), depth + 1) for _ in range(count - len(first))]

    def _text(self, schema: dict[str, Any]) -> str:
        if (form := _FORMATS.get(schema.get("format", ""))) is not None:
            return form.format(1 + int(self._draw() * 28))
        text = f"{self._one_of(_WORDS)} {int(self._draw() * _SPREAD)}"
        while len(text) < schema.get("minLength", 0):
            text += f" {self._one_of(_WORDS)}"
        return text[: schema.get("maxLength", len(text))]

    def _number(self, schema: dict[str, Any], *, step: float) -> float:
        step = schema.get("multipleOf", step)
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0 if "maximum" not in schema else None))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        if low is None:
            low = high - _SPREAD * step if high is not None else 0
        if high is None:
            high = low + _SPREAD * step
        first = -(-low // step) + (low % step == 0 and "exclusiveMinimum" in schema)
        last = high // step - (high % step == 0 and "exclusiveMaximum" in schema)
        number = (first + int(self._draw() * max(1, last - first + 1))) * step
        return int(number) if float(number).is_integer() else number

    def _one_of(self, options: Any) -> Any:
        return options[int(self._draw() * len(options))]

    def _draw(self) -> float:
        self._drawn += 1
        return uniforms(self._seed, f"object {self._drawn}", self._key)[0]


def _type(schema: dict[str, Any]) -> str:
    stated = schema.get("type")
    if isinstance(stated, list):
        stated = next((each for each in stated if each != "null"), "null")
    if stated is None:
        stated = "object" if "properties" in schema else "array" if "items" in schema else "string"
    return str(stated)


def _merged(base: Any, other: Any) -> dict[str, Any]:
    """Both schemas' words, as `allOf` means them."""
    base, other = (each if isinstance(each, dict) else {} for each in (base, other))
    merged: dict[str, Any] = base | other
    for name in ("properties", "$defs"):
        if name in base and name in other:
            merged[name] = base[name] | other[name]
    if "required" in base and "required" in other:
        merged["required"] = [*base["required"], *other["required"]]
    return merged
