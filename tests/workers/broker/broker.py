"""The broker's commands, run one by one on a real Redis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from workers.broker import scripts
from workers.broker.commands import Command, Commands, Exchanged
from workers.broker.leases import Lease, Leases

STEPS = (0, 3, 6, 9)
SEPARATOR = "\x06\x16"
LONG_S = 600.0
NO_GRACE_S = 1e9
"""A heartbeat so slow that Redis never seems to have been away."""


def list_name(queue: str, step: int) -> str:
    return f"{queue}{SEPARATOR}{step}" if step else queue


def message(job_id: str, *, priority: int = 0, queue: str = "q", body: str = "e30=", **headers: Any) -> bytes:
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "task": "t", "id": job_id, "empty": [], "big": 2**60 + 1, **headers},
            "properties": {"delivery_info": {"exchange": "", "routing_key": queue}, "priority": priority},
        }
    ).encode()


class Broker:
    """One worker's view. `lease_s` may be negative: the leases it takes have ended already."""

    def __init__(self, client: Any, *, lease_s: float = LONG_S, prefix: str = "") -> None:
        self.client = client
        self.leases = Leases()
        self.prefix = prefix
        self.commands = Commands(
            self.leases,
            prefix=prefix,
            unacked="unacked",
            index="unacked_index",
            steps=STEPS,
            separator=SEPARATOR,
            lease_s=lease_s,
        )
        for script in scripts.ALL:
            client.script_load(script.text)

    def put(self, raw: bytes, *, queue: str = "q", step: int = 0) -> None:
        self.client.lpush(self.prefix + list_name(queue, step), raw)

    def run(self, command: Command) -> Any:
        replies: list[Any] = []
        reply = self.client.execute_command(*command.args)
        command.on_reply(reply)
        replies.append(reply)
        return replies[-1]

    def exchange(self, *queues: str, room: int = 100) -> Exchanged:
        """Take, and acknowledge what is done."""
        seen: list[Exchanged] = []
        self.run(
            self.commands.exchange(
                queues, lambda queue: [list_name(queue, step) for step in STEPS], room=room, then=seen.append
            )
        )
        for tag, queue, raw in seen[0].taken:
            self.leases.held[tag] = Lease(tag, queue, raw)
        return seen[0]

    def take(self, *queues: str, room: int = 100) -> list[tuple[str, bytes]]:
        """Tags and texts."""
        return [(tag, raw) for tag, _, raw in self.exchange(*(queues or ("q",)), room=room).taken]

    def heartbeat(self, tags: Sequence[str] = (), *, heartbeat_s: float = NO_GRACE_S, seen_ms: int = 0) -> Any:
        return self.run(
            self.commands.heartbeat(tags, seen_ms=seen_ms, heartbeat_s=heartbeat_s, on_reply=lambda reply: None)
        )

    def say_news(self) -> list[Any]:
        return [self.run(command) for command in self.commands.news(now_ms=0)]

    def waiting(self, queue: str = "q", step: int = 0) -> list[bytes]:
        """The next to be taken comes first."""
        texts: list[bytes] = self.client.lrange(self.prefix + list_name(queue, step), 0, -1)
        return texts[::-1]
