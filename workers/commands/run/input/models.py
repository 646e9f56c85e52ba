"""Whether the models that rows name can be used, asked once for each."""

from __future__ import annotations

from typing import Literal, NamedTuple

from config.api_keys import key_problem
from config.catalog import Catalog, UnknownModel

__all__ = ["ModelCheck", "ModelProblem"]


class ModelProblem(NamedTuple):
    """Why a model can't be used. `code` is one of `tasks.errors.ERROR_CODES`."""

    code: Literal["not_found", "auth"]
    text: str


class ModelCheck:
    """Looks a model or a route up in the catalogue and, with `with_keys`, reads the keys of whatever may answer.

    Without a catalogue everything passes: workers that run already have one of their own, and the queue knows
    which models they offer.
    """

    def __init__(self, catalog: Catalog | None, *, with_keys: bool) -> None:
        self._catalog = catalog
        self._with_keys = with_keys
        self._known: dict[str, ModelProblem | None] = {}

    def problem(self, model: str) -> ModelProblem | None:
        if self._catalog is None:
            return None
        if model not in self._known:
            self._known[model] = _problem(self._catalog, model, with_keys=self._with_keys)
        return self._known[model]


def _problem(catalog: Catalog, alias: str, *, with_keys: bool) -> ModelProblem | None:
    try:
        first = catalog.models_of(alias)
    except UnknownModel as error:
        return ModelProblem("not_found", str(error))
    may_answer = [*first, *(catalog.model(name) for model in first for name in model.fallbacks)]
    problems = [key_problem(catalog.provider(model)) for model in may_answer] if with_keys else []
    return ModelProblem("auth", str(problems[0])) if problems and all(problems) else None
