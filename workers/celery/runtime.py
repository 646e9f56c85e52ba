"""The composition root: builds what a worker process needs from its settings, and takes it down again.

`lifespan` is entered on the pool's loop before the first job and left after the last
(`worker_lifespans` in config/celeryconfig.py); between the two, `current()` is the process's pipeline.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from celery.exceptions import SoftTimeLimitExceeded
from redis.exceptions import RedisError

from config.catalog import load_catalog
from config.settings import get_settings
from tasks.redis.address import Address, failure
from tasks.redis.cancellation import stop
from tasks.wire import redis_keys

from ..answers import Answers
from ..breaker import BreakerPolicy, Breakers, SharedBreakers
from ..http.session import Http
from ..limiter import LimiterRegistry
from ..pipeline.flex_policy import FlexPolicy
from ..pipeline.offers import OtherWorkers, offers, with_api
from ..pipeline.pipeline import Pipeline
from ..pipeline.retry_policy import RetryPolicy
from ..pool import places
from ..providers.keyring import KeyRing
from ..redis.channel import Channel
from ..redis.clock import redis_clock
from ..streams import Streams, asked
from ..telemetry.failure_log import FailureLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from celery import Celery
    from redis.asyncio import Redis

    from config.catalog import Catalog
    from config.catalog import Limits as CatalogLimits
    from config.settings import Retry, Settings
    from tasks.results import PromptResult

    from ..pipeline.at_hand import AtHand
    from ..pipeline.rungs.elsewhere import Others

__all__ = ["answers_of", "current", "lifespan", "pipeline_of"]

logger = logging.getLogger("promptmill.runtime")

REDIS_TIMEOUT_S = 5.0
MEGABYTE = 1024 * 1024
ANNOUNCE_EVERY_S = 3_600.0
ANNOUNCE_AGAIN_S = 30.0
"""After a failed announcement."""

# A stack, so that a lifespan inside another (a test's) gives the outer one back.
_pipelines: list[Pipeline] = []


def current() -> Pipeline:
    """This worker process's pipeline."""
    if not _pipelines:
        raise RuntimeError("A prompt task was called directly; it runs only inside `celery -A workers worker`.")
    return _pipelines[-1]


def at_hand() -> AtHand | None:
    """The answers in this process's memory; None outside of workers."""
    return _pipelines[-1].at_hand if _pipelines else None


@asynccontextmanager
async def lifespan(app: Celery) -> AsyncIterator[None]:
    """Build the pipeline and open its connections on the running loop; on leaving, close them.

    Raises what makes a start pointless: `config.SettingsError`, `config.catalog.InvalidCatalog`,
    `config.api_keys.UnusableKey`, and ValueError for a CA file or a proxy that can't be used. Redis may be away.
    """
    settings = get_settings()
    catalog = load_catalog(settings.catalog)
    ring = KeyRing.read(catalog)
    _warn_without_keys(catalog, ring)
    async with (
        _redis(settings) as redis,
        _announced(catalog, settings),
        _channel(redis, settings) as channel,
        _breakers(redis, settings, channel) as breakers,
        LimiterRegistry(
            redis,
            now=redis_clock,
            key_prefix=settings.key_prefix,
            when_away=settings.limit.when_redis_is_away,
            degraded_for_s=settings.limit.degraded_for_s,
            tenant_weights=settings.limit.tenant_weights,
            organisations=_organisations(catalog),
            named=catalog.models.keys(),
            longest_alone_s=settings.retry.cap_s,
            channel=channel,
        ) as limits,
        Http(settings.http) as http,
        _offered(catalog, ring),
        answers_of(settings, redis) as answers,
        _streams(redis, settings, channel) as streams,
    ):
        pipeline = pipeline_of(
            settings,
            catalog,
            ring,
            http=http,
            limits=limits,
            others=OtherWorkers(redis, key_prefix=settings.key_prefix),
            answers=answers,
            breakers=breakers,
            streams=streams,
            on_failure=FailureLog().note,
        )
        channel.open()  # all listen by now
        _pipelines.append(pipeline)
        try:
            yield
        finally:
            _pipelines.remove(pipeline)


def pipeline_of(
    settings: Settings,
    catalog: Catalog,
    ring: KeyRing,
    *,
    http: Http,
    limits: LimiterRegistry,
    others: Others,
    answers: Answers,
    breakers: Breakers | None = None,
    streams: Streams | None = None,
    on_failure: Callable[[PromptResult, str | None], None] | None = None,
) -> Pipeline:
    """A worker's pipeline, as its settings want it. `on_failure`: as `Pipeline`'s."""
    return Pipeline(
        catalog=catalog,
        http=http,
        keys=ring,
        limits=limits,
        park_after_s=settings.limit.park_after_s,
        retry=_retry_policy(settings.retry),
        patience_s=settings.breaker.patience_s,
        compresses=settings.result_compress_from_bytes > 0,
        pack_wait_s=settings.packing.wait_s,
        flex=FlexPolicy(min_deadline_s=settings.flex.min_deadline_s, patience_s=settings.flex.patience_s),
        places=places.look,
        tenant_weights=settings.limit.tenant_weights,
        now=redis_clock,
        read_stamp=redis_clock.from_redis,
        sleep=asyncio.sleep,
        rng=random.Random(),
        offers=offers,
        others=others,
        answers=answers,
        cache_ttl_s=settings.cache.ttl_s,
        breakers=breakers,
        streams=streams,
        time_limit=SoftTimeLimitExceeded,
        on_failure=on_failure,
    )


