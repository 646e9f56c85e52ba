"""The life of one prompt. Start reading here.

One rung, one worry, outermost first; each calls the next::

    handle     a Celery message becomes a job, or a refusal
    run        whatever happens, a `PromptResult` comes of it
    _in_time   the job's own deadline
    _attempts  again, and when
    _attempt   leave to send, from the limit that all workers share
    _call      one counted call; what went wrong is written down
    _send      codec, HTTP, codec

A rung that fails raises `Failure`. Two things pass through all of them: cancellation, which closes the HTTP
request on its way, and `Parked`, for a job whose turn is so far away that it gives its place in the pool back.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from celery.exceptions import SoftTimeLimitExceeded

from config.catalog import UnknownModel
from tasks.keys import QUEUE
from tasks.results import Attempt, JobError, PromptResult, Status, Usage

from .counts import counts
from .failures import Failure, Incapable
from .job import JobKind, PromptJob, parse
from .limiter import MustPark, TooLargeForLimit, TooLate
from .offers import AGAIN_S, Offers
from .outages import Outages, Reason
from .providers import CODECS, Answer, Codec, ProviderRequest, RawResponse
from .record_size import RecordSizes, check_answer
from .retry import Decision, GiveUp, Retry, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from random import Random

    from pydantic import SecretStr

    from config.catalog import Catalog, Model, Provider

    from .http import Http
    from .limiter import Cost, Permit
    from .limiter.line import Priority
    from .outages import Outage
    from .providers.keyring import KeyRing

__all__ = ["Limits", "Parked", "Pipeline"]

logger = logging.getLogger("promptmill.pipeline")

SECRET_CHARS = 12
"""A shorter key is no secret, and may be a word of an answer."""

LARGE_BYTES = 1024 * 1024
"""An answer from this size on is measured: it may not fit into a record, or the next of its kind may not."""

LOOK_EVERY_S = 1.0
"""How often a job that waits for its provider looks whether another has reached it."""

RETURN_GAP_S = 0.001
"""Between the returns of the jobs that were parked because their provider can't be reached."""


class Limits(Protocol):
    """The shared limit, as the pipeline sees it: `limiter.LimiterRegistry`."""

    def estimate(
        self, model: Model, *, input_chars: int, max_tokens: int | None = None, answers: int = 1, embeds: bool = False
    ) -> Cost: ...

    def admit_free(
        self,
        model: Model,
        keys: Sequence[SecretStr | None],
        *,
        priority: Priority = "normal",
        tenant: str | None = None,
    ) -> Permit | None: ...

    async def admit(
        self,
        model: Model,
        keys: Sequence[SecretStr | None],
        *,
        cost: Cost,
        priority: Priority = "normal",
        tenant: str | None = None,
        deadline_at: float | None = None,
        park_after_s: float | None = None,
    ) -> Permit: ...


class Others(Protocol):
    """The other workers, as the pipeline sees them: `offers.Elsewhere`."""

    async def offered(self, alias: str, *, queue: str) -> bool: ...


class Stamps(Protocol):
    """Between Redis's clock and `now`, as the pipeline sees it: `clock.RedisClock`."""

    def from_redis(self, stamp: float) -> float: ...

    def to_redis(self, instant: float) -> float: ...


class Parked(Exception):
    """The job's turn is far away, or another worker's. Nothing was paid for; run it again at `until_s` (epoch seconds,
    Redis's clock).

    `gap_s`: how much later the next job of its kind would have to be run. `for_others`: not by this worker.
    """

    def __init__(self, until_s: float, reason: str, *, gap_s: float = 0.0, for_others: bool = False) -> None:
        super().__init__(reason)
        self.until_s = until_s
        self.gap_s = gap_s
        self.for_others = for_others


@dataclass(frozen=True, slots=True)
class _Route:
    """Where a model's jobs go."""

    model: Model
    provider: Provider
    codec: Codec
    answered_by: str
    repeat_timeouts: bool
    sizes: RecordSizes


