"""What a worker does at SIGTERM and SIGQUIT with the jobs that run.

SIGTERM: Celery stops the consumer, then the pool, which finishes the jobs while the hub acknowledges them and renews
their leases. SIGQUIT: the jobs are cancelled, and the channel hands their messages back.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery.worker import state as worker_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kombu.asynchronous import Hub

    from .handover import Outbox

__all__ = ["clean_up", "finish", "has_begun"]

logger = logging.getLogger("promptmill.pool")

TERMINATE_TIMEOUT_S = 5.0
"""How long a cold shutdown waits for the cancelled jobs' clean-up."""


def has_begun() -> bool:
    """Whether a signal has asked for it. The hub acts on that after its next event, which may be a place set free."""
    stop, terminate = worker_state.should_stop, worker_state.should_terminate  # an exit code, of which 0 is one
    return not (stop is None or stop is False) or not (terminate is None or terminate is False)


def finish(jobs: Mapping[Any, Any], hub: Hub, outbox: Outbox) -> None:
    """Run the hub until no job is left: it acknowledges messages and renews leases."""
    while jobs:
        try:
            hub.run_once()
        except Exception as exc:  # noqa: BLE001 - of whatever kind, the transport's errors must not end the drain
            # The broker is gone. Jobs still end, and their messages come back to another worker.
            logger.warning("The broker connection failed while jobs were being finished: %r", exc)
            outbox.wait(1.0)
            outbox.empty()


def clean_up(jobs: Mapping[Any, Any], outbox: Outbox) -> None:
    """Give cancelled jobs a moment, and deliver what had ended already."""
    until = time.monotonic() + TERMINATE_TIMEOUT_S
    while jobs and time.monotonic() < until:
        outbox.wait(0.05)
        outbox.empty()
