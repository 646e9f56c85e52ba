"""Routes: names that jobs use like a model's, and that choose one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from tasks.wire.vocabulary import Priority

from .field_types import Count, Name, Seconds, all_different
from .tables import Table

__all__ = ["Choice", "Route", "Rule", "When"]

Choice = Literal["first", "cheapest", "fastest"]
Word = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class When(Table):
    """What a rule asks of a job; all that is stated has to hold, and None asks nothing.

    `input_tokens_over` and `input_tokens_under` are compared with the estimate of the job's input, `deadline_under_s`
    with the seconds that are left to its deadline: a job without one has all the time there is.
    """

    tag: Word | None = None
    input_tokens_over: Count | None = None
    input_tokens_under: Count | None = None
    priority: Priority | None = None
    tenant: Word | None = None
    deadline_under_s: Seconds | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> When:
        if not self.stated():
            raise ValueError("must ask for something; a route's `default` is for all other jobs")
        return self

    def stated(self) -> dict[str, object]:
        """What the rule asks for, by its name."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class Rule(Table):
    """Jobs that are as `when` says go to `model`."""

    when: When
    model: Name


class Route(Table):
    """A name that chooses: the model of the first rule that fits the job, else `default`, or one of `targets`.

    The targets that were not chosen are asked in turn where the one that was chosen can't answer. Behind a rule's model
    and behind `default` come that model's own fallbacks.
    """

    name: Name
    rules: tuple[Rule, ...] = ()
    default: Name | None = None
    targets: Annotated[tuple[Name, ...], AfterValidator(all_different), Field(max_length=20)] = ()
    choose: Choice = "first"

    @model_validator(mode="after")
    def _always_leads_somewhere(self) -> Route:
        if (self.default is None) == (not self.targets):
            raise ValueError("needs `default`, one model, or `targets`, several to choose from, and not both")
        if self.default is not None and self.choose != "first":
            raise ValueError("`choose` chooses among `targets`, and there are none")
        return self

    def models(self) -> Iterator[str]:
        """All that it may choose, each once, in the order of the file."""
        of_rules = (rule.model for rule in self.rules)
        others = self.targets if self.default is None else (self.default,)
        yield from dict.fromkeys((*of_rules, *others))
