"""The whole catalogue: providers, models and routes by name, and which provider answers for which name."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from .errors import UnknownModel
from .field_types import ANY_MODEL, is_name
from .references import broken_references
from .routing import Route
from .tables import Model, Provider, Table
from .texts import heading, unknown_model


class Catalog(Table):
    """Providers, models and routes by name. A name that one table uses is the name of another."""

    providers: dict[str, Provider] = Field(default_factory=dict)
    models: dict[str, Model] = Field(default_factory=dict)
    routes: dict[str, Route] = Field(default_factory=dict)

    @field_validator("providers", "models", "routes", mode="before")
    @classmethod
    def _tables_know_their_names(cls, tables: Any, info: ValidationInfo) -> Any:
        if not isinstance(tables, dict):
            return tables
        return {name: _named(table, name, section=str(info.field_name)) for name, table in tables.items()}

    @field_validator("models")
    @classmethod
    def _models_inherit(cls, models: dict[str, Model], info: ValidationInfo) -> dict[str, Model]:
        providers = info.data.get("providers", {})
        return {alias: _with_providers(model, providers.get(model.provider)) for alias, model in models.items()}

    @model_validator(mode="after")
    def _names_lead_somewhere(self) -> Catalog:
        if problems := list(broken_references(self)):
            raise ValueError("\n".join(problems))
        return self

    def model(self, alias: str) -> Model:
        """The model that jobs call by this name.

        A name that the catalogue lacks goes unchanged to the provider with `any_model`. Without such a provider,
        `PROVIDER/MODEL` is the provider's own name of a model: with limits and price where the catalogue has them
        under an alias. Raises `UnknownModel`, which lists the nearest names, for anything else.
        """
        return self.models.get(alias) or self._unnamed_model(alias)

    def models_of(self, name: str) -> list[Model]:
        """The models that may be asked first for jobs of this name: several for a route. Raises `UnknownModel`."""
        route = self.routes.get(name)
        return [self.model(name)] if route is None else [self.model(alias) for alias in route.models()]

    def reach(self, name: str) -> list[Model]:
        """The models that may answer jobs of this name, in turn or by a route's choice. Raises `UnknownModel`."""
        first = self.models_of(name)
        return [*first, *(self.model(alias) for model in first for alias in model.fallbacks)]

    def provider(self, model: Model) -> Provider:
        """The provider that answers for this model."""
        return self.providers[model.provider]

    def repeats_timeouts(self, model: Model) -> bool:
        """Whether a call of this model that was sent and timed out is made again, if the job does not say."""
        return self.provider(model).repeat_timeouts if model.repeat_timeouts is None else model.repeat_timeouts

    def aliases(self) -> list[str]:
        """The names that jobs may use, sorted. `PROVIDER/*` stands for any model of a provider, and `*` for any at all
        if a provider takes any."""
        of_providers = (f"{name}/{ANY_MODEL}" for name in self.providers)
        return sorted([*self.models, *self.routes, *of_providers, *([ANY_MODEL] if self.provider_of_any() else [])])

    def providers_of(self, alias: str) -> list[Provider]:
        """The providers of one of `aliases`, each once: one, but for a route."""
        if alias in self.routes or alias in self.models:
            return list({model.provider: self.provider(model) for model in self.models_of(alias)}.values())
        of_any = self.provider_of_any() if alias == ANY_MODEL else None
        return [of_any or self.providers[alias.removesuffix(f"/{ANY_MODEL}")]]

    def provider_of_any(self) -> Provider | None:
        """The provider that takes any model, if there is one."""
        return next((provider for provider in self.providers.values() if provider.any_model), None)

    def _unnamed_model(self, alias: str) -> Model:
        provider, upstream = self.provider_of_any(), alias
        if provider is None:
            name, _, upstream = alias.partition("/")
            provider = self.providers.get(name)
        if provider is None or not is_name(upstream):
            raise UnknownModel(unknown_model(alias, [*self.models, *self.routes]))
        theirs = (model for model in self.models.values() if model.provider == provider.name)
        known = next((model for model in theirs if model.upstream == upstream), None)
        unnamed = Model(name=alias, provider=provider.name, upstream=upstream)
        return known or _with_providers(unnamed, provider)


def _named(table: Any, name: str, *, section: str) -> Any:
    if not isinstance(table, dict):
        return table
    if table.get("name", name) != name:
        raise ValueError(f"{heading((section, name))} name: there is no such key; the heading holds the name")
    return {**table, "name": name}


def _with_providers(model: Model, provider: Provider | None) -> Model:
    """The model with its provider's limits and time-out where it states none."""
    if provider is None:
        return model
    inherited = {"limits": provider.limits, "timeout": provider.timeout}
    missing = {name: value for name, value in inherited.items() if name not in model.model_fields_set}
    return model.model_copy(update=missing) if missing else model
