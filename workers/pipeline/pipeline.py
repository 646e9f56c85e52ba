"""The life of one prompt. Start reading here.

A job steps down a ladder of rungs, each with one worry (`rungs/`). Its shape decides which rungs it meets; a rung that
is off is not on the ladder. What a rung can't cure, it raises as a `Failure`, and of every end comes a `PromptResult`.
Two things pass through all rungs: cancellation, which closes the HTTP request on its way, and `Parked`, for a job
whose turn is so far away that it gives its place in the pool back.
"""

from __future__ import annotations

import logging
import traceback
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from config.catalog import UnknownModel
from tasks.wire.kinds import KINDS
from tasks.wire.redis_keys import QUEUE

from ..breaker import BreakerPolicy, Breakers
from ..prompt.failure import Failure, Incapable
from ..prompt.job import JobKind, PromptJob, parse
from ..prompt.parked import Parked
from ..providers import CODECS
from ..telemetry.counts import counts
from .at_hand import AtHand, Read
from .flex_policy import FlexPolicy
from .offers import Offers
from .outcome import answered, unanswered
from .packing.caps import CallCaps
from .packing.tokens import tokenizers_of
from .record_limit import RecordSizes
from .routing.reach import reaches
from .routing.router import Router
from .routing.speeds import Speeds
from .rungs.admission import Admission
from .rungs.answers import Answers
from .rungs.breaker import Breaker
from .rungs.call import Call
from .rungs.deadline import Deadline
from .rungs.elsewhere import Elsewhere, Others
from .rungs.fallbacks import Fallbacks
from .rungs.input_length import InputLength
from .rungs.packing import Packing
from .rungs.patience.flex import Flex
from .rungs.patience.timeouts import Timeouts
from .rungs.record_size import RecordSize
from .rungs.retry import Retries
from .rungs.schema import Schema
from .trip import Route, Shape, Trip

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from random import Random

    from config.catalog import Catalog
    from tasks.results import PromptResult

    from ..answers import Answers as Store
    from ..http.session import Http
    from ..limiter import LimiterRegistry
    from ..providers import Answer
    from ..providers.keyring import KeyRing
    from ..streams import Streams
    from .retry_policy import RetryPolicy
    from .trip import Down, Rung

__all__ = ["Ladder", "Pipeline"]

logger = logging.getLogger("promptmill.pipeline")

LADDERS_KEPT = 1_024
"""`any_model` providers let jobs name what they like, hence a bound."""


class Ladder(NamedTuple):
    """The rungs that jobs of one shape meet, and where they go; None: `Fallbacks`, on the ladder, decides that."""

    route: Route | None
    rungs: tuple[Rung, ...]
    down: Down


class _NoTimeLimit(Exception):
    """Never raised."""


class _NoOthers:
    """A worker alone."""

    async def offered(self, alias: str, *, queue: str) -> bool:
        return False


