"""A provider that answers as a test says, in a thread of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Answer", "Asked", "ScriptedProvider", "completion"]


@dataclass(frozen=True)
class Asked:
    """One request: its number from 0, its body, and when it came, in seconds from the first."""

    number: int
    body: dict[str, Any]
    at: float


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


def completion(text: str = "fine", **usage: int) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    counted = usage or {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "c-1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": counted}


class ScriptedProvider:
    """Serves POSTs on loopback. `asked` grows with each; close it."""

    def __init__(self, script: Callable[[Asked], Answer]) -> None:
        self.asked: list[Asked] = []
        self._script = script
        self._lock = threading.Lock()
        self._began_at: float | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _note(self, body: dict[str, Any]) -> Asked:
        now = time.monotonic()
        with self._lock:
            self._began_at = now if self._began_at is None else self._began_at
            asked = Asked(len(self.asked), body, now - self._began_at)
            self.asked.append(asked)
        return asked

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = provider._script(provider._note(body))
                data = json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler
