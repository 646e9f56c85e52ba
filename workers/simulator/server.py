"""The simulated provider as an HTTP server: its paths, its ledger, its start and its end."""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import orjson
from aiohttp import web
from aiohttp.web import BaseRequest, StreamResponse

from .answers import replies
from .answers.replies import ErrorParts
from .delivery import deliver, json_response
from .faults import REDIRECTED_PATH, status_sent
from .ledger import Call, Ledger, Stats
from .options import SimulatorOptions
from .provider import Incoming, Provider

__all__ = ["FAULT_HEADER", "JOB_ID_HEADER", "RunningSimulator", "serve", "start"]

FAULT_HEADER = "x-simulate"
"""Request header that names the fault of this one call."""
JOB_ID_HEADER = "x-promptmill-job-id"
"""Request header that the ledger keeps as `job_id`."""

_JOB_ID_KEPT_CHARS = 200
_BACKLOG = 4_096
_PATHS = 256
_GRACE_S = 0.1

Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]


class _Route(NamedTuple):
    method: str
    handler: Handler


class _Site:
    """Answers every request, and enters the paid ones in the ledger."""

    def __init__(self, options: SimulatorOptions) -> None:
        self.ledger = Ledger(options.ledger_limit, time.time)
        # Without cancellation a client that hangs up would be noticed only when its answer is written.
        self.server = web.Server(self.handle, handler_cancellation=True, access_log=None)
        self._provider = Provider(options)
        self.dialect = self._provider.dialect
        self._locate = lru_cache(maxsize=_PATHS)(self.dialect.locate)
        self._request_ids = (f"req_{number:012x}" for number in count(1))
        self._routes = {
            REDIRECTED_PATH: _Route("*", self._redirected),
            "/__ledger": _Route("GET", self._read_ledger),
            "/__stats": _Route("GET", self._read_stats),
            "/__reset": _Route("POST", self._reset),
            "/__faults": _Route("POST", self._set_faults),
        }

    def accept(self) -> web.RequestHandler:
        """The protocol of a new TCP connection."""
        self.ledger.connected()
        return self.server()

    def stats(self) -> Stats:
        """The totals as they stand."""
        return self.ledger.stats(open_connections=len(self.server.connections))

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer any request."""
        path, route = request.path, self._routes.get(request.path)
        place = self._locate(path) if route is None else None
        if place is not None:
            route = _Route("GET", self._models) if place[0] == "models" else _Route("POST", self._paid_call)
        if route is None:
            return self._failure(404, f"There is no {path} here; the API is under {self.dialect.prefix or '/'}.")
        if route.method not in ("*", request.method):
            return self._failure(405, f"Use {route.method} for {path}.", headers={"Allow": route.method})
        return await route.handler(request)

    async def _paid_call(self, request: BaseRequest) -> StreamResponse:
        key = self.dialect.key(request.headers)
        call = self._begin(request, key)
        try:
            return await self._served(request, call, key)
        except (asyncio.CancelledError, ConnectionError):
            call.cancelled = True
            raise
        finally:
            self.ledger.end(call)

    async def _served(self, request: BaseRequest, call: Call, key: str) -> StreamResponse:
        endpoint, deployment = self._locate(request.path) or ("chat", None)
        incoming = Incoming(
            key=key,
            endpoint=endpoint,
            deployment=deployment,
            headers=request.headers,
            forced_fault=request.headers.get(FAULT_HEADER),
        )
        body = await request.content.read()
        plan = self._provider.plan(call, body, incoming, now_s=asyncio.get_running_loop().time())
        if plan.first_s > 0:
            await asyncio.sleep(plan.first_s)
        call.status = status_sent(plan.fault)
        call.prompt_tokens, call.completion_tokens = plan.prompt_tokens, plan.completion_tokens
        return await deliver(request, plan, request_id={self.dialect.request_id: call.request_id})

    async def _redirected(self, request: BaseRequest) -> StreamResponse:
        call = self._begin(request, self.dialect.key(request.headers))
        call.status = 200
        self.ledger.end(call)
        return json_response(b'{"redirected":true}')

    def _begin(self, request: BaseRequest, key: str) -> Call:
        job_id = request.headers.get(JOB_ID_HEADER)
        call = Call(
            time=time.time(),
            path=request.path,
            request_id=next(self._request_ids),
            authorized=self._provider.lets_in(key),
            job_id=job_id[:_JOB_ID_KEPT_CHARS] if job_id else None,
        )
        self.ledger.begin(call)
        return call

    async def _models(self, request: BaseRequest) -> StreamResponse:
        if self._provider.open_to_all or self._provider.lets_in(self.dialect.key(request.headers)):
            return json_response(replies.models_body())
        return self._failure(401, "Incorrect API key provided.")

    def _failure(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> StreamResponse:
        body = self.dialect.error(status, ErrorParts(message, "invalid_request_error"))
        return json_response(body, status=status, headers=headers)

    async def _read_ledger(self, _request: BaseRequest) -> StreamResponse:
        return json_response(self.ledger.to_json())

    async def _read_stats(self, _request: BaseRequest) -> StreamResponse:
        return json_response(orjson.dumps(self.stats()))

    def strike(self, faults: Mapping[str, float], *, for_s: float | None = None) -> None:
        """From now on these shares of the calls go wrong, for `for_s` seconds; None: until the next change."""
        until_s = math.inf if for_s is None else asyncio.get_running_loop().time() + for_s
        self._provider.strike(faults, until_s=until_s)

    async def _set_faults(self, request: BaseRequest) -> StreamResponse:
        try:
            asked = orjson.loads(await request.content.read())
            for_s = asked.get("for_s")
            self.strike(
                {name: float(share) for name, share in asked["faults"].items()},
                for_s=None if for_s is None else float(for_s),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = str(error) if isinstance(error, ValueError) else "the body is not of this form"
            return self._failure(400, f'{reason}; send {{"faults": {{"503": 1.0}}, "for_s": 30}}')
        return json_response(orjson.dumps(asked))

    async def _reset(self, _request: BaseRequest) -> StreamResponse:
        self.ledger.reset()
        self._provider.restart()
        return json_response(orjson.dumps(self.stats()))


class RunningSimulator:
    """A simulated provider that listens. Stop it on the loop that started it."""

    def __init__(self, site: _Site, listener: asyncio.Server, *, host: str) -> None:
        self._site = site
        self._listener = listener
        self.host = host
        self.port: int = listener.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        """The base URL of the API, as a catalogue's `base_url` takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self._site.dialect.prefix}"

    def stats(self) -> Stats:
        """The totals, as `GET /__stats` answers them, without a request that would count as a connection."""
        return self._site.stats()

    def strike(self, faults: Mapping[str, float], *, for_s: float | None = None) -> None:
        """From now on these shares of the calls go wrong, as with `POST /__faults`, for `for_s` seconds; None: until
        the next change. Raises `ValueError` for what is no fault or no share."""
        self._site.strike(faults, for_s=for_s)

    async def stop(self) -> None:
        """Stop listening, give running calls a tenth of a second, break off the others, close all connections."""
        self._listener.close()
        self._site.server.pre_shutdown()
        await asyncio.sleep(0)
        await self._site.server.shutdown(_GRACE_S)
        await self._listener.wait_closed()


async def start(options: SimulatorOptions | None = None) -> RunningSimulator:
    """Start a simulated provider on the running loop. Raises `OSError` if the port is taken."""
    options = options or SimulatorOptions()
    site = _Site(options)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(site.accept, options.host, options.port, backlog=_BACKLOG)
    return RunningSimulator(site, listener, host=options.host)


def serve(
    options: SimulatorOptions,
    *,
    on_ready: Callable[[str], None],
    on_stop: Callable[[Stats], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; to be called on the main thread, which it blocks.

    `on_ready` gets the URL once connections are accepted, `on_stop` the totals. Raises `OSError` if the port is
    taken.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(options, on_ready, on_stop))


async def _serve(
    options: SimulatorOptions, on_ready: Callable[[str], None], on_stop: Callable[[Stats], None] | None
) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    simulator = await start(options)
    _spare_the_collector()
    on_ready(simulator.url)
    await stopped.wait()
    await simulator.stop()
    if on_stop is not None:
        on_stop(simulator.stats())


def _spare_the_collector() -> None:
    """Rarer garbage collections: they would walk the whole ledger, and a call leaves no cycles worth the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - optional: it is not made for Windows
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
