"""At the bottom of the ladder: one counted call, through codec, HTTP and codec."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tasks.wire.kinds import KINDS
from tasks.wire.vocabulary import FLEX

from ...prompt.failure import Failure
from ...prompt.secret import STRUCK, is_secret
from ...providers.tiers import note_no_room, served_tier
from ...telemetry.counts import counts
from ..outages import stopped
from ..outcome import attempt_of, cut_off
from ..record_limit import check_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.catalog import Provider

    from ...http.session import Http
    from ...providers import Answer, ProviderRequest, RawResponse
    from ...streams import Streams
    from ..trip import Trip

__all__ = ["Call"]

LARGE_BYTES = 1024 * 1024
"""An answer from this size on is measured: it may not fit into a record, or the next of its kind may not."""


class Call:
    """Sends the request once, and writes down what has become of it."""

    def __init__(
        self,
        http: Http,
        *,
        now: Callable[[], float],
        compresses: bool,
        time_limit: type[Exception],
        streams: Streams | None = None,
    ) -> None:
        """`now` gives epoch seconds. `compresses`: whether large results of our client's jobs are stored compressed.
        `time_limit` is what is raised in a job whose time in the worker is over. `streams` is for answers that
        somebody reads as they come.
        """
        self._streams = streams
        self._asked = {} if streams is None else streams.asked.jobs
        self._http = http
        self._now = now
        self._compresses = compresses
        self._stops = (asyncio.CancelledError, time_limit)

    async def __call__(self, trip: Trip) -> Answer:
        route = trip.route
        health = route.health
        if health.outages and not health.lets(trip):
            raise stopped(health.outages[-1].reason)
        job = trip.job
        streams = route.model.stream_only or job.options.stream or job.id in self._asked
        if streams:
            streams = KINDS[job.kind].streams
        request = route.codec.request(job, model=route.model, provider=route.provider, key=trip.key, streams=streams)
        trip.request, trip.called_at = request, self._now()
        trip.attempts += 1
        try:
            if streams:
                raw, answer = await self._stream(trip, request)
            else:
                timeout = trip.timeout or route.model.timeout
                raw = await self._http.post(request, timeout=timeout, profile=route.provider.profile)
                answer = self._read(trip, raw)
            if len(raw.body) >= LARGE_BYTES:
                await self._measure(trip, raw, answer)
            if trip.held is not None and raw.held is not None:
                trip.held.append(raw.held)
        except Failure as failure:
            self._note_failure(trip, request, failure)
            raise
        except self._stops:
            # After a cancel nobody reads the history.
            trip.was_cut = request.stage == "sent"
            self._note(trip, cut_off(trip))
            raise
        if request.was_resent:
            _count_resent(trip)
        trip.paid_twice = trip.may_be_paid
        health.answered += 1
        if health.outages:
            health.note_answer(began_at=trip.called_at)
        return answer

    def _note_failure(self, trip: Trip, request: ProviderRequest, failure: Failure) -> None:
        if request.was_resent:
            _count_resent(trip)
        if trip.key is not None:
            failure.hide(trip.key.get_secret_value())
        if failure.code == "auth":
            failure.advise(_advice_on_keys(trip.route.provider))
        trip.route.health.note_failure(failure, job_id=trip.job.id, probe=trip, began_at=trip.called_at)
        if failure.unreachable:
            trip.attempts -= 1  # nothing was sent, so it was none
            return
        self._note(trip, failure)
        if failure.suspected_payment:
            counts.add("suspected_payments_total", _cause(failure))

    async def _stream(self, trip: Trip, request: ProviderRequest) -> tuple[RawResponse, Answer]:
        """The same in pieces, which go to whoever reads them as they come."""
        route, assembly = trip.route, trip.route.codec.assembly(trip.job)
        raw = await self._http.stream(
            request,
            assembly,
            timeout=trip.timeout or route.model.timeout,
            profile=route.provider.profile,
            on_text=self._reader(trip),
        )
        try:
            return raw, self._read(trip, raw)
        except Failure as failure:
            if assembly.has_begun:
                # Whatever the provider calls it, a model has seen the prompt.
                failure.is_refusal, failure.suspected_payment = False, True
            raise

    def _reader(self, trip: Trip) -> Callable[[str], object]:
        """What takes the text, of a model that has to be asked so too."""
        job = trip.job
        if self._streams is None or not (job.options.stream or job.id in self._asked):
            return len
        if trip.feed is None:
            trip.feed = self._streams.open(job.id)
        trip.feed.begin("" if trip.key is None else trip.key.get_secret_value())
        return trip.feed.write

    def _read(self, trip: Trip, raw: RawResponse) -> Answer:
        trip.headers, asked = raw.headers, trip.job.body.get("service_tier")
        if trip.key is not None:
            raw.body = _without(raw.body, trip.key.get_secret_value())
        try:
            answer = trip.route.codec.response(trip.job, raw, now=self._now())
        except Failure as failure:
            failure.suspected_payment = 200 <= raw.status < 300 and not failure.is_refusal
            if asked == FLEX:
                note_no_room(failure, raw)
            elif asked is not None:
                trip.tier = served_tier({}, raw.headers, asked=asked)
            raise
        # An account may have another tier for all that it asks, so the answer may name one that nobody asked for.
        if asked is not None or answer.response.get("service_tier") is not None:
            trip.tier = served_tier(answer.response, raw.headers, asked=asked)
        return answer

    async def _measure(self, trip: Trip, raw: RawResponse, answer: Answer) -> None:
        """Raises `Failure` for an answer that no record holds."""
        route, job = trip.route, trip.job
        if job.kind == "embed":
            route.sizes.learn(route.codec.answer_size(job), answer)
        try:
            if not trip.is_shared:
                await check_answer(answer, len(raw.body), compresses=self._compresses and job.is_clients)
        except Failure as failure:
            failure.suspected_payment = True
            raise

    def _note(self, trip: Trip, failure: Failure) -> None:
        trip.failed.append(attempt_of(trip, failure, self._now()))
        trip.paid_twice = trip.may_be_paid
        trip.may_be_paid = trip.may_be_paid or failure.suspected_payment


def _count_resent(trip: Trip) -> None:
    """The first of two requests of one attempt: the server closed an idle connection, or died after reading it."""
    trip.may_be_paid = True
    counts.add("suspected_payments_total", "connection")


def _advice_on_keys(provider: Provider) -> str:
    if provider.api_keys:
        return f"check {' and '.join(provider.api_keys)}"
    return "it wants one: name its variable in the provider's `api_keys`"


def _cause(failure: Failure) -> str:
    return failure.code if failure.code in {"timeout", "connection"} else "bad_response"


def _without(body: bytes, key: str) -> bytes:
    return body.replace(key.encode(), STRUCK.encode()) if is_secret(key) else body
