"""Prompts behind a FastAPI app: `uvicorn --app-dir examples fastapi_app:app`, where Redis and a worker run.

Ask and wait:      curl localhost:8000/ask  -d '{"question": "What is a queue?"}' -H 'content-type: application/json'
Ask, look later:   the same to /jobs, then  curl localhost:8000/jobs/<id>
Watch it come:     the same to /jobs with "stream": true, then  curl -N localhost:8000/jobs/<id>/events
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from tasks import (  # or promptmill_client
    Job,
    JobExpired,
    JobFailed,
    PromptmillError,
    PromptQueue,
    QueueUnavailable,
    ResultTimeout,
    UnknownJob,
)

MODEL = "gpt-4o-mini"
WAIT_S = 30


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with PromptQueue.from_env() as app.state.queue:
        yield


app = FastAPI(lifespan=lifespan)


def the_queue(request: Request) -> PromptQueue:
    return request.app.state.queue


Queue = Annotated[PromptQueue, Depends(the_queue)]


class Question(BaseModel):
    question: str
    stream: bool = False

    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.question}]


@app.post("/ask")
async def ask(question: Question, queue: Queue) -> dict[str, str | None]:
    """Somebody is waiting: before all bulk work, and not longer than they will."""
    job = await queue.submit(model=MODEL, messages=question.messages(), priority="interactive", deadline_s=WAIT_S)
    answer = await job.result(timeout_s=WAIT_S)
    return {"id": job.id, "answer": answer.text}


@app.post("/jobs", status_code=202)
async def submit(question: Question, queue: Queue) -> dict[str, str]:
    job = await queue.submit(model=MODEL, messages=question.messages(), stream=question.stream)
    return {"id": job.id}


@app.get("/jobs/{job_id}")
async def look(job_id: str, queue: Queue) -> dict[str, str | None]:
    job = queue.job(job_id)
    status = await job.status()
    if status == "unknown":
        raise UnknownJob(f"no job {job_id} is known")
    answer = await job.result() if status == "succeeded" else None
    return {"id": job_id, "status": status, "answer": answer and answer.text}


@app.get("/jobs/{job_id}/events")
async def watch(job_id: str, queue: Queue, last_event_id: Annotated[int, Header()] = 0) -> StreamingResponse:
    """The answer as it comes, for `new EventSource(...)`: the browser comes back by itself to where it was."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would collect the pieces
    return StreamingResponse(events(queue.job(job_id), last_event_id), media_type="text/event-stream", headers=headers)


async def events(job: Job, after: int) -> AsyncIterator[str]:
    """`restarted`: the page is to throw away the text that it has. It closes the source after `end` or `failed`."""
    try:
        async for event in job.events(after):
            yield sse(event.kind, event.text, number=event.number)
    except PromptmillError as error:
        yield sse("failed", str(error), number=after)


def sse(kind: str, text: str, *, number: int) -> str:
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(text)}\n\n"


STATUS_CODES = {QueueUnavailable: 503, ResultTimeout: 504, UnknownJob: 404, JobExpired: 504, JobFailed: 502}


async def explain(request: Request, error: Exception) -> JSONResponse:
    status_code = next(code for kind, code in STATUS_CODES.items() if isinstance(error, kind))
    return JSONResponse({"error": str(error)}, status_code)


for kind in STATUS_CODES:
    app.add_exception_handler(kind, explain)
