"""`promptmill doctor --ladder MODEL`: what a job passes through in a worker, by its shape."""

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
from tasks.wire.vocabulary import KINDS

from ..celery.runtime import pipeline_of
from ..http.session import Http
from ..limiter import LimiterRegistry
from ..pipeline.offers import OtherWorkers
from ..pipeline.rungs.call import Call
from ..pipeline.trip import Shape
from ..prompt.failure import Incapable
from ..providers.keyring import KeyRing
from .common import fail

if TYPE_CHECKING:
    from ..pipeline.pipeline import Pipeline

__all__ = ["show_ladders"]


def show_ladders(model: str, *, as_json: bool) -> None:
    """Print them. Exits 1 where a worker could not start, or does not know the model."""
    try:
        ladders = asyncio.run(_ladders(model))
    except (SettingsError, CatalogError, Incapable) as error:
        fail(str(error), exit_code=1)
    if as_json:
        typer.echo(json.dumps({shape: [name for name, _ in rungs] for shape, rungs in ladders.items()}))
        return
    for shape, rungs in ladders.items():
        typer.echo(shape)
        for name, purpose in rungs:
            typer.echo(f"  {name:<12}{purpose}")


async def _ladders(model: str) -> dict[str, list[tuple[str, str]]]:
    """By shape, each rung's name and purpose, outermost first. Builds a worker's pipeline, and opens nothing."""
    settings = get_settings()
    catalog = load_catalog(settings.catalog)
    redis = Address.of(settings.broker).async_client()
    pipeline = pipeline_of(
        settings,
        catalog,
        KeyRing({}),
        http=Http(settings.http),
        limits=LimiterRegistry(redis, now=time.time),
        others=OtherWorkers(redis),
    )
    shapes = [Shape(kind, model, has_deadline) for kind, has_deadline in product(KINDS, (False, True))]
    return {_words(shape): _rungs(pipeline, shape) for shape in shapes}


def _words(shape: Shape) -> str:
    return f"{shape.kind} with a deadline" if shape.has_deadline else shape.kind


def _rungs(pipeline: Pipeline, shape: Shape) -> list[tuple[str, str]]:
    kinds = [*map(type, pipeline.ladder(shape).rungs), Call]
    return [(kind.__name__, (inspect.getdoc(kind) or "").partition(".")[0]) for kind in kinds]
