"""`promptmill doctor --ladder NAME`: what a job of a model or route passes through in a worker, by its shape."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from itertools import product
from typing import TYPE_CHECKING

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
    from config.catalog import Catalog

    from ..pipeline.pipeline import Pipeline

__all__ = ["show_ladders"]


def show_ladders(name: str, *, as_json: bool) -> None:
    """Print them. Exits 1 where a worker could not start, or does not know the model."""
    try:
        catalog = load_catalog(get_settings().catalog)
        chain = _chain(catalog, name)
        ladders = asyncio.run(_ladders(catalog, name))
    except (SettingsError, CatalogError, Incapable) as error:
        fail(str(error), exit_code=1)
    if as_json:
        rungs_of = {shape: [rung for rung, _ in rungs] for shape, rungs in ladders.items()}
        typer.echo(json.dumps({**rungs_of, "chain": chain}))
        return
    typer.echo("models")
    for line in chain:
        typer.echo(f"  {line}")
    for shape, rungs in ladders.items():
        typer.echo(shape)
        for rung, purpose in rungs:
            typer.echo(f"  {rung:<12}{purpose}")


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


async def _ladders(catalog: Catalog, name: str) -> dict[str, list[tuple[str, str]]]:
    """By shape, each rung's name and purpose, outermost first. Builds a worker's pipeline, and opens nothing."""
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
    return {_words(shape): _rungs(pipeline, shape) for shape in shapes}


def _words(shape: Shape) -> str:
    had = (
        ("deadline", shape.has_deadline),
        ("cache time", shape.caches),
        ("schema", shape.has_schema),
        ("time", shape.may_flex),
    )
    has = [word for word, is_so in had if is_so]
    return f"{shape.kind} with a {' and a '.join(has)}" if has else shape.kind


def _rungs(pipeline: Pipeline, shape: Shape) -> list[tuple[str, str]]:
    kinds = [*map(type, pipeline.ladder(shape).rungs), Call]
    return [(kind.__name__, (inspect.getdoc(kind) or "").partition(".")[0]) for kind in kinds]