def answers_of(settings: Settings, redis: Redis) -> Answers:
    """What all workers of the deployment have answered."""
    return Answers(
        redis,
        memory_bytes=settings.cache.memory_mb * MEGABYTE,
        redis_bytes=settings.cache.redis_mb * MEGABYTE,
        to_redis=redis_clock.to_redis,
        redis_s=redis_clock.redis_s,
        key_prefix=settings.key_prefix,
    )


@asynccontextmanager
async def _redis(settings: Settings) -> AsyncIterator[Redis]:
    """The limiter's connections: to the broker's Redis, which all workers share."""
    redis = _client(settings)
    try:
        yield redis
    finally:
        await redis.aclose()


@asynccontextmanager
async def _channel(redis: Redis, settings: Settings) -> AsyncIterator[Channel]:
    """What other workers publish. It is open when those that listen are there."""
    channel = Channel(redis, key_prefix=settings.key_prefix)
    try:
        yield channel
    finally:
        await channel.close()


@asynccontextmanager
async def _breakers(redis: Redis, settings: Settings, channel: Channel) -> AsyncIterator[Breakers]:
    wanted = settings.breaker
    policy = BreakerPolicy(failures=wanted.failures, window_s=wanted.window_s, open_s=wanted.open_s)
    process = f"{os.getpid()}-{secrets.token_hex(6)}"
    shared = SharedBreakers(redis, policy, process=process, key_prefix=settings.key_prefix)
    async with Breakers(policy, now=redis_clock, shared=shared, hears=lambda: channel.hears) as breakers:
        channel.listen(redis_keys.BREAKER_CHANNEL, breakers.hear, hears_again=breakers.hear_again)
        yield breakers


@asynccontextmanager
async def _streams(redis: Redis, settings: Settings, channel: Channel) -> AsyncIterator[Streams]:
    wanted = settings.stream
    streams = Streams(
        redis,
        coalesce_ms=wanted.coalesce_ms,
        max_bytes=wanted.max_bytes,
        keep_s=wanted.keep_s,
        key_prefix=settings.key_prefix,
    )
    # A reader whom nobody has heard gets the text at the end.
    channel.listen(redis_keys.STREAMS_CHANNEL, asked.hear_one, hears_again=lambda: None)
    try:
        yield streams
    finally:
        await streams.close()


def _client(settings: Settings) -> Redis:
    return Address.of(settings.broker).async_client(
        socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
    )


@asynccontextmanager
async def _announced(catalog: Catalog, settings: Settings) -> AsyncIterator[None]:
    """Tell the clients which models there are, now and every hour."""
    redis = _client(settings)
    key = settings.key_prefix + redis_keys.MODELS
    done = await _announce(redis, key, catalog)
    repeating = asyncio.create_task(_keep_announcing(redis, key, catalog, done=done))
    try:
        yield
    finally:
        await stop(repeating)
        await redis.aclose()


@asynccontextmanager
async def _offered(catalog: Catalog, ring: KeyRing) -> AsyncIterator[None]:
    """Have the heartbeat tell the other workers what this one can call."""
    models: dict[str, list[str]] = {}
    for alias in catalog.aliases():
        for provider in catalog.providers_of(alias):
            if provider.name in ring.usable:
                names = (alias, *(with_api(alias, api) for api in provider.apis))
                models.setdefault(provider.name, []).extend(names)
    offers.announce(models)
    try:
        yield
    finally:
        offers.announce({})


async def _keep_announcing(redis: Redis, key: str, catalog: Catalog, *, done: bool) -> None:
    while True:
        await asyncio.sleep(ANNOUNCE_EVERY_S if done else ANNOUNCE_AGAIN_S)
        done = await _announce(redis, key, catalog)


async def _announce(redis: Redis, key: str, catalog: Catalog) -> bool:
    """Whether Redis took it. Nothing depends on it but the client's early refusal of unknown models."""
    try:
        # redis-py tries several times, each within its own time-out.
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            asked_at = redis_clock.asked()
            seconds, microseconds = await redis.time()
            redis_clock.learn(seconds + microseconds / 1e6, asked_at=asked_at)
            await _write_models(redis, key, catalog.aliases(), seconds)
    except (RedisError, OSError) as error:
        logger.warning(
            "Redis did not take the list of models (%s), so clients can't refuse unknown ones; trying again in %g s",
            failure(error),
            ANNOUNCE_AGAIN_S,
        )
        return False
    return True


async def _write_models(redis: Redis, key: str, aliases: list[str], now: float) -> None:
    async with redis.pipeline(transaction=False) as commands:
        if aliases:
            commands.zadd(key, dict.fromkeys(aliases, now))
        commands.zremrangebyscore(key, "-inf", now - redis_keys.MODELS_TTL_S)
        commands.expire(key, redis_keys.MODELS_TTL_S)
        await commands.execute()


def _organisations(catalog: Catalog) -> dict[str, CatalogLimits]:
    """By provider, what all its keys may do together."""
    limits = {name: provider.organisation_limits for name, provider in catalog.providers.items()}
    return {name: stated for name, stated in limits.items() if stated is not None}


def _warn_without_keys(catalog: Catalog, ring: KeyRing) -> None:
    if ring.usable:
        return
    variables = sorted({name for provider in catalog.providers.values() for name in provider.api_keys})
    logger.warning(
        "NO PROVIDER HAS A KEY: every job will fail with `auth`. Set one of %s, in the environment or in .env, "
        "and start the worker again.",
        ", ".join(variables) or "the variables that your catalogue's api_keys name",
    )


def _retry_policy(retry: Retry) -> RetryPolicy:
    return RetryPolicy(
        max_attempts=retry.max_attempts, attempts_cap=retry.attempts_cap, base_s=retry.base_s, cap_s=retry.cap_s
    )
