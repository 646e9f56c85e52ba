"""Records the ends of jobs that do not run (cancelled or expired), on a thread.

Celery stores such an end on the hub's thread, in the middle of the delivery of a batch. There, a Redis that does not
take it would hold up the messages behind it, the heartbeat and the running jobs' acknowledgements.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from functools import cached_property
from queue import SimpleQueue
from typing import TYPE_CHECKING

from ..pool.handover import Bell

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu.asynchronous import Hub

__all__ = ["Endings", "endings"]

logger = logging.getLogger("promptmill.broker")


class Endings:
    """Calls `store` on its thread, then `then` on the hub's, with the exception if there was one."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Callable[[], object], Callable[[Exception | None], None]]] = SimpleQueue()
        self._done: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._hub: Hub | None = None

    @cached_property
    def bell(self) -> Bell:
        """What wakes the hub. Made when it is first needed, which is in workers only."""
        return Bell()

    @property
    def is_attended(self) -> bool:
        """Whether a hub hears of what is done."""
        return self._hub is not None

    def attend(self, hub: Hub) -> None:
        """Have this hub hear of what is done. A reconnect resets the hub, so it is asked again."""
        self._hub = hub
        hub.add_reader(self.bell.reader, self.deliver)

    def put(self, store: Callable[[], object], then: Callable[[Exception | None], None]) -> None:
        """Store an end as soon as those before it are stored."""
        if self._thread is None:
            # A daemon: a Redis that does not answer must not keep the process from ending.
            self._thread = threading.Thread(target=self._run, name="promptmill-endings", daemon=True)
            self._thread.start()
        self._waiting.put((store, then))

    def tell(self, report: Callable[[], None]) -> None:
        """Have the hub's thread call `report` soon."""
        self._done.append(report)
        self.bell.ring()

    def deliver(self) -> None:
        """Report what is done, on the hub's thread."""
        self.bell.silence()
        while self._done:
            report = self._done.popleft()
            try:
                report()
            except Exception:
                logger.exception("The end of jobs that did not run could not be reported")

    def _run(self) -> None:
        while True:
            self._store(*self._waiting.get())
            self.bell.ring()

    def _store(self, store: Callable[[], object], then: Callable[[Exception | None], None]) -> None:
        try:
            store()
        except Exception as exc:  # noqa: BLE001 - whatever it is, `then` decides what becomes of the message
            problem = exc
            self._done.append(lambda: then(problem))
        else:
            self._done.append(lambda: then(None))


endings = Endings()
"""This process's."""
