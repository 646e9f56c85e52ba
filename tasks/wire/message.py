"""The messages that we put into Redis, as Celery 5.7 and kombu 5.7 put them there. No I/O here.

A job is a Celery protocol-2 message (celery/app/amqp.py, `as_task_v2`) in kombu's Redis envelope
(kombu/transport/virtual/base.py, `basic_publish`). Rendering that from scratch costs Celery some 800 us a job; here
the envelope is rendered once for each process and the fields that vary are filled in.
"""

from __future__ import annotations

import json
import os
import socket
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Final
from uuid import uuid4

from .kinds import TASK_NAMES
from .redis_keys import QUEUE, queue_list
from .request import NewJob
from .vocabulary import Priority

__all__ = [
    "CELERY_PRIORITY",
    "Envelope",
    "ping_message",
    "queue_keys",
    "revoke_channel",
    "revoke_message",
]

CELERY_PRIORITY: Final[dict[Priority, int]] = {"interactive": 0, "normal": 3, "bulk": 9}
"""Of `PRIORITY_STEPS`."""

_BODY_END: Final = '], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


def queue_keys(key_prefix: str) -> list[str]:
    """The Redis lists of the queue, in the order of `CELERY_PRIORITY`."""
    return [key_prefix + queue_list(QUEUE, priority) for priority in CELERY_PRIORITY.values()]


class Envelope:
    """Renders jobs as messages. Make it anew after a fork: it carries the process's id."""

    def __init__(self) -> None:
        template = _template(origin=f"gen{os.getpid()}@{socket.gethostname()}", reply_to=str(uuid4()))
        self._parts = {
            (kind, priority): template.replace('"<task>"', json.dumps(TASK_NAMES[kind]))
            .replace('"<priority>"', str(CELERY_PRIORITY[priority]))
            .replace('"<body>"', "%(body)s")
            .replace('"<id>"', "%(id)s")
            .replace('"<eta>"', "%(eta)s")
            .replace('"<group>"', "%(group)s")
            .replace('"<lane>"', "%(lane)s")
            .replace('"<tag>"', '"%(tag)s"')
            for kind in TASK_NAMES
            for priority in CELERY_PRIORITY
        }

    def render(self, job: NewJob, *, group: str | None, now_s: float) -> str:
        """The message of `job`, submitted at `now_s` of Redis's clock."""
        # Text, not base64 as kombu's own: workers read it in a third of the time, in others than ASCII half as long.
        body = f"[[{encode_basestring(job.text(submitted_at=now_s))}{_BODY_END}"
        return self._parts[job.kind, job.priority] % {
            "body": encode_basestring(body),
            "id": encode_basestring_ascii(job.id),
            "eta": f'"{_iso(now_s + job.delay_s)}"' if job.delay_s else "null",
            "group": "null" if group is None else encode_basestring_ascii(group),
            "lane": "null" if job.lane is None else encode_basestring_ascii(job.lane),
            # kombu files a delivered message under this: never the same twice, nor in two processes.
            "tag": os.urandom(16).hex(),
        }


def _template(*, origin: str, reply_to: str) -> str:
    hidden = {"argsrepr": "(prompt hidden)", "kwargsrepr": "{}"}  # shown by Flower, events and logs
    headers: dict[str, object] = {
        "lang": "py",
        "task": "<task>",
        "id": "<id>",
        "shadow": None,
        "eta": "<eta>",
        "expires": None,
        "group": "<group>",
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": "<id>",
        "parent_id": None,
        **hidden,
        "origin": origin,
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        "lane": "<lane>",  # ours: workers/broker/lanes.py
    }
    properties: dict[str, object] = {
        "correlation_id": "<id>",
        "reply_to": reply_to,
        **hidden,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
        "priority": "<priority>",
        "body_encoding": None,
        "delivery_tag": "<tag>",
    }
    # A host name may hold a percent sign for all we know; the places to fill in are named after this.
    return _envelope("<body>", headers, properties).replace("%", "%%")


def _envelope(body: str, headers: dict[str, object], properties: dict[str, object]) -> str:
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": properties,
        }
    )


def revoke_message(job_ids: Sequence[str]) -> str:
    """What `app.control.revoke(job_ids, terminate=True)` broadcasts (kombu/pidbox.py, `Mailbox._publish`)."""
    # `marked`: Redis has a mark for each. Celery's own workers ignore it.
    arguments = {"task_id": list(job_ids), "terminate": True, "signal": "SIGTERM", "marked": True}
    return _control_message("revoke", arguments)


def ping_message() -> str:
    """What `app.control.ping()` broadcasts, without asking for a reply."""
    return _control_message("ping", {})


def _control_message(method: str, arguments: dict[str, object]) -> str:
    command = {
        "method": method,
        "arguments": arguments,
        "destination": None,
        "pattern": None,
        "matcher": None,
    }
    properties: dict[str, object] = {
        "delivery_mode": 2,
        "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid4()),
    }
    body = b64encode(json.dumps(command).encode()).decode()
    # `expires` 0 is "never": a worker whose clock is ahead must obey too.
    headers: dict[str, object] = {"clock": 0, "expires": 0}
    return _envelope(body, headers, properties)


def revoke_channel(key_prefix: str, database: int) -> str:
    """Where all workers listen for it (kombu/transport/redis.py, `_get_publish_topic`)."""
    return f"{key_prefix}/{database}.celery.pidbox"


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()
