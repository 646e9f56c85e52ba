"""What is wrong with an answer, by the job's JSON Schema.

jsonschema-rs takes 35 ms and 9 MB to import, so only the first job with a schema pays for it. A schema is compiled
once: the jobs of a run share it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NoReturn

import orjson

from ..prompt.failure import Failure

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError, Validator

__all__ = ["SchemaValidator", "validator_of"]

_SCHEMAS_KEPT: Final = 256

_SHOWN_CHARACTERS: Final = 200

_QUOTES_NO_ANSWER: Final = frozenset(
    {
        "type",
        "required",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
    }
)
"""Keywords whose messages, with the value masked, hold nothing but what the schema says. Of the others only the name is
told: answers are private, and errors are logged."""


class SchemaValidator:
    """One schema, compiled."""

    def __init__(self, compiled: Validator) -> None:
        self._compiled = compiled

    def misfit(self, value: Any) -> str | None:
        """The first thing that is wrong with a JSON value; None: it fits. Quotes the schema, never the value."""
        if self._compiled.is_valid(value):
            return None
        return _told(next(iter(self._compiled.iter_errors(value))))


def validator_of(schema: Any) -> SchemaValidator:
    """The schema's validator. Raises `Failure` (`bad_request`) that says where the schema is wrong.

    A `$ref` leads to what is in the schema: nothing is fetched.
    """
    try:
        return _compiled(orjson.dumps(schema, option=orjson.OPT_SORT_KEYS))
    except TypeError:  # an integer of more than 64 bits
        raise _invalid("", "holds a number of more than 64 bits") from None


@lru_cache(maxsize=_SCHEMAS_KEPT)
def _compiled(schema: bytes) -> SchemaValidator:
    import jsonschema_rs  # noqa: PLC0415 - see above

    try:
        return SchemaValidator(
            jsonschema_rs.validator_for(orjson.loads(schema), retriever=_fetch_nothing, mask="the value")
        )
    except jsonschema_rs.ValidationError as error:
        place = _place(error.instance_path)
        if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Referencing):
            raise _invalid(
                place, "a `$ref` or `$schema` leads nowhere; nothing is fetched, so put what it names under `$defs`"
            ) from None
        raise _invalid(place, _what(error)) from None
    except (ValueError, TypeError) as error:  # it nests too deep, or is no object
        raise _invalid("", type(error).__name__) from None


def _fetch_nothing(uri: str, /) -> NoReturn:
    raise ValueError("not fetched")


def _invalid(place: str, reason: str) -> Failure:
    return Failure("bad_request", f"the job's schema is no JSON Schema: {place or 'at its top'}: {reason}")


def _told(error: ValidationError) -> str:
    *place, _ = error.schema_path or [""]
    return f"{_place(place) or 'the answer'}: {_what(error)}"[:_SHOWN_CHARACTERS]


def _what(error: ValidationError) -> str:
    keyword = str(error.schema_path[-1]) if error.schema_path else "schema"
    # What names of properties fail by is an answer's name, which no mask hides.
    is_safe = keyword in _QUOTES_NO_ANSWER and "propertyNames" not in error.schema_path
    return error.message if is_safe else f"fails `{keyword}`"


def _place(path: list[Any]) -> str:
    """Of a schema: an answer's own path may hold keys that the schema does not name."""
    return "/".join(map(str, path))[:_SHOWN_CHARACTERS]
