"""The one signature of every `submit`: the queue's, the group's, and their blocking twins'.

`tasks/wire/options.py` says what each option means and refuses; a test compares the two.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from .wire.kinds import JobKind
from .wire.vocabulary import Priority, TooLong, Trigger

__all__ = ["submits"]

P = ParamSpec("P")
Owner = TypeVar("Owner")
Submitted = TypeVar("Submitted")


def arguments(
    *,
    model: str,
    messages: Sequence[Mapping[str, Any]] | None = None,
    input: str | Sequence[Any] | None = None,  # noqa: A002 - the provider's own name for it
    id: str | None = None,  # noqa: A002 - the name that the interface promises
    kind: JobKind | None = None,
    priority: Priority = "normal",
    deadline_s: float | None = None,
    delay_s: float = 0.0,
    tenant: str | None = None,
    metadata: Any = None,
    max_attempts: int | None = None,
    repeat_timeouts: bool | None = None,
    schema: Mapping[str, Any] | None = None,
    repair: int = 0,
    fallbacks: Sequence[str] | None = None,
    fallback_on: Sequence[Trigger] | None = None,
    tag: str | None = None,
    cache_ttl_s: float | None = None,
    sample: int | None = None,
    too_long: TooLong = "reject",
    stream: bool = False,
    extra_body: Mapping[str, Any] | None = None,
    **body: Any,
) -> None:
    """What each `submit` takes. All but our options and `extra_body` is the provider's request body."""


def _typed_like(
    template: Callable[P, object],
) -> Callable[[Callable[..., Submitted]], Callable[Concatenate[Any, P], Submitted]]:
    """Give a method that takes `**job` the signature of `template`, for type checkers and at run time."""

    def typed(method: Callable[..., Submitted]) -> Callable[Concatenate[Any, P], Submitted]:
        shown = inspect.signature(template, eval_str=True)  # the method's module may lack the names
        own = inspect.signature(method)
        self_, *_ = own.parameters.values()
        shown = shown.replace(parameters=[self_, *shown.parameters.values()], return_annotation=own.return_annotation)
        method.__signature__ = shown  # type: ignore[attr-defined]  # what `inspect` asks a function for
        method.__annotations__ = {name: each.annotation for name, each in shown.parameters.items() if each is not self_}
        method.__annotations__["return"] = own.return_annotation
        return cast("Callable[Concatenate[Any, P], Submitted]", method)

    return typed


submits = _typed_like(arguments)
