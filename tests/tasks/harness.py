"""A real Redis, and a small worker that answers as the engine would, for the tests of the client."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio

from tasks.errors import JobFailed
from tasks.redis.cancellation import stop
from tasks.results import JobError, PromptResult
from tasks.wire import redis_keys
from tests.support.waiting import PATIENCE_S

LISTS = ["prompts", "prompts\x06\x163", "prompts\x06\x169"]

Answer = Callable[[dict[str, Any]], Any]


class FakeWorker:
    """Takes messages and stores results as Celery's Redis backend and the engine do, in a thread of its own."""

    def __init__(self, url: str, answer: Answer) -> None:
        self._url = url
        self._answer = answer
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._ready = threading.Event()
        self.faults: list[BaseException] = []

    def __enter__(self) -> FakeWorker:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        assert not self.faults, self.faults

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._jobs: set[asyncio.Task[None]] = set()
        async with redis.asyncio.Redis.from_url(self._url, decode_responses=True) as self._redis:
            taking = asyncio.create_task(self._take())
            self._ready.set()
            await self._stop.wait()
            await stop(taking)
            await stop(*self._jobs)  # the last to be taken too: it would make a connection when all are closed

    async def _take(self) -> None:
        while not self._stop.is_set():
            taken = await self._redis.brpop(LISTS, timeout=0.05)
            if taken is not None:
                task = asyncio.create_task(self._run(json.loads(taken[1])))
                self._jobs.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None and not self._stop.is_set():
            self.faults.append(fault)

    async def _run(self, message: dict[str, Any]) -> None:
        headers = message["headers"]
        job_id, record = headers["id"], redis_keys.job(headers["id"])
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(record, "state", "running")
            pipe.hexists(record, "cancel")
            _, cancelled = await pipe.execute()
        [text], _, _ = json.loads(message["body"])
        answering = asyncio.ensure_future(self._result(job_id, json.loads(text)))
        await asyncio.sleep(0)  # what need not wait has been answered
        while not answering.done() and not cancelled:
            await asyncio.wait([answering], timeout=0.01)
            cancelled = await self._redis.hexists(record, "cancel")
        if cancelled:
            answering.cancel()
            await asyncio.wait([answering])
        await self.store(job_id, headers["group"], None if cancelled else answering.result())

    async def _result(self, job_id: str, text: dict[str, Any]) -> PromptResult:
        options = {"model": text["body"]["model"], "metadata": text["promptmill"].get("metadata"), "attempts": 1}
        try:
            answer = self._answer(text["body"])
            answer = await answer if inspect.isawaitable(answer) else answer
        except Exception as error:  # noqa: BLE001 - what the test raises is how the job fails
            answer = error
        if isinstance(answer, Exception):
            code = answer.code if isinstance(answer, JobFailed) else "internal"
            return PromptResult(job_id, "failed", error=JobError(code=code, message=str(answer)), **options)
        response = answer if isinstance(answer, dict) else {"choices": [{"message": {"content": answer}}]}
        shown = answer if isinstance(answer, str) else None
        return PromptResult(job_id, "succeeded", text=shown, response=response, **options)

    async def store(self, job_id: str, group: str | None, result: PromptResult | None) -> None:
        record = celery_record(job_id, result)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(redis_keys.result(job_id), record, ex=3600)
            pipe.publish(redis_keys.result(job_id), record)
            if group is not None:
                pipe.hincrby(redis_keys.group(group), "cancelled" if result is None else result.status, 1)
                pipe.xadd(redis_keys.group_done(group), {"id": job_id})
                pipe.expire(redis_keys.group(group), redis_keys.RECORD_TTL_S)
                pipe.expire(redis_keys.group_done(group), redis_keys.RECORD_TTL_S)
            await pipe.execute()


def celery_record(job_id: str, result: PromptResult | None) -> str:
    """What Celery's backend stores, `status` first; None is a revoked job."""
    stored: dict[str, Any]
    if result is None:
        state, stored = "REVOKED", {"exc_type": "TaskRevokedError", "exc_message": ["terminated"]}
    elif result.ok:
        state, stored = "SUCCESS", result.to_dict()
    else:
        error = JobFailed.of(result)
        state, stored = "FAILURE", {"exc_type": type(error).__name__, "exc_message": [str(error)]}
        stored |= {"exc_module": "tasks.errors", "promptmill": result.to_dict()}
    return json.dumps({"status": state, "result": stored, "traceback": None, "children": [], "task_id": job_id})


class Gate:
    """Holds answers back until it is opened, on whatever loop they are being made."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        while not self._open.is_set():
            await asyncio.sleep(0.005)

    def holding(self, answer: str) -> Callable[[dict[str, Any]], Awaitable[str]]:
        async def held(body: dict[str, Any]) -> str:
            await self.passed()
            return answer

        return held
