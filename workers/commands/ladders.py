"""`promptmill doctor --ladder NAME`: what a job of a model or route passes through in a worker, by its shape."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from itertools import product
from typing import TYPE_CHECKING, Final

import typer

from config.catalog import CatalogError, load_catalog
from config.settings import SettingsError, get_settings
from tasks.redis.address import Address
from tasks.wire.kinds import KINDS

from ..celery.runtime import answers_of, pipeline_of
from ..http.session import Http
from ..limiter import LimiterRegistry
from ..pipeline.offers import OtherWorkers
from ..pipeline.routing.choice import words
from ..pipeline.rungs.call import Call
from ..pipeline.trip import Shape
from ..prompt.failure import Incapable
from ..providers.keyring import KeyRing
from .failing import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from config.catalog import Catalog

__all__ = ["show_ladders"]


def show_ladders(name: str, *, as_json: bool) -> None:
    """Print them. Exits 1 where a worker could not start, or does not know the model."""
    try:
        catalog = load_catalog(get_settings().catalog)
        chain = _chain(catalog, name)
        order, ladders = asyncio.run(_ladders(catalog, name))
    except (SettingsError, CatalogError, Incapable) as error:
        fail(str(error), exit_code=1)
    if as_json:
        names = {_words(shape): [rung.__name__ for rung in rungs] for shape, rungs in ladders.items()}
        typer.echo(json.dumps({**names, "chain": chain}))
        return
    typer.echo("models")
    for line in chain:
        typer.echo(f"  {line}")
    typer.echo("rungs, outermost first")
    for rung in order:
        having = {shape for shape, rungs in ladders.items() if rung in rungs}
        if having:
            typer.echo(f"  {rung.__name__:<12}{_purpose(rung)}{_whose(having, ladders)}")


def _chain(catalog: Catalog, name: str) -> list[str]:
    """Who answers, in words: a line for each way on which a job of this name may go. Raises `UnknownModel`."""
    route = catalog.routes.get(name)
    if route is None:
        return [_with_fallbacks(catalog, name)]
    lines = [f"{words(rule.when)}: {_with_fallbacks(catalog, rule.model)}" for rule in route.rules]
    if route.default is not None:
        return [*lines, f"else: {_with_fallbacks(catalog, route.default)}"]
    return [*lines, f"else, {route.choose} first: {', '.join(route.targets)}"]


def _with_fallbacks(catalog: Catalog, name: str) -> str:
    return " then ".join((name, *catalog.model(name).fallbacks))


async def _ladders(catalog: Catalog, name: str) -> tuple[list[type], dict[Shape, list[type]]]:
    """All rungs, outermost first, and those of each shape. Builds a worker's pipeline, and opens nothing."""
    settings = get_settings()
    redis = Address.of(settings.broker).async_client()
    pipeline = pipeline_of(
        settings,
        catalog,
        KeyRing({}),
        http=Http(settings.http),
        limits=LimiterRegistry(redis, now=time.time),
        others=OtherWorkers(redis),
        answers=answers_of(settings, redis),
    )
    shapes = [
        Shape(kind, name, has_deadline, caches=caches)
        for kind, has_deadline, caches in product(KINDS, (False, True), (False, True))
    ]
    shapes.append(Shape("chat", name, has_deadline=False, has_schema=True))
    if any(model.flex for model in catalog.reach(name)):
        shapes.append(Shape("chat", name, has_deadline=True, may_flex=True))
    ladders = {shape: [*map(type, pipeline.ladder(shape).rungs), Call] for shape in shapes}
    return [*map(type, pipeline.rungs), Call], ladders


def _whose(having: set[Shape], shapes: Iterable[Shape]) -> str:
    """Which jobs meet a rung that is on the ladders of these shapes, in words; nothing where all do."""
    every = set(shapes)
    if having == every:
        return ""
    for trait, has in _TRAITS.items():
        if having == {shape for shape in every if has(shape)}:
            return f" (jobs {trait})"
    return f" ({', '.join(dict.fromkeys(shape.kind for shape in having))})"


_TRAITS: Final[dict[str, Callable[[Shape], bool]]] = {
    "with a deadline": lambda shape: shape.has_deadline,
    "with a cache time": lambda shape: shape.caches,
    "with a schema": lambda shape: shape.has_schema,
    "with time to wait": lambda shape: shape.may_flex,
}


def _words(shape: Shape) -> str:
    has = [trait.removeprefix("with ") for trait, has in _TRAITS.items() if has(shape)]
    return f"{shape.kind} with {' and '.join(has)}" if has else shape.kind


def _purpose(rung: type) -> str:
    return (inspect.getdoc(rung) or "").partition(".")[0]