class Pipeline:
    """Turns prompt jobs into results. One for each worker process; any number of jobs at a time."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        http: Http,
        keys: KeyRing,
        limits: LimiterRegistry,
        retry: RetryPolicy,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        rng: Random,
        park_after_s: float | None = None,
        patience_s: float = 3_600.0,
        compresses: bool = True,
        pack_wait_s: float = 0.02,
        flex: FlexPolicy | None = None,
        places: Callable[[], tuple[int, int, int]] = lambda: (0, 1, 0),
        tenant_weights: Mapping[str, float] | None = None,
        offers: Offers | None = None,
        others: Others | None = None,
        answers: Store | None = None,
        cache_ttl_s: float | None = None,
        breakers: Breakers | None = None,
        streams: Streams | None = None,
        read_stamp: Callable[[float], float] = float,
        time_limit: type[Exception] = _NoTimeLimit,
        on_failure: Callable[[PromptResult, str | None], None] | None = None,
    ) -> None:
        """`now` gives epoch seconds; `sleep` takes seconds. `read_stamp` leads from the clock that stamps
        `submitted_at`, Redis's, to that of `now`.

        A job whose turn is more than `park_after_s` seconds away is `Parked`; None: it waits in its place. A job
        without a deadline waits `patience_s` for a provider that is out. `compresses`: whether large results
        of our client's jobs are stored compressed. A call for embeddings waits `pack_wait_s` for further jobs' inputs,
        longer while many of the worker's `places` (taken, all, not started) are taken; among them tenants take turns by
        their `tenant_weights`. `flex`: who may wait for room in a flex tier. `offers` is what this worker announces; a
        job that it can't do is left to `others`, if there are any. `answers` are those of all workers; without them no
        job is cached.
        `cache_ttl_s`: how long, in seconds, those of repeatable jobs are kept that do not say. `breakers` know which
        providers are out; None: only those that can't be reached. `streams` takes answers to those that read them as
        they come; without it nobody does. `time_limit` is what is raised in a job whose time
        in the worker is over.
        `on_failure` is called with each result that is no answer, and the job's tenant.
        """
        self._catalog = catalog
        self._now = now
        self._read_stamp = read_stamp
        self._time_limit = time_limit
        self._on_failure = on_failure
        self._all_cache = cache_ttl_s is not None
        policy = flex or FlexPolicy()
        self._any_flex = any(model.flex for model in catalog.models.values())
        self._elsewhere = Elsewhere(others or _NoOthers(), offers or Offers(), keys_of=keys.of, now=now)
        self.breakers = Breakers(BreakerPolicy(failures=0), now=now) if breakers is None else breakers
        # Outermost first: this order is the pipeline. Once for each job:
        find_route = self._route_of = lru_cache(maxsize=LADDERS_KEPT)(self._find_route)
        speeds = Speeds()
        router = Router(catalog, limits=limits, find_route=find_route, keys_of=keys.of, speeds=speeds, now=now)
        self._fallbacks = Fallbacks(
            router,
            find_route=find_route,
            leave=self._elsewhere.leave,
            attempts_of=retry.attempts,
            limits=limits,
            speeds=speeds,
            now=now,
        )
        job_rungs: tuple[Rung, ...] = (Deadline(), self._fallbacks)
        stored = None if answers is None else Answers(answers, ttl_s=cache_ttl_s, may_wait=policy.may_wait, now=now)
        # Once for each model that is tried:
        route_rungs: tuple[Rung, ...] = (
            self._elsewhere,
            InputLength(limits, tokenizers_of(catalog)),
            *(() if stored is None else (stored,)),
            Schema(now=now),
            RecordSize(compresses=compresses),
            Breaker(now=now, sleep=sleep, rng=rng, patience_s=patience_s, park_after_s=park_after_s),
            Retries(retry, now=now, sleep=sleep, rng=rng),
            Flex(
                policy,
                reaches=reaches(catalog, lambda model: model.flex),
                limits=limits,
                keys_of=keys.of,
                park_after_s=park_after_s,
                now=now,
                sleep=sleep,
                rng=rng,
            ),
            Packing(
                limits,
                keys_of=keys.of,
                now=now,
                wait_s=pack_wait_s,
                places=places,
                weights=tenant_weights or {},
                compresses=compresses,
            ),
            Admission(limits, keys_of=keys.of, park_after_s=park_after_s),
            Timeouts(reaches=reaches(catalog, lambda model: model.timeout.times_p95 is not None), now=now),
        )
        self.rungs: Final = (*job_rungs, *route_rungs)
        """All of them, outermost first."""
        self._streams = streams
        self._call = Call(http, now=now, compresses=compresses, time_limit=time_limit, streams=streams)
        self.ladder = lru_cache(maxsize=LADDERS_KEPT)(self._build)
        self.at_hand: AtHand | None = None
        """What it can answer from memory, if it has one."""
        if answers is not None and stored is not None:
            digest_of, ladder = stored.digest_of, self.ladder
            self.at_hand = AtHand(
                answers,
                digest_of=digest_of,
                ladder=ladder,
                ttl_s=cache_ttl_s,
                any_flex=self._any_flex,
                now=now,
                read_stamp=read_stamp,
            )

    def _build(self, shape: Shape) -> Ladder:
        """The ladder of a shape. Raises `Incapable` for a model that the catalogue does not know."""
        rungs = tuple(rung for rung in self.rungs if rung.serves(shape))
        down: Down = self._call
        for rung in reversed(rungs):
            down = _above(rung, down)
        return Ladder(None if self._fallbacks in rungs else self._route_of(shape.model), rungs, down)

    def _find_route(self, alias: str) -> Route:
        try:
            model = self._catalog.model(alias)
        except UnknownModel as unknown:
            raise Incapable("not_found", str(unknown)) from None
        provider = self._catalog.provider(model)
        answered_by = f"{provider.name}/{model.upstream}"
        repeats = self._catalog.repeats_timeouts(model)
        health = self.breakers.health(provider.name, model.upstream, address=urlsplit(provider.base_url).netloc)
        sizes, caps = RecordSizes(), CallCaps()
        kinds = frozenset(kind.name for kind in KINDS.values() if kind.api in provider.apis)
        return Route(alias, model, provider, CODECS[provider.kind], answered_by, repeats, sizes, caps, health, kinds)

    def handle(
        self,
        kind: JobKind,
        job_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        group: str | None = None,
        queue: str = QUEUE,
        parked: str | None = None,
        held: list[object] | None = None,
        read: Read | None = None,
        redelivered: bool = False,
    ) -> Coroutine[Any, Any, PromptResult]:
        """Read a task's arguments and run the job. A job that can't be read has failed with `bad_request`.

        `queue` is where the job came from, and other workers take from. `parked` is the memory of a job that was
        parked (`Parked.memory`). `held` gets the memory that a large answer takes (`RawResponse.held`): keep it until
        the answer is stored. `read`: the job, if it was read already (at_hand.py). `redelivered`: another worker, which
        is gone, may have begun it.
        """
        # No coroutine of its own around that of `run`: each level is gone through at every step of a call.
        now = self._now()
        if read is not None:
            return self.run(
                read.job, queue=queue, parked=parked, held=held, now=now, read=read, redelivered=redelivered
            )
        try:
            job = parse(kind, job_id, args, kwargs, group=group, now=now, read_stamp=self._read_stamp)
        except Failure as refused:
            return self._refuse(PromptJob(job_id, kind, model="", body={}, group=group), refused, now)
        return self.run(job, queue=queue, parked=parked, held=held, now=now, redelivered=redelivered)

    async def run(
        self,
        job: PromptJob,
        *,
        queue: str = QUEUE,
        parked: str | None = None,
        held: list[object] | None = None,
        now: float | None = None,
        read: Read | None = None,
        redelivered: bool = False,
    ) -> PromptResult:
        """The job's result, of whatever kind. Raises nothing but `asyncio.CancelledError` and `Parked`."""
        trip = Trip(job, self._now() if now is None else now, queue, held=held)
        if parked is not None:
            trip.remember(parked)
        trip.redelivered = redelivered
        try:
            try:
                if read is None:
                    ladder = self.ladder(Shape.of(job, all_cache=self._all_cache, any_flex=self._any_flex))
                else:
                    ladder, trip.digest = read.ladder, read.digest
                if ladder.route is not None:
                    trip.route = ladder.route
                    ladder.route.check(job)
            except Incapable as lacking:
                await self._elsewhere.leave(trip, job.model, lacking.lacks_api)
                raise
            answer = await ladder.down(trip)
        except Failure as failure:
            return self._failed(trip, failure)
        except self._time_limit:
            if trip.was_cut:
                counts.add("suspected_payments_total", "timeout")
            late = Failure("timeout", "the task's soft time limit passed before there was an answer")
            return self._failed(trip, late)
        except Parked as again:
            # What only this worker can't do leaves no trace of this worker's try.
            again.memory = trip.arrived_with if again.for_others else trip.memory()
            raise
        except Exception as bug:  # noqa: BLE001 - a fault of ours must end this job, not the worker
            return self._failed(trip, _internal(bug, job))
        if trip.feed is not None and self._streams is not None:
            await self._streams.end(trip.feed, answer.text or "")
        return answered(trip, answer, self._now())

    async def _refuse(self, job: PromptJob, refused: Failure, now: float) -> PromptResult:
        return self._failed(Trip(job, now), refused)

    def _failed(self, trip: Trip, failure: Failure) -> PromptResult:
        if trip.feed is not None and self._streams is not None:
            self._streams.give_up(trip.feed)
        result = unanswered(trip, failure, self._now())
        if self._on_failure is not None:
            self._on_failure(result, trip.job.options.tenant)
        return result


def _above(rung: Rung, down: Down) -> Down:
    # A `partial` with a keyword copies a dict for each rung of each job.
    call = rung.__call__

    def step(trip: Trip) -> Awaitable[Answer]:
        return call(trip, down)

    return step


def _internal(bug: Exception, job: PromptJob) -> Failure:
    """A fault of ours. Its text may quote the prompt, so only its class and its place are told."""
    frames = traceback.extract_tb(bug.__traceback__)
    place = f"{frames[-1].name}, line {frames[-1].lineno}" if frames else "an unknown place"
    logger.error(
        "Job %s failed by a fault of ours: %s (text hidden: it may hold the prompt)\n%s",
        job.id,
        type(bug).__name__,
        "".join(traceback.format_list(frames)),
    )
    return Failure("internal", f"a fault of ours: {type(bug).__name__} in {place}; please report it")
