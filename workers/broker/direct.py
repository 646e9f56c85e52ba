"""Saying one command to Redis at once, and waiting for the reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import NoScriptError, RedisError

from . import scripts
from .link import server_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .commands import Command

__all__ = ["Direct"]


class Direct:
    """On a connection of the pool. Not on kombu's `client`: there a BRPOP for a reply queue may be waiting."""

    def __init__(self, pool: Callable[[], Any]) -> None:
        self._pool = pool

    def run(self, command: Command) -> None:
        """Say a command, and have it take its reply. Raises redis's errors."""
        client: Any = Redis(connection_pool=self._pool())
        try:
            try:
                reply = client.execute_command(*command.args)
            except NoScriptError:
                self.load_scripts()
                reply = client.execute_command(*command.args)
        except (RedisError, OSError) as exc:
            command.on_reply(exc)
            raise
        command.on_reply(reply)

    def load_scripts(self) -> None:
        """Put the broker's scripts into Redis."""
        client: Any = Redis(connection_pool=self._pool())
        for script in scripts.ALL:
            client.execute_command("SCRIPT", "LOAD", script.text)

    def server(self) -> str | None:
        """Which server that is (`link.server_of`)."""
        pool = self._pool()
        connection = pool.get_connection()
        try:
            return server_of(connection)
        finally:
            pool.release(connection)
