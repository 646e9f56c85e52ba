"""The calls' time-outs: as asyncio's own, with one timer for all of a duration."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.virtual_time import VirtualLoop
from workers.http.exchange import Response
from workers.http.timeouts import Silence, Timeouts

Call = tuple[float, float, float, float | None]
"""When a call begins, its time-out, how long it takes, and when somebody cancels it (s from the beginning)."""

whole_or_tenths = st.integers(0, 40).map(lambda tenths: tenths / 10)
calls = st.tuples(whole_or_tenths, st.sampled_from([0.0, 0.5, 1.0, 2.0]), whole_or_tenths, st.none() | whole_or_tenths)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class Ours:
    """`asyncio.timeout`, ours."""

    def __init__(self) -> None:
        self._timeouts = Timeouts()

    def __call__(self, seconds: float) -> Any:
        return self._timeouts.after(seconds)


class Theirs:
    """asyncio's, entered as ours."""

    def __call__(self, seconds: float) -> Any:
        return asyncio.timeout(seconds)


async def entered(context: Any, body: Coroutine[Any, Any, Any]) -> Any:
    if isinstance(context, AbstractContextManager):
        with context:
            return await body
    async with context:
        return await body


async def outcomes(make: Callable[[], Callable[[float], Any]], wanted: list[Call]) -> list[tuple[str, float]]:
    after, loop = make(), asyncio.get_running_loop()
    began_at = loop.time()

    async def one(begins_s: float, timeout_s: float, takes_s: float) -> str:
        await asyncio.sleep(begins_s)
        try:
            await entered(after(timeout_s), asyncio.sleep(takes_s))
        except TimeoutError:
            return "timed out"
        return "done"

    async def seen(call: Call) -> tuple[str, float]:
        begins_s, timeout_s, takes_s, cancelled_s = call
        task = asyncio.create_task(one(begins_s, timeout_s, takes_s))
        if cancelled_s is not None:
            # A little off the round instants: at the same one it is chance what comes first.
            loop.call_later(cancelled_s + 0.01, task.cancel)
        await asyncio.wait([task])
        return ("cancelled" if task.cancelled() else task.result()), round(loop.time() - began_at, 3)

    return await asyncio.gather(*map(seen, wanted))


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(calls, max_size=12))
def test_calls_end_as_under_asyncio_s_timeout(wanted: list[Call]) -> None:
    # Where the body ends at the very instant of its time-out, either is right.
    wanted = [(begins, limit, takes + 0.003, cancelled) for begins, limit, takes, cancelled in wanted]
    assert run(outcomes(Ours, wanted)) == run(outcomes(Theirs, wanted))


def test_a_thousand_calls_share_one_timer() -> None:
    async def main() -> int:
        after, loop = Timeouts().after, asyncio.get_running_loop()
        set_, call_at = [], loop.call_at

        def counted(when: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
            set_.append(when)
            return call_at(when, *args, **options)

        loop.call_at = counted  # type: ignore[method-assign, assignment]  # sleep(0) sets none
        ended = asyncio.gather(*(entered(after(60), asyncio.sleep(0)) for _ in range(1_000)))
        await ended
        return len(set_)

    assert run(main()) == 1


@pytest.mark.parametrize("inner_s", [1.0, 3.0])
def test_the_shorter_of_two_around_a_call_ends_it(inner_s: float) -> None:
    async def main() -> str:
        after = Timeouts().after
        try:
            with after(2.0):
                try:
                    with after(inner_s):
                        await asyncio.sleep(10)
                except TimeoutError:
                    return "inner"
        except TimeoutError:
            return "outer"
        return "none"

    assert run(main()) == ("inner" if inner_s < 2 else "outer")


@pytest.mark.parametrize("make", [Ours, Theirs])
def test_a_cancelled_call_stays_so_though_its_time_runs_out(make: Callable[[], Any]) -> None:
    async def cleans_up_slowly() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(60)

    async def main() -> bool:
        task = asyncio.create_task(entered(make()(2.0), cleans_up_slowly()))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert run(main())


def test_what_the_body_raises_comes_out() -> None:
    async def main() -> None:
        with Timeouts().after(1.0):
            raise KeyError("its own")

    with pytest.raises(KeyError):
        run(main())


def test_outside_of_a_task_it_says_so() -> None:
    async def main() -> str:
        said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        after = Timeouts().after

        def not_a_task() -> None:
            try:
                with after(1.0):
                    pass
            except RuntimeError as error:
                said.set_result(str(error))

        asyncio.get_running_loop().call_soon(not_a_task)
        return await said

    assert "needs a task" in run(main())


# -- silences


async def paced(silence: Silence, *after_s: float) -> None:
    """Something comes each time after so many seconds."""
    for seconds in after_s:
        await asyncio.sleep(seconds)
        silence.heard_at = silence.now()


@given(st.lists(st.floats(0, 0.99), max_size=8), st.floats(1.01, 10))
def test_a_silence_counts_from_what_came_last(after_s: list[float], last_s: float) -> None:
    async def main() -> float:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        began_at = loop.time()
        with pytest.raises(TimeoutError), Timeouts().silence(1.0) as silence:
            await paced(silence, *after_s, last_s)
        assert task is not None and not task.cancelling()
        await asyncio.sleep(0)
        return loop.time() - began_at

    assert run(main()) == pytest.approx(sum(after_s) + 1.0, abs=1e-4), "each turn of the virtual loop takes 1 us"


def test_a_silence_ends_with_what_it_is_around() -> None:
    async def main() -> float:
        with Timeouts().silence(1.0) as silence:
            await paced(silence, 0.9, 0.9)
        await asyncio.sleep(5)
        return asyncio.get_running_loop().time()

    assert run(main()) >= 6.8


def test_somebody_elses_cancellation_in_a_silence_is_theirs() -> None:
    async def quiet() -> None:
        with Timeouts().silence(1.0):
            await asyncio.sleep(10)

    async def main() -> None:
        task = asyncio.create_task(quiet())
        await asyncio.sleep(0.5)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        run(main())


class Slow:
    """A body whose pieces come 0.7 s apart."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    async def readany(self) -> bytes:
        await asyncio.sleep(0.7)
        return self._pieces.pop(0)

    def at_eof(self) -> bool:
        return not self._pieces


@pytest.mark.parametrize("encoding", ["gzip", None])
@pytest.mark.parametrize(("read_s", "is_in_time"), [(1.0, True), (0.6, False)])
def test_pieces_put_the_time_out_off(encoding: str | None, read_s: float, is_in_time: bool) -> None:
    body = b"24 clips" * 10
    packed = gzip.compress(body) if encoding else body
    content: Any = Slow(*(packed[start : start + 4] for start in range(0, len(packed), 4)))

    async def main() -> bytes:
        silences = Timeouts(aiohttp.SocketTimeoutError)
        headers = {"Content-Encoding": encoding} if encoding else {}
        response = Response(200, headers, content, close=lambda: None, silences=silences, read_s=read_s)
        response.decode()
        found = b""
        with response.in_pieces():
            while not response.at_eof():
                found += await response.read_some()
        return found

    if is_in_time:
        assert run(main()) == body
    else:
        with pytest.raises(aiohttp.SocketTimeoutError):
            run(main())
