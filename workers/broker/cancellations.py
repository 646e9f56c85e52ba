"""What this process knows of cancelled jobs, and how it ends those that nobody runs."""

from __future__ import annotations

import logging
import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from celery.worker import state as worker_state

from tasks.redis.clock import steady_s

from ..results.endings import endings
from .messages import id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .commands import Exchanged

__all__ = ["Cancellations", "cancellations"]

logger = logging.getLogger("promptmill.broker")

ENDED_AT_ONCE = 500
"""Jobs whose ends are recorded, and then announced, together."""


class Cancellations:
    """Jobs that Redis has a mark of, and the ends that are to be recorded, in a thread of their own."""

    def __init__(self) -> None:
        self._marked: dict[str, float] = {}
        """Celery's revoked jobs that Redis was told of, with the time (`steady_s`) since when it is known to have, or
        to have had, a mark of each. For the hub's thread only."""
        self._lock = threading.Lock()
        self._ending: dict[tuple[int, bool], tuple[Any, set[str]]] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="promptmill-cancel")
        self._running = 0
        self.announce: Callable[[list[tuple[str, str]]], None] | None = None
        """Called on the hub's thread with id and task of jobs whose ends this worker has recorded."""

    def hear(self, job_ids: Iterable[str]) -> None:
        """Redis names these jobs as cancelled."""
        worker_state.revoked.update(job_ids)
        self.are_marked(job_ids)

    def hear_taken(self, exchanged: Exchanged) -> None:
        """Of the jobs just taken Redis's word counts: an id that was cancelled may have been submitted again."""
        self.hear(exchanged.cancelled)
        if not worker_state.revoked:
            return
        named = set(exchanged.cancelled)
        for _, _, raw in exchanged.taken:
            job_id = id_of(raw)
            if job_id is not None and job_id not in named:
                self.not_named(job_id, asked_at=exchanged.asked_at)

    def are_marked(self, job_ids: Iterable[str]) -> None:
        """Redis has a mark of each of these."""
        self._marked.update(dict.fromkeys(job_ids, steady_s()))

    def not_named(self, job_id: str, *, asked_at: float) -> None:
        """Redis was asked at `asked_at` whether the job is cancelled, and did not say so: it was submitted again."""
        if self._marked.get(job_id, math.inf) < asked_at:
            del self._marked[job_id]
            worker_state.revoked.discard(job_id)

    def new(self) -> set[str]:
        """Jobs that remote control revoked, of which Redis is to be told."""
        if len(worker_state.revoked) == len(self._marked):
            return set()
        revoked = set(worker_state.revoked)
        news = revoked - self._marked.keys()
        self._marked = {job_id: at for job_id, at in self._marked.items() if job_id in revoked}
        self._marked.update(dict.fromkeys(news, math.inf))
        return news

    def not_told(self, job_ids: Iterable[str]) -> None:
        """Redis did not take these."""
        for job_id in job_ids:
            self._marked.pop(job_id, None)

    @property
    def is_ending(self) -> bool:
        """Whether ends are still to be recorded."""
        return self._running > 0

    def end(self, backend: Any, job_ids: Iterable[str], *, known_only: bool) -> None:
        """Record the ends of those that nobody runs: now, not when a worker comes to their messages.

        `known_only`: leave those without a record alone.
        """
        with self._lock:
            _, waiting = self._ending.setdefault((id(backend), known_only), (backend, set()))
            waiting.update(job_ids)
            self._running += 1
        self._threads.submit(self._end)

    def _end(self) -> None:
        with self._lock:
            ending, self._ending = self._ending, {}
        try:
            for (_, known_only), (backend, job_ids) in ending.items():
                # All workers hear of the same jobs at the same time; in different orders they share the work.
                in_any_order = random.sample(list(job_ids), len(job_ids))
                for start in range(0, len(in_any_order), ENDED_AT_ONCE):
                    self._record(backend, in_any_order[start : start + ENDED_AT_ONCE], known_only=known_only)
        finally:
            with self._lock:
                self._running -= 1

    def _record(self, backend: Any, job_ids: list[str], *, known_only: bool) -> None:
        try:
            ended = backend.revoke(job_ids, known_only=known_only)
        except Exception:
            logger.exception("The ends of %d cancelled jobs could not be recorded yet", len(job_ids))
        else:
            if self.announce is not None and ended:
                endings.tell(partial(self.announce, ended))


cancellations: Final = Cancellations()
"""This process's."""
