"""A message's text as kombu puts it into Redis, and what a worker must know of it before Celery does. No I/O."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from celery.app.task import Context
from kombu.utils.json import loads as kombu_loads

if TYPE_CHECKING:
    from .leases import Grave

__all__ = ["MARKS", "READ", "Delivery", "Unreadable", "context", "dead_letter", "id_of", "read"]

HISTORY = "promptmill"
"""The field that the scripts append to a message that was given back (message.lua)."""

MEMORY = "promptmill_parked"
"""The field with what a parked job must not forget, in base64 (message.lua)."""

MARKS = "promptmill"
"""The property in which a delivered message carries what we know of it to its task (`task.request.properties`).

Not a header: Celery hands headers on to the jobs that a task starts."""

READ = "read"
"""The mark with the job itself, where the consumer has read it before its task does (workers/celery/fast_path.py)."""


class Unreadable(ValueError):
    """It is not a Celery message. The text says why, without the message's content."""


class Delivery(NamedTuple):
    """A message as kombu wants it, and its past. `due_ms` by Redis's clock; None: now."""

    payload: dict[str, Any]
    deliveries: int = 0
    suspected: bool = False
    due_ms: int | None = None
    memory: str | None = None
    """What the job must not forget that was parked."""

    @property
    def lane(self) -> str | None:
        """Where it may be kept waiting without being started. Not if it was: its call may have been paid for."""
        name = self.payload["headers"].get("lane")
        return name if isinstance(name, str) and not self.deliveries and not self.suspected else None

    def ready(self, tag: str) -> dict[str, Any]:
        """The payload, marked for its consumer."""
        headers, properties = self.payload["headers"], self.payload["properties"]
        marks: dict[str, Any] = {}
        if headers.get("eta") is not None:
            # It is due by Redis's clock; left in, Celery would ask this machine's clock again. The task may see it.
            marks["eta"], headers["eta"] = headers["eta"], None
        if self.deliveries or self.suspected:
            headers["redelivered"] = True
            properties.setdefault("delivery_info", {})["redelivered"] = True
            marks["suspected_double_payment"] = self.suspected
        if self.memory is not None:
            marks["memory"] = self.memory
        properties[MARKS] = marks
        properties["delivery_tag"] = tag
        return self.payload


def read(raw: bytes) -> Delivery:
    """Take a message's text apart. Raises Unreadable."""
    payload = _parse(raw)
    match payload.pop(HISTORY, None):
        case None:
            deliveries, suspected = 0, 0
        case {"deliveries": int(deliveries), "suspected": int(suspected)}:
            pass
        case _:
            raise Unreadable("its history is not one of ours")
    due_ms = _due_ms(payload["headers"].get("eta"))
    memory = _memory(payload.pop(MEMORY)) if MEMORY in payload else None
    return Delivery(payload, deliveries, bool(suspected), due_ms, memory)


def _memory(text: Any) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (ValueError, TypeError):
        return ""  # which no job can have written, so the pipeline suspects the worst


_ID = re.compile(rb'"headers": ?\{.*?"id": ?"([^"\\]*)"')


def id_of(raw: bytes) -> str | None:
    """The id of a message's task, without reading all of it (as `job_id` in message.lua)."""
    found = _ID.search(raw)
    return None if found is None else found[1].decode(errors="replace")


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        # Headers may carry what kombu encodes with `__type__` (dates); that needs kombu's decoder, which is slower.
        payload = kombu_loads(raw.decode()) if b'"__type__"' in raw else orjson.loads(raw)
    except Exception:  # noqa: BLE001 - kombu's hooks raise what they like; the text may quote the message
        raise Unreadable("it is not JSON") from None
    if not isinstance(payload, dict):
        raise Unreadable("it is JSON, but not an object")
    # Protocol 1 has no headers, and some producers leave out or null what is empty.
    if payload.setdefault("headers", {}) is None:
        payload["headers"] = {}
    for name in ("headers", "properties"):
        if not isinstance(payload.get(name), dict):
            raise Unreadable(f"it has no {name}")
    if not isinstance(payload["properties"].get("delivery_info", {}), dict):
        raise Unreadable("its delivery_info is not an object")
    if not isinstance(payload.get("body"), str):
        raise Unreadable("it has no body")
    return payload


def _due_ms(eta: Any) -> int | None:
    """When a message with this `eta` header is due (ms since the epoch). None: now, or for Celery to complain about."""
    if isinstance(eta, datetime):
        when = eta
    elif isinstance(eta, str):
        try:
            when = datetime.fromisoformat(eta)
        except ValueError:
            return None
    else:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return int(when.timestamp() * 1000)


def context(raw: bytes) -> Context:
    """What Celery knows of a message's task: the fields of `task.request`. Raises ValueError, KeyError, TypeError."""
    payload = orjson.loads(raw)
    headers = payload["headers"]
    try:
        body, encoding = payload["body"], payload["properties"].get("body_encoding")
        embedded = orjson.loads(base64.b64decode(body) if encoding == "base64" else body)[2]
    except (ValueError, LookupError, TypeError):
        embedded = {}
    return Context({**headers, **embedded, "id": headers["id"], "delivery_info": {}})


def dead_letter(grave: Grave, at_ms: int) -> str:
    """What is kept of a message that no worker could do. It holds the message, and so the prompt."""
    try:
        headers = orjson.loads(grave.lease.raw)["headers"]
        job_id, task = headers.get("id"), headers.get("task")
    except (ValueError, KeyError, TypeError, AttributeError):
        job_id = task = None
    letter = {
        "id": job_id or grave.lease.tag,
        "task": task,
        "queue": grave.lease.queue,
        "kind": grave.kind,
        "reason": grave.reason,
        "at": at_ms / 1000,
    }
    try:
        letter["message"] = grave.lease.raw.decode()
    except UnicodeDecodeError:
        letter["message_base64"] = base64.b64encode(grave.lease.raw).decode()
    return json.dumps(letter)
