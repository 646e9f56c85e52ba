"""A master and two replicas, the sentinel that watches them, and the ways in which the master is replaced."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import redis

from tasks import PromptQueue
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from .harness import World

__all__ = ["KINDS", "Replicated"]

WATCHER: Final = "watcher"
"""As whom the replicas and the sentinel come, so that they can be shut out while workers and clients are let in."""

APP: Final = "app"

MIN_REPLICAS: Final = ("min-replicas-to-write 1", "min-replicas-max-lag 10", "repl-diskless-sync-delay 0")
"""Without the delay, the other replica follows a new master at once, which takes no writes before."""

PAUSE_MS: Final = 30_000
"""Longer than a failover takes."""


class Replicated:
    """`url` is for workers and clients; `replica` is the one that takes over.

    `min_replicas`: a master takes writes only while a replica follows it. That takes two of them: one follows the other
    when that has become the master.
    """

    def __init__(
        self, world: World, *options: str, min_replicas: bool = False, proxied: bool = False, binary: Path | None = None
    ) -> None:
        rights = (f"user {name} on >{name} allcommands allkeys allchannels" for name in (WATCHER, APP))
        login = (*rights, f"masteruser {WATCHER}", f"masterauth {WATCHER}")
        options = (*options, *login, *(MIN_REPLICAS if min_replicas else ()))
        self.is_replaced = False
        self.master = world.start_redis(*options, binary=binary)
        self.proxy = world.start_proxy() if proxied else None
        """Through which all reach the master, where it may be cut off from all."""
        self.port = self.proxy.port if self.proxy is not None else self.master.port
        follows = f"replicaof 127.0.0.1 {self.port}"
        self.replica, self.other = (
            world.enter(
                RedisServer(world.directory / name, *options, follows, f"replica-priority {rank}", binary=binary)
            )
            for rank, name in enumerate(("replica", "other"), start=1)
        )
        wait_until(lambda: _followers(self.master) == 2, "the replicas follow")
        self.sentinel: RedisServer = world.enter(
            RedisServer(
                world.directory / "sentinel",
                f"sentinel monitor mill 127.0.0.1 {self.port} 1",
                f"sentinel auth-user mill {WATCHER}",
                f"sentinel auth-pass mill {WATCHER}",
                "sentinel down-after-milliseconds mill 1000",
                "sentinel failover-timeout mill 3000",
                sentinel=True,
                binary=binary,
            )
        )
        with self.sentinel.client() as client:
            wait_until(lambda: client.sentinel_master("mill")["num-slaves"] == 2, "Sentinel knows the replicas")
        self.url = f"sentinel://{APP}:{APP}@127.0.0.1:{self.sentinel.port}/0?master_name=mill"
        world.queue = world.enter(PromptQueue(self.url).sync)

    def replace(self, kind: str) -> float:
        """Have the replica take over, and return when the sentinel says so (monotonic clock, s)."""
        with self.sentinel.client() as client:
            KINDS[kind](self, client)
            wait_until(lambda: _address(client) == ("127.0.0.1", self.replica.port), "the replica takes over")
        replaced_at = time.monotonic()
        self.is_replaced = True
        if kind == "paused":
            with self.master.client() as client:
                client.replicaof("127.0.0.1", self.replica.port)
                client.execute_command("CLIENT", "UNPAUSE")
        return replaced_at

    def end(self, kind: str) -> None:
        """Let a master that is not dead come back."""
        if kind == "stop":
            self.master.process.send_signal(signal.SIGCONT)
        elif kind == "cut off" and self.proxy is not None:
            self.proxy.set("none")
        elif kind == "split":
            with redis.Redis(port=self.master.port, username=APP, password=APP) as client:
                for name in (WATCHER, "default"):
                    client.execute_command("ACL", "SETUSER", name, "on")


def _kill(servers: Replicated, _: redis.Redis) -> None:
    servers.master.kill()


def _stop(servers: Replicated, _: redis.Redis) -> None:
    servers.master.process.send_signal(signal.SIGSTOP)


def _plan(_: Replicated, sentinel: redis.Redis) -> None:
    def begins() -> bool:
        try:
            return bool(sentinel.execute_command("SENTINEL", "FAILOVER", "mill"))
        except redis.ResponseError as error:
            assert "NOGOODSLAVE" in str(error), error  # it has not looked at the replica yet
            return False

    wait_until(begins, "the failover begins")


def _pause(servers: Replicated, sentinel: redis.Redis) -> None:
    with servers.master.client() as master, servers.replica.client() as replica:
        master.execute_command("CLIENT", "PAUSE", PAUSE_MS, "WRITE")
        written = master.info("replication")["master_repl_offset"]
        wait_until(lambda: replica.info("replication")["slave_repl_offset"] >= written, "the replica has everything")
    _plan(servers, sentinel)


def _cut_off(servers: Replicated, _: redis.Redis) -> None:
    assert servers.proxy is not None
    servers.proxy.set("black_hole")


def _split(servers: Replicated, _: redis.Redis) -> None:
    with redis.Redis(port=servers.master.port, username=APP, password=APP) as client:
        for name in (WATCHER, "default"):  # whoever fails to log in is the default user
            client.execute_command("ACL", "SETUSER", name, "off")
            client.execute_command("CLIENT", "KILL", "USER", name)


KINDS: Final[dict[str, Callable[[Replicated, redis.Redis], None]]] = {
    "kill": _kill,
    "stop": _stop,
    "planned": _plan,
    "paused": _pause,
    "cut off": _cut_off,
    "split": _split,
}
"""What may happen to a master: it dies, freezes, is replaced as before a maintenance, without and with its writes
paused before, can be reached by nobody, or by all but the replicas and the sentinel. All but the first leave it in the
belief that it is the master."""


def _address(sentinel: redis.Redis) -> tuple[str, int] | None:
    found: tuple[str, int] | None = sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "mill")
    return found


def _followers(master: RedisServer) -> int:
    with master.client() as client:
        found = client.info("replication")
    return sum(found.get(name, {}).get("state") == "online" for name in ("slave0", "slave1"))
