"""What a worker process tells people who wait for its jobs: why nothing moves, and for how long.

Whoever knows the reason calls `notices.tell`, from any thread; the broker brings it to Redis with what it says anyway
(workers/broker/commands.py). `promptmill run` shows each text once, whichever worker has told it
(workers/commands/run/notices.py).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import orjson

__all__ = ["LEAST_S", "Notice", "NoticeEvent", "Notices", "notices"]

NoticeEvent = Literal["unreachable", "failing", "long_wait"]
"""What has happened; with its subject (a provider's name) it is the field of the hash `redis_keys.NOTICES`."""

LEAST_S: Final = 10.0
"""A notice holds for so long at least, or nobody would see one of a pause of a second."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A text of whole sentences for people, and how long it holds. It never holds a prompt or a key."""

    text: str
    lasts_s: float

    def record(self, now_ms: int) -> bytes:
        """As it stands in Redis. `now_ms` by Redis's clock."""
        return orjson.dumps({"text": self.text, "until_ms": now_ms + round(max(self.lasts_s, LEAST_S) * 1000)})


class Notices:
    """The latest of each event and subject, since they were last taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_field: dict[str, Notice] = {}

    def __bool__(self) -> bool:
        return bool(self._by_field)

    def tell(self, event: NoticeEvent, subject: str, text: str, *, lasts_s: float) -> None:
        """Have people hear of it. The latest notice of an event and a subject takes the place of the one before."""
        with self._lock:
            self._by_field[f"{event}:{subject}"] = Notice(text, lasts_s)

    def take(self) -> Mapping[str, Notice]:
        """All, by field of the hash; from now on they count as sent."""
        with self._lock:
            taken, self._by_field = self._by_field, {}
        return taken

    def put_back(self, taken: Mapping[str, Notice]) -> None:
        """Keep what was taken and not sent, unless there is a later one."""
        with self._lock:
            self._by_field = {**taken, **self._by_field}


notices = Notices()
"""This process's."""
