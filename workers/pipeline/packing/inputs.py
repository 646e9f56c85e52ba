"""What stands in a job's `input`, and which jobs may share a call."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

from tasks.wire.vectors import inputs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...prompt.failure import Failure
    from ...prompt.job import PromptJob

__all__ = [
    "Family",
    "GroupKey",
    "family_of",
    "group_key",
    "in_base64",
    "inputs_of",
    "refuses_base64",
    "weight_of",
    "without_base64",
]

Family = Literal["texts", "tokens"]
"""No provider takes both in one call. Of others, such as pictures, nothing is known that would let them share one."""

_FAMILIES: dict[type, Family] = {str: "texts", list: "tokens"}
_OURS = frozenset({"model", "input"})


class GroupKey(NamedTuple):
    """What calls have in common that may carry each other's inputs: all but the inputs.

    The fields of the body count whatever they mean. So does `user`: a provider watches over each user by it, and a call
    has room for one.
    """

    alias: str
    family: Family
    vectors: str | None
    fields: bytes


def family_of(inputs: Sequence[Any]) -> Family | None:
    """What the inputs are, all of them; None for what is neither, or mixed."""
    kinds = {type(each) for each in inputs} if len(inputs) > 1 else {type(inputs[0])}
    return _FAMILIES.get(kinds.pop()) if len(kinds) == 1 else None


def weight_of(value: Any) -> int:
    """Characters of a text, or how many tokens there are."""
    return len(value)


def group_key(job: PromptJob, alias: str, family: Family) -> GroupKey:
    """Whose inputs the job's may go with."""
    body = job.body
    fields = b"" if body.keys() == _OURS else _dumps({name: body[name] for name in body.keys() - _OURS})
    return GroupKey(alias, family, job.options.vectors, fields)


def in_base64(job: PromptJob) -> PromptJob:
    """The same job, whose vectors come as packed 32-bit floats: less than half as long as in decimal digits."""
    return replace(job, body={**job.body, "encoding_format": "base64"})


def without_base64(job: PromptJob) -> PromptJob:
    """The same job, with the provider's choice of how vectors come."""
    return replace(job, body={name: value for name, value in job.body.items() if name != "encoding_format"})


def refuses_base64(failure: Failure, job: PromptJob) -> bool:
    """Whether the provider refuses the format that was asked for inside."""
    if failure.code != "bad_request" or job.options.vectors != "base64":
        return False
    return "encoding_format" in job.body and "encoding_format" in (failure.provider_body or "")


def _dumps(fields: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return json.dumps(fields, sort_keys=True).encode()  # integers of more than 64 bits