@dataclass(slots=True)
class _Trip:
    """What is known so far of a job under way. Times are epoch seconds."""

    job: PromptJob
    started_at: float
    queue: str = QUEUE
    attempts: int = 0
    failed: list[Attempt] = field(default_factory=list)
    may_be_paid: bool = False
    """A call that brought no answer may have been paid for."""
    paid_twice: bool = False
    """So it is suspected, for another call followed."""
    was_cut: bool = False
    """The call under way was stopped after it had been sent."""
    unreached: Reason | None = None
    """Why it waits for its provider."""
    held: list[object] | None = None
    """Gets what must be held until a large answer is stored."""


class Pipeline:
    """Turns prompt jobs into results. One for each worker process; any number of jobs at a time."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        http: Http,
        keys: KeyRing,
        limits: Limits,
        retry: RetryPolicy,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        rng: Random,
        park_after_s: float | None = None,
        patience_s: float = 3_600.0,
        compresses: bool = True,
        offers: Offers | None = None,
        others: Others | None = None,
        stamps: Stamps | None = None,
        on_failure: Callable[[PromptResult, str | None], None] | None = None,
    ) -> None:
        """`now` gives epoch seconds; `sleep` takes seconds. `stamps` leads from the clock that stamps `submitted_at`,
        Redis's, to that of `now`, and back; None: they are the same.

        A job whose turn is more than `park_after_s` seconds away is `Parked`; None: it waits in its place. A job
        without a deadline waits `patience_s` for a provider that can't be reached. `compresses`: whether large results
        of our client's jobs are stored compressed.
        `offers` is what this worker announces; a job that it can't do is left to `others`, if there are any.
        `on_failure` is called with each result of `handle` that is no answer, and the job's tenant.
        """
        self._catalog = catalog
        self._http = http
        self._keys = keys
        self._limits = limits
        self._park_after_s = park_after_s
        self._retry = retry
        self._now = now
        self._sleep = sleep
        self._rng = rng
        self._patience_s = patience_s
        self._compresses = compresses
        self._on_failure = on_failure
        self._outages = Outages()
        self._offers = offers or Offers()
        self._others = others
        self._from_redis = float if stamps is None else stamps.from_redis
        self._to_redis = float if stamps is None else stamps.to_redis
        self._refused_keys: dict[str, set[SecretStr]] = {}
        # `any_model` providers let jobs name what they like, hence the bound.
        self._route = lru_cache(maxsize=1_024)(self._find_route)

    async def handle(
        self,
        kind: JobKind,
        job_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        group: str | None = None,
        queue: str = QUEUE,
        held: list[object] | None = None,
    ) -> PromptResult:
        """Read a task's arguments and run the job. A job that can't be read has failed with `bad_request`.

        `queue` is where the job came from, and other workers take from. `held` gets the memory that a large answer
        takes (`RawResponse.held`): keep it until the answer is stored.
        """
        now = self._now()
        try:
            job = parse(kind, job_id, args, kwargs, group=group, now=now, read_stamp=self._from_redis)
        except Failure as refused:
            job = PromptJob(job_id, kind, model="", body={}, group=group)
            result = _without_answer(_Trip(job, now), refused, now)
        else:
            result = await self.run(job, queue=queue, held=held)
        if not result.ok and self._on_failure is not None:
            self._on_failure(result, job.options.tenant)
        return result

    async def run(self, job: PromptJob, *, queue: str = QUEUE, held: list[object] | None = None) -> PromptResult:
        """The job's result, of whatever kind. Raises nothing but `asyncio.CancelledError` and `Parked`."""
        trip = _Trip(job, self._now(), queue, held=held)
        try:
            try:
                route = self._route(job.model)
                if self._offers.is_withdrawn(route.provider.name):
                    await self._leave_to_others(trip)
                if job.kind == "embed":
                    route.sizes.check(route.codec.answer_size(job), compresses=self._is_compressed(job))
                answer = await self._in_time(trip, route)
            except Failure as failure:
                if self._is_only_here(trip, failure):
                    await self._leave_to_others(trip)
                raise
        except Failure as failure:
            return _without_answer(trip, failure, self._now())
        except SoftTimeLimitExceeded:
            _count_cut(trip)
            late = Failure("timeout", "the task's soft time limit passed before there was an answer")
            return _without_answer(trip, late, self._now())
        except Parked:
            raise
        except Exception as bug:  # noqa: BLE001 - a fault of ours must end this job, not the worker
            return _without_answer(trip, _internal(bug, job), self._now())
        return _answered(trip, route, answer, self._now())

    def _is_only_here(self, trip: _Trip, failure: Failure) -> bool:
        """Whether the job fails for what this worker lacks. A call with a refused key has cost nothing."""
        if isinstance(failure, Incapable):
            return not trip.attempts
        if not _is_refused_key(failure) or trip.attempts != 1:
            return False
        return self._offers.is_withdrawn(self._route(trip.job.model).provider.name)

    async def _leave_to_others(self, trip: _Trip) -> None:
        """Raise `Parked` if another worker can do the job, `expired` if its deadline passes first; else go on here."""
        if self._others is None:
            return
        deadline_at = trip.job.options.deadline_at
        try:
            async with asyncio.timeout(None if deadline_at is None else max(0.0, deadline_at - self._now())) as limit:
                is_offered = await self._others.offered(trip.job.model, queue=trip.queue)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Failure(
                "expired", "the job's deadline passed before a worker that can call its model took it"
            ) from None
        if is_offered:
            raise Parked(
                self._to_redis(self._now() + AGAIN_S), "this worker can't call the model, another can", for_others=True
            )

    async def _in_time(self, trip: _Trip, route: _Route) -> Answer:
        deadline_at = trip.job.options.deadline_at
        if deadline_at is None:
            return await self._attempts(trip, route)
        left_s = deadline_at - trip.started_at
        if left_s <= 0:
            raise Failure("expired", "the job's deadline passed before a worker could start it")
        try:
            async with asyncio.timeout(left_s) as limit:
                return await self._attempts(trip, route)
        except TimeoutError:
            if not limit.expired():
                raise
        if trip.unreached is not None and not trip.was_cut:
            raise _out_of_reach(trip.unreached)
        _count_cut(trip)
        raise Failure("expired", f"the job's deadline passed in the middle of attempt {trip.attempts}")

    async def _attempts(self, trip: _Trip, route: _Route) -> Answer:
        while True:
            outage = await self._await_reach(trip, route) if self._outages else None
            try:
                return await self._attempt(trip, route)
            except Failure as failure:
                if failure.unreachable:
                    continue  # it was no attempt, and the wait for its provider is above
                match self._decide(trip, route, failure):
                    case Retry() if failure.code == "rate_limited":
                        pause_s = 0.0  # the limiter makes everybody wait, and this job in its turn
                    case Retry(after_s):
                        pause_s = after_s
                    case GiveUp("deadline"):
                        raise _no_time_left(failure) from None
                    case GiveUp("payment"):
                        raise _not_repeated(failure) from None
                    case GiveUp():
                        raise
            finally:
                if outage is not None:
                    outage.release()
            await self._sleep(pause_s)

    def _decide(self, trip: _Trip, route: _Route, failure: Failure) -> Decision:
        options = trip.job.options
        asked = options.repeat_timeouts
        return self._retry.decide(
            failure,
            attempt=trip.attempts,
            max_attempts=options.max_attempts,
            now=self._now(),
            deadline_at=options.deadline_at,
            rng=self._rng,
            repeat_timeouts=route.repeat_timeouts if asked is None else asked,
        )

    async def _await_reach(self, trip: _Trip, route: _Route) -> Outage | None:
        """Wait while the provider can't be reached.

        The outage, if this job is the one to try again: `release` it afterwards. None: it is over. Raises `Parked`, and
        `Failure` where there is no point in waiting longer.
        """
        options = trip.job.options
        while (outage := self._outages.of(route.provider.name)) is not None:
            now = self._now()
            if outage.is_over:
                self._note_reached(route, began_at=now)
                break
            if options.deadline_at is not None and now >= options.deadline_at:
                raise _out_of_reach(outage.reason)
            if outage.claim(now):
                return outage
            trip.unreached = outage.reason
            waited_s = now - max(outage.since, options.submitted_at or 0.0)
            if options.deadline_at is None and waited_s >= self._patience_s:
                raise _patience_over(outage.reason, self._patience_s)
            self._park_if_far(trip, outage, now)
            await self._sleep(min(LOOK_EVERY_S, max(outage.until, outage.probing_until) - now))
        trip.unreached = None
        return None

    def _park_if_far(self, trip: _Trip, outage: Outage, now: float) -> None:
        if self._park_after_s is None or trip.attempts or outage.until - now <= self._park_after_s:
            return
        deadline_at = trip.job.options.deadline_at
        if deadline_at is None or deadline_at > outage.until:
            raise Parked(self._to_redis(outage.until), "the provider can't be reached", gap_s=RETURN_GAP_S)

    async def _attempt(self, trip: _Trip, route: _Route) -> Answer:
        options, keys = trip.job.options, self._keys.of(route.provider)
        permit = self._limits.admit_free(route.model, keys, priority=options.priority, tenant=options.tenant)
        if permit is None:
            permit = await self._admit(trip, route, keys)
        try:
            answer = await self._call(trip, route, permit)
            permit.settle(answer.usage)
        except Failure as failure:
            if failure.unreachable or _is_refusal(failure):
                permit.give_back()
            raise
        finally:
            permit.give_up()
        return answer

    async def _admit(self, trip: _Trip, route: _Route, keys: Sequence[SecretStr | None]) -> Permit:
        options = trip.job.options
        size = route.codec.size(trip.job)
        cost = self._limits.estimate(
            route.model,
            input_chars=size.input_chars,
            max_tokens=size.max_tokens,
            answers=size.answers,
            embeds=trip.job.kind == "embed",
        )
        try:
            return await self._limits.admit(
                route.model,
                keys,
                cost=cost,
                priority=options.priority,
                tenant=options.tenant,
                deadline_at=options.deadline_at,
                # Parking forgets the attempts so far, so a job that has made some waits in its place.
                park_after_s=self._park_after_s if trip.attempts == 0 else None,
            )
        except MustPark as far:
            raise Parked(self._to_redis(far.until_s), far.reason, gap_s=far.gap_s) from None
        except TooLargeForLimit as never:
            raise Failure("too_large", str(never)) from None
        except TooLate as late:
            raise Failure("expired", str(late)) from None

    async def _call(self, trip: _Trip, route: _Route, permit: Permit) -> Answer:
        key = permit.key
        request = route.codec.request(trip.job, model=route.model, provider=route.provider, key=key)
        started_at = self._now()
        trip.attempts += 1
        if self._outages:
            self._watch(route, request)
        try:
            answer = await self._send(trip, route, request, permit)
        except Failure as failure:
            _count_resent(trip, request)
            if key is not None:
                failure.hide(key.get_secret_value())
            if failure.unreachable:
                trip.attempts -= 1  # nothing was sent, so it was none
                self._note_unreached(trip, route, failure, started_at)
                raise
            self._note_reached(route, began_at=started_at)
            if key is not None and _is_refused_key(failure):
                self._note_refused(route.provider, key)
            self._note(trip, route, failure, started_at)
            if failure.suspected_payment:
                counts.add("suspected_payments_total", _cause(failure))
            raise
        except (asyncio.CancelledError, SoftTimeLimitExceeded):
            # The job's deadline, or somebody's cancel; the history is only read in the first case.
            trip.was_cut = request.stage == "sent"
            stopped = Failure("timeout", "stopped before there was an answer", suspected_payment=trip.was_cut)
            self._note(trip, route, stopped, started_at)
            raise
        if self._outages:
            self._note_reached(route, began_at=started_at)
        if request.was_resent:
            _count_resent(trip, request)
        trip.paid_twice = trip.may_be_paid
        return answer

    async def _send(self, trip: _Trip, route: _Route, request: ProviderRequest, permit: Permit) -> Answer:
        raw = await self._http.post(request, timeout=route.model.timeout, profile=route.provider.profile)
        permit.observe(raw.headers)
        if self._refused_keys and raw.status != HTTPStatus.UNAUTHORIZED:
            self._refused_keys.pop(route.provider.name, None)
            self._offers.restore(route.provider.name)
        if permit.key is not None:
            raw.body = _without(raw.body, permit.key.get_secret_value())
        try:
            answer = await self._read(trip.job, route, raw)
        except Failure as failure:
            failure.suspected_payment = 200 <= raw.status < 300
            if failure.code == "rate_limited":
                permit.rate_limited(self._retry.bounded(failure.retry_after_s), raw.headers)
            raise
        if trip.held is not None and raw.held is not None:
            trip.held.append(raw.held)
        return answer

    async def _read(self, job: PromptJob, route: _Route, raw: RawResponse) -> Answer:
        answer = route.codec.response(job, raw, now=self._now())
        if len(raw.body) >= LARGE_BYTES:
            if job.kind == "embed":
                route.sizes.learn(route.codec.answer_size(job), answer)
            await check_answer(answer, len(raw.body), compresses=self._is_compressed(job))
        return answer

    def _is_compressed(self, job: PromptJob) -> bool:
        return self._compresses and job.is_clients

    def _note_refused(self, provider: Provider, key: SecretStr) -> None:
        refused = self._refused_keys.setdefault(provider.name, set())
        refused.add(key)
        if refused.issuperset(self._keys.of(provider)):
            self._offers.withdraw(provider.name)

    def _note(self, trip: _Trip, route: _Route, failure: Failure, started_at: float) -> None:
        attempt = Attempt(
            code=failure.code,
            message=failure.message,
            http_status=failure.http_status,
            answered_by=route.answered_by,
            request_id=failure.request_id,
            at=started_at,
            duration_s=self._now() - started_at,
            retry_after_s=failure.retry_after_s,
            suspected_payment=failure.suspected_payment,
        )
        trip.failed.append(attempt)
        trip.unreached = None
        trip.paid_twice = trip.may_be_paid
        trip.may_be_paid = trip.may_be_paid or failure.suspected_payment

    def _watch(self, route: _Route, request: ProviderRequest) -> None:
        """Whether this call gets a connection, those that wait for the provider want to know."""
        if (outage := self._outages.of(route.provider.name)) is not None:
            outage.probe = request

    def _note_unreached(self, trip: _Trip, route: _Route, failure: Failure, began_at: float) -> None:
        trip.unreached = Reason(failure.code, failure.message)
        outage = self._outages.failed(route.provider.name, trip.unreached, began_at=began_at, now=self._now())
        if outage is not None:
            logger.warning(
                "Provider %s (%s) can't be reached (%s); its jobs wait, and one tries again in %g s",
                route.provider.name,
                urlsplit(route.provider.base_url).netloc,
                failure.message,
                outage.pause_s,
            )

    def _note_reached(self, route: _Route, *, began_at: float) -> None:
        outage = self._outages.reached(route.provider.name, began_at=began_at)
        if outage is not None:
            logger.info("Provider %s is reached again, after %.0f s", route.provider.name, self._now() - outage.since)

    def _find_route(self, alias: str) -> _Route:
        try:
            model = self._catalog.model(alias)
        except UnknownModel as unknown:
            raise Incapable("not_found", str(unknown)) from None
        provider = self._catalog.provider(model)
        answered_by = f"{provider.name}/{model.upstream}"
        repeats = self._catalog.repeats_timeouts(model)
        return _Route(model, provider, CODECS[provider.kind], answered_by, repeats, RecordSizes())


