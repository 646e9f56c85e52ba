"""Many answers of megabytes at once: memory stays bounded, small jobs go on beside them, nothing is paid for twice."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from tests.support.waiting import wait_until

from .harness import MESSAGES, World

JOBS = 40
TEXT = "An answer of many words. " * 320_000
"""8 MB."""


class Provider:
    """Answers of 8 MB for the model `large`, of a word for others."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        calls, bodies = self.calls, {"large": _body(TEXT), "small": _body("hi")}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                calls[self.headers["x-promptmill-job-id"]] += 1
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(bodies[asked["model"]])))
                self.end_headers()
                self.wfile.write(bodies[asked["model"]])

            def log_message(self, *_: object) -> None:
                """Nothing: pytest shows what fails."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _body(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}).encode()


@pytest.mark.promise(44)
def test_take_a_bounded_part_of_memory_and_of_time(world: World) -> None:
    provider: Provider = world.enter(Provider())
    catalog = world.directory / "large.toml"
    catalog.write_text(
        f'[providers.p]\nbase_url = "{provider.url}"\napi_keys = ["FAULTS_API_KEY"]\n'
        '[models.large]\nprovider = "p"\n[models.small]\nprovider = "p"\n'
    )
    world.start_redis()
    limit = {"PROMPTMILL_CATALOG": str(catalog), "PROMPTMILL_HTTP__MAX_UNSTORED_BYTES": str(16 * 2**20)}
    worker = psutil.Process(world.start_worker(concurrency=JOBS + 10, environ=limit, lease_s=6.0).pid)
    before, peak, waits_s = worker.memory_info().rss, 0, []
    jobs = world.submit(JOBS, model="large")

    def ended() -> bool:
        nonlocal peak
        began_at = time.monotonic()
        assert world.queue.submit(model="small", messages=MESSAGES, priority="interactive").result(60).text == "hi"
        waits_s.append(time.monotonic() - began_at)
        peak = max(peak, worker.memory_info().rss)
        return bool(world.redis.exists(*(f"celery-task-meta-{job.id}" for job in jobs)) == JOBS)

    wait_until(ended, "all large answers are stored", timeout_s=150)
    assert peak - before < 350 * 2**20  # unbounded: 1 GB
    assert sorted(waits_s)[len(waits_s) // 2] < 1.0
    assert [provider.calls[job.id] for job in jobs] == [1] * JOBS
    assert jobs[0].result(30).text == TEXT
