"""The two connections on which a channel takes messages: one for commands, one on which Redis says that there is news.

Commands go out in batches, one batch at a time; the poller says when the replies are there. A connection that breaks
leaves commands without a reply: each is told so, and keeps what it carried for the next connection.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from ..redis.packer import PACKER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .commands import Command, Reply

__all__ = ["Line", "Link", "server_of"]

logger = logging.getLogger("promptmill.broker")

INVALIDATIONS = "__redis__:invalidate"


class Line:
    """A connection of ours in kombu's poller, which knows connections by the clients that hold them."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    @property
    def is_open(self) -> bool:
        """Whether it has a socket."""
        return self.connection is not None and self.connection._sock is not None

    def close(self) -> None:
        """Close the socket. The poller finds the line by its connection, so that goes last."""
        if self.connection is not None:
            self.connection.disconnect()
            self.connection = None


class Link:
    """`load_scripts` puts the scripts into Redis, at the start and when Redis has lost them."""

    def __init__(self, *, load_scripts: Callable[[], None]) -> None:
        self.commands: Line | None = None
        self.wake: Line | None = None
        self.server: str | None = None
        """Which server this is, and since which take-over; None: it does not say."""
        self._load_scripts = load_scripts
        self._expected: deque[Command] = deque()
        self._sent_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self.commands is not None and self.commands.is_open

    @property
    def is_waiting(self) -> bool:
        """Whether a batch is on its way."""
        return bool(self._expected)

    def open(self, pool: Any, *, ask_for_news: bool) -> None:
        """Connect, and ask Redis to say when a list that we have read is written to. Raises redis's errors.

        `wake` stays None where this Redis can't.
        """
        self.close()
        try:
            self.commands = Line(_connected(pool))
            self.server = server_of(self.commands.connection)
            self._load_scripts()
            self.wake = self._ask_for_news(pool) if ask_for_news else None
        except (RedisError, OSError):
            self.close()
            raise

    def _ask_for_news(self, pool: Any) -> Line | None:
        assert self.commands is not None
        # In RESP2 an invalidation is a message like any other; in RESP3 redis-py handles it out of our sight.
        wake = _connected(pool, protocol=2)
        try:
            client_id = _ask(wake, "CLIENT", "ID")
            _ask(wake, "SUBSCRIBE", INVALIDATIONS)
            _ask(self.commands.connection, "CLIENT", "TRACKING", "ON", "REDIRECT", client_id, "NOLOOP")
        except ResponseError as exc:
            logger.warning("Redis can't tell us of new messages (%s); looking for them instead", exc)
            wake.disconnect()
            return None
        return Line(wake)

    def send(self, batch: Sequence[Command]) -> None:
        """Send a batch. Raises redis's errors; nothing is lost by them."""
        assert self.commands is not None
        self._expected.extend(batch)
        self._sent_at = time.monotonic()
        connection = self.commands.connection
        with self._closed_on_error():
            connection.send_packed_command(connection.pack_commands([command.args for command in batch]))

    def read_replies(self) -> bool:
        """Read the replies to the batch on its way; whether all were carried out. Raises redis's connection errors."""
        assert self.commands is not None
        connection, all_done = self.commands.connection, True
        with self._closed_on_error():
            if not self._expected:
                connection.can_read(timeout=0)  # raises: nothing but the connection's end can be there to read
            while self._expected:
                try:
                    reply = connection.read_response()
                except ResponseError as exc:
                    reply = exc
                all_done = self._hand_over(self._expected.popleft(), reply) and all_done
        return all_done

    def _hand_over(self, command: Command, reply: Reply) -> bool:
        try:
            command.on_reply(reply)
        except NoScriptError:
            # SCRIPT FLUSH, or a replica took over. What the command carried is said again.
            self._load_scripts()
            return False
        except ResponseError as exc:
            logger.error("Redis refused a command of the broker: %s", exc)  # noqa: TRY400 - the text says it all
            return False
        return True

    def read_news(self) -> None:
        """Read what Redis had to say. Raises redis's connection errors."""
        assert self.wake is not None
        connection = self.wake.connection
        with self._closed_on_error():
            connection.read_response()
            while connection.can_read(timeout=0):
                connection.read_response()

    def is_overdue(self, timeout_s: float) -> bool:
        """Whether Redis has not answered for so long: then the link is half-open."""
        return self.is_waiting and time.monotonic() - self._sent_at > timeout_s

    def forsake(self) -> None:
        """Tell the commands on their way that there will be no reply."""
        lost = RedisConnectionError("the connection was lost before Redis replied")
        while self._expected:
            # From the end, so that what they carried is in its old order at the front of the next batch.
            with suppress(RedisError):
                self._expected.pop().on_reply(lost)

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError):
            # While a stopping worker finishes its last jobs, nobody makes a new channel: the next batch connects.
            self.close()
            raise

    def close(self) -> None:
        """Close both connections."""
        self.forsake()
        for line in (self.commands, self.wake):
            if line is not None:
                line.close()
        self.commands = self.wake = None


def _connected(pool: Any, **options: Any) -> Any:
    # Not one of the pool's: that would keep a place for it when it is closed.
    connection = pool.connection_class(**{**pool.connection_kwargs, "command_packer": PACKER, **options})
    connection.connect()
    return connection


def server_of(connection: Any) -> str | None:
    """What tells a server from one that has replaced it, or that came back with what it had saved."""
    try:
        told = b"".join(_ask(connection, "INFO", section) for section in ("server", "replication"))
    except ResponseError:
        return None  # a user who may not ask
    lines = dict(line.partition(b":")[::2] for line in told.splitlines())
    server, takeover = lines.get(b"run_id"), lines.get(b"master_replid")
    return f"{server.decode()} {takeover.decode()}" if server and takeover else None


def _ask(connection: Any, *command: Any) -> Any:
    connection.send_command(*command)
    return connection.read_response()