def _is_refused_key(failure: Failure) -> bool:
    return failure.code == "auth" and failure.http_status == HTTPStatus.UNAUTHORIZED


def _answered(trip: _Trip, route: _Route, answer: Answer, now: float) -> PromptResult:
    return PromptResult(
        id=trip.job.id,
        status="succeeded",
        text=answer.text,
        response=answer.response,
        model=trip.job.model,
        answered_by=route.answered_by,
        usage=answer.usage or Usage(),
        cost_usd=_cost_usd(route.model, answer.usage),
        attempts=trip.attempts,
        queued_s=_queued_s(trip),
        duration_s=now - trip.started_at,
        suspected_double_payment=trip.paid_twice,
        metadata=trip.job.options.metadata,
        failed_attempts=tuple(trip.failed),
    )


def _without_answer(trip: _Trip, failure: Failure, now: float) -> PromptResult:
    history = tuple(trip.failed)
    status: Status = "expired" if failure.code == "expired" else "failed"
    return PromptResult(
        id=trip.job.id,
        status=status,
        model=trip.job.model or None,
        attempts=trip.attempts,
        queued_s=_queued_s(trip),
        duration_s=now - trip.started_at,
        suspected_double_payment=trip.paid_twice,
        metadata=trip.job.options.metadata,
        error=JobError(
            code=failure.code,
            message=failure.message,
            http_status=failure.http_status,
            retryable=failure.retryable,
            provider_body=failure.provider_body,
            attempts=history,
        ),
        failed_attempts=history,
    )


