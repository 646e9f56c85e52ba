"""Prompts in Django, the whole project in one file: `python examples/django_view.py runserver`.

Ask and wait:      curl localhost:8000/ask  -d question='What is a queue?'
Ask, look later:   curl localhost:8000/jobs -d question='What is a queue?', then  curl localhost:8000/jobs/<id>
Watch it come:     the same with -d stream=1, then  curl -N localhost:8000/jobs/<id>/events

`queue.sync` is safe in threaded and in forking servers (gunicorn): each process opens connections of its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from django.conf import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `tasks`; not needed with promptmill_client
from tasks import (
    InvalidJob,
    JobExpired,
    JobFailed,
    PromptmillError,
    PromptQueue,
    QueueUnavailable,
    ResultTimeout,
    UnknownJob,
)

if not settings.configured:
    settings.configure(
        DEBUG=True,
        SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "only-for-this-example"),
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[f"{__name__}.ErrorMiddleware"],
    )

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST

MODEL = "gpt-4o-mini"
WAIT_S = 30

queue = PromptQueue.from_env().sync


@require_POST
def ask(request: HttpRequest) -> HttpResponse:
    job = queue.submit(model=MODEL, messages=messages(request), priority="interactive", deadline_s=WAIT_S)
    return JsonResponse({"id": job.id, "answer": job.result(timeout_s=WAIT_S).text})


@require_POST
def submit(request: HttpRequest) -> HttpResponse:
    job = queue.submit(model=MODEL, messages=messages(request), stream="stream" in request.POST)
    return JsonResponse({"id": job.id}, status=202)


@require_GET
def look(request: HttpRequest, job_id: str) -> HttpResponse:
    job = queue.job(job_id)
    status = job.status()
    if status == "unknown":
        raise UnknownJob(f"no job {job_id} is known")
    return JsonResponse(
        {"id": job_id, "status": status, "answer": job.result().text if status == "succeeded" else None}
    )


@require_GET
def watch(request: HttpRequest, job_id: str) -> HttpResponseBase:
    """The answer as it comes, for `new EventSource(...)`: the browser comes back by itself to where it was."""
    after = int(request.headers.get("Last-Event-ID", 0))
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would collect the pieces
    return StreamingHttpResponse(events(job_id, after), content_type="text/event-stream", headers=headers)


def events(job_id: str, after: int) -> Iterator[str]:
    """`restarted`: the page is to throw away the text that it has. It closes the source after `end` or `failed`."""
    try:
        for event in queue.job(job_id).events(after):
            yield sse(event.kind, event.text, number=event.number)
    except PromptmillError as error:
        yield sse("failed", str(error), number=after)


def sse(kind: str, text: str, *, number: int) -> str:
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(text)}\n\n"


def messages(request: HttpRequest) -> list[dict[str, str]]:
    return [{"role": "user", "content": request.POST["question"]}]


STATUS_CODES = {
    InvalidJob: 400,
    QueueUnavailable: 503,
    ResultTimeout: 504,
    UnknownJob: 404,
    JobExpired: 504,
    JobFailed: 502,
}


class ErrorMiddleware:
    """Says what went wrong in one place, for all views."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        for kind, status in STATUS_CODES.items():
            if isinstance(error, kind):
                return JsonResponse({"error": str(error)}, status=status)
        return None


urlpatterns = [
    path("ask", ask),
    path("jobs", submit),
    path("jobs/<str:job_id>", look),
    path("jobs/<str:job_id>/events", watch),
]

if __name__ == "__main__":
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
