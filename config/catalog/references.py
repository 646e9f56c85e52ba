"""Whether each name in a catalogue leads somewhere: what is wrong, one line for each problem, with table and key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .errors import UnknownModel
from .texts import advice, heading

if TYPE_CHECKING:
    from .catalog import Catalog

__all__ = ["broken_references"]


def broken_references(catalog: Catalog) -> Iterator[str]:
    yield from _rivals_for_any_model(catalog)
    dangling = list(_dangling_providers(catalog))
    yield from dangling
    if not dangling:
        yield from _tiers(catalog)
        yield from _timeouts(catalog)
        yield from _fallbacks(catalog)
        yield from _routes(catalog)


def _rivals_for_any_model(catalog: Catalog) -> Iterator[str]:
    names = [name for name, provider in catalog.providers.items() if provider.any_model]
    if len(names) > 1:
        yield f"{heading(('providers', names[1]))} any_model: {' and '.join(names)} have it; only one can"


def _dangling_providers(catalog: Catalog) -> Iterator[str]:
    for alias, model in catalog.models.items():
        if model.provider not in catalog.providers:
            near = advice(model.provider, catalog.providers)
            yield f"{heading(('models', alias))} provider: no provider is named {model.provider!r}. {near}"


def _tiers(catalog: Catalog) -> Iterator[str]:
    for alias, model in catalog.models.items():
        if model.flex and catalog.provider(model).kind == "anthropic":
            yield f"{heading(('models', alias))} flex: Anthropic's API has no flex tier; leave it out"


def _timeouts(catalog: Catalog) -> Iterator[str]:
    why = (
        "calls that it ends may be paid for, so they have to be permitted another one: set repeat_timeouts = true, "
        "or leave it out"
    )
    for name, provider in catalog.providers.items():
        if provider.timeout.times_p95 is not None and not provider.repeat_timeouts:
            yield f"{heading(('providers', name))} timeout.times_p95: {why}"
    for alias, model in catalog.models.items():
        is_own = model.timeout != catalog.provider(model).timeout or model.repeat_timeouts is not None
        if is_own and model.timeout.times_p95 is not None and not catalog.repeats_timeouts(model):
            yield f"{heading(('models', alias))} timeout.times_p95: {why}"


def _fallbacks(catalog: Catalog) -> Iterator[str]:
    for alias, model in catalog.models.items():
        place = f"{heading(('models', alias))} fallbacks"
        if alias in model.fallbacks:
            yield f"{place}: names the model itself; what another call of it cures, retries do"
        yield from _unusable(catalog, model.fallbacks, place=place)


def _routes(catalog: Catalog) -> Iterator[str]:
    for name, route in catalog.routes.items():
        place = heading(("routes", name))
        if name in catalog.models:
            yield f"{place}: a model has this name too, so jobs could not say which they mean; rename the route"
        elif name.partition("/")[0] in catalog.providers and "/" in name:
            yield f"{place}: reads as a model of the provider {name.partition('/')[0]!r}; rename the route"
        for number, rule in enumerate(route.rules):
            yield from _unusable(catalog, [rule.model], place=f"{place} rules[{number}].model")
        yield from _unusable(catalog, route.targets, place=f"{place} targets")
        if route.default is not None:
            yield from _unusable(catalog, [route.default], place=f"{place} default")


def _unusable(catalog: Catalog, names: Iterable[str], *, place: str) -> Iterator[str]:
    for name in names:
        if name in catalog.routes:
            yield f"{place}: {name!r} is a route, which could lead back here; name models"
            continue
        try:
            catalog.model(name)
        except UnknownModel as unknown:
            yield f"{place}: {unknown}"