def _no_time_left(last: Failure) -> Failure:
    return Failure(
        "expired",
        f"the job's deadline leaves no time to try again; the last: {last.code}: {last.message}",
        http_status=last.http_status,
        provider_body=last.provider_body,
    )


def _not_repeated(timeout: Failure) -> Failure:
    return Failure(
        "timeout",
        f"{timeout.message}; the call may have been paid for, so it was not repeated: raise the model's `timeout` in "
        "the catalogue, or set `repeat_timeouts` (provider, model or job) to have such calls repeated",
        http_status=timeout.http_status,
        retryable=True,
        suspected_payment=True,
    )


def _out_of_reach(last: Reason) -> Failure:
    return Failure(
        "expired", f"the job's deadline passed while its provider could not be reached; the last: {last.message}"
    )


def _patience_over(last: Reason, patience_s: float) -> Failure:
    return Failure(
        last.code,
        f"{last.message}; the job waited for {patience_s:g} s (PROMPTMILL_BREAKER__PATIENCE_S)",
        retryable=True,
    )


def _count_resent(trip: _Trip, request: ProviderRequest) -> None:
    """The first of two requests of one attempt: the server closed an idle connection, or died after reading it."""
    if request.was_resent:
        trip.may_be_paid = True
        counts.add("suspected_payments_total", "connection")


def _count_cut(trip: _Trip) -> None:
    """The job's time was up in the middle of a call."""
    if trip.was_cut:
        counts.add("suspected_payments_total", "timeout")


def _without(body: bytes, key: str) -> bytes:
    """The body of an answer without the key, which gateways are known to echo: answers are stored, and shown."""
    if len(key) < SECRET_CHARS:
        return body  # such as "none", for a server that needs no key
    secret = key.encode()
    return body.replace(secret, b"[key]") if secret in body else body


def _is_refusal(failure: Failure) -> bool:
    """Whether the provider refused the request before a model saw it. 408 may say that the model was too slow."""
    return failure.http_status is not None and 400 <= failure.http_status < 500 and failure.http_status != 408


def _cause(failure: Failure) -> str:
    return failure.code if failure.code in {"timeout", "connection"} else "bad_response"


def _cost_usd(model: Model, usage: Usage | None) -> float | None:
    if model.price is None or usage is None:
        return None
    cost = model.price.cost(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, cached_tokens=usage.cached_tokens
    )
    return None if cost is None else float(cost)


def _queued_s(trip: _Trip) -> float | None:
    submitted_at = trip.job.options.submitted_at
    return None if submitted_at is None else max(0.0, trip.started_at - submitted_at)


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
