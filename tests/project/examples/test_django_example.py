"""Django's settings belong to a process: the test client and the example run in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tasks
from tests.support.redis_server import RedisServer

EXAMPLE = Path(tasks.__file__).parent.parent / "examples" / "django_view.py"

VISIT = """
import time
import django_view
import django
django.setup()
from django.test import Client

http = Client()
print(http.post("/ask", {"question": "why?"}).json()["answer"])
job_id = http.post("/jobs", {"question": "later?"}).json()["id"]
while (seen := http.get(f"/jobs/{job_id}").json())["status"] != "succeeded":
    time.sleep(0.005)
print(seen["answer"])
watched = b"".join(http.get(f"/jobs/{job_id}/events")).decode()
print(watched.count("event: "), 'event: text\\ndata: "An answer to: later?"' in watched, "event: end" in watched)
print(b"event: failed" in b"".join(http.get("/jobs/nobody-knows/events")))
failed, unknown = http.post("/ask", {"question": "fail"}), http.get("/jobs/nobody-knows")
print(failed.status_code, failed.json()["error"], unknown.status_code)
django_view.queue.close()
"""

UNREACHABLE = """
import django_view
import django
django.setup()
from django.test import Client

refused = Client().post("/jobs", {"question": "why?"})
print(refused.status_code, "can't be reached" in refused.json()["error"])
django_view.queue.close()
"""


def python(*arguments: str, redis_url: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTMILL_", "DJANGO_"))}
    ended = subprocess.run(
        [sys.executable, *arguments],
        env=env | {"PROMPTMILL_REDIS_URL": redis_url, "PYTHONPATH": str(EXAMPLE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.usefixtures("worker")
def test_the_views(redis_server: RedisServer) -> None:
    assert python("-c", VISIT, redis_url=redis_server.url).splitlines() == [
        "An answer to: why?",
        "An answer to: later?",
        "3 True True",
        "True",
        "502 rate_limited: too many requests 404",
    ]


def test_an_unreachable_queue_is_503() -> None:
    assert python("-c", UNREACHABLE, redis_url="redis://127.0.0.1:1/0").strip() == "503 True"


def test_the_file_is_a_whole_project(redis_server: RedisServer) -> None:
    assert "no issues" in python(str(EXAMPLE), "check", redis_url=redis_server.url)
