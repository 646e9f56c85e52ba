"""`promptmill dead`: the messages that no worker could do, and what to do with them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from redis.exceptions import RedisError

from tasks.wire import redis_keys
from tasks.wire.record import read_outcome

from ..broker import scripts
from ..telemetry.terminal import printable, printable_json
from .common import JsonOption, RedisOption, address_of, fail_for_redis, settings_or_fail
from .failing import fail

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["DeadLetters", "dead"]

PAGE = 500
TIMEOUT_S = 10.0

_HIDDEN = {"message", "message_base64"}

dead = typer.Typer(help="Messages that no worker could do: list, show, retry, purge.", no_args_is_help=True)


class DeadLetters:
    """The dead letters of one queue. `results`: the Redis that holds the jobs' results."""

    def __init__(self, redis: Redis, results: Redis, *, prefix: str = "") -> None:
        self._redis: Any = redis
        self._results: Any = results
        self._prefix = prefix
        self._key = prefix + redis_keys.DEAD
        self._retry = self._redis.register_script(scripts.RETRY_DEAD.text)

    def __iter__(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each letter's text, and what it says; newest first."""
        start = 0
        while page := self._redis.lrange(self._key, start, start + PAGE - 1):
            for text in page:
                yield text, orjson.loads(text)
            start += len(page)

    def find(self, letter_id: str) -> list[tuple[bytes, dict[str, Any]]]:
        """The letters of this job; more than one if it was buried again after a retry."""
        return [(text, letter) for text, letter in self if letter["id"] == letter_id]

    def retry(self, text: bytes, letter: dict[str, Any]) -> bool:
        """Give the job a new life: its message goes back to its queue without its past, its failure is deleted.

        False: somebody else has retried or purged the letter. Raises ValueError for what is not a Celery message.
        """
        if letter["kind"] == "garbage":
            raise ValueError(f"{letter['id']} is not a Celery message: no worker can ever do it. Purge it.")
        self._forget_failure(letter)
        queue = self._prefix + letter["queue"]
        lists = {"steps": redis_keys.PRIORITY_STEPS, "separator": redis_keys.PRIORITY_SEPARATOR}
        ask = json.dumps({"lists": lists, "records": self._prefix + redis_keys.job("")})
        return bool(self._retry(keys=[self._key, queue], args=[ask, text, message_of(letter)]))

    def purge(self, text: bytes) -> None:
        """Throw a letter away. Its job's failure stays."""
        self._redis.lrem(self._key, 1, text)

    def _forget_failure(self, letter: dict[str, Any]) -> None:
        # Deleted before the message is there again: a worker may be quicker than we are.
        job_id = letter["id"]
        result = read_outcome(job_id, self._results.get(redis_keys.result(job_id)))
        if result is None or result.error is None or result.error.code != "dead_letter":
            return
        self._results.delete(redis_keys.result(job_id))
        if (group_id := _group_of(letter)) is not None:
            self._take_out_of_group(group_id, job_id)

    def _take_out_of_group(self, group_id: str, job_id: str) -> None:
        """So that the job's next end is counted, and read, once."""
        done = redis_keys.group_done(group_id)
        position = "-"
        while entries := self._results.xrange(done, min=position, count=PAGE):
            for entry, fields in entries:
                if fields.get(b"id") == job_id.encode():
                    self._results.xdel(done, entry)
                    self._results.hincrby(redis_keys.group(group_id), "failed", -1)
                    return
            position = f"({entries[-1][0].decode()}"


def message_of(letter: dict[str, Any]) -> bytes:
    """The message as it stood in the queue."""
    if "message_base64" in letter:
        return base64.b64decode(letter["message_base64"])
    return str(letter["message"]).encode()


def _group_of(letter: dict[str, Any]) -> str | None:
    try:
        group_id = orjson.loads(message_of(letter))["headers"]["group"]
    except (ValueError, LookupError, TypeError):
        return None
    return group_id if isinstance(group_id, str) and redis_keys.is_group_id(group_id) else None


@contextmanager
def _opened(url: str | None) -> Iterator[DeadLetters]:
    settings = settings_or_fail()
    broker, results = address_of(url, settings.broker), address_of(url, settings.results)
    timeouts = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    with broker.client(**timeouts) as redis, results.client(**timeouts) as results_redis:
        try:
            yield DeadLetters(redis, results_redis, prefix=settings.key_prefix)
        except RedisError as error:
            fail_for_redis(error)


def _without_message(letter: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in letter.items() if name not in _HIDDEN}


@dead.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: JsonOption = False,
    redis: RedisOption = None,
) -> None:
    """List the dead letters, newest first, without their prompts."""
    with _opened(redis) as letters:
        shown = [_without_message(letter) for (_, letter), _ in zip(letters, range(limit), strict=False)]
    if as_json:
        for letter in shown:
            typer.echo(json.dumps(letter))
        return
    if not shown:
        typer.echo("There are no dead letters.")
        return
    for line in _aligned([("id", "buried", "task", "kind", "reason"), *map(_row, shown)]):
        typer.echo(line)


def _row(letter: dict[str, Any]) -> tuple[str, ...]:
    at = datetime.fromtimestamp(letter["at"], UTC).isoformat(" ", "seconds")
    cells = (letter["id"], at, letter["task"] or "-", letter["kind"], letter["reason"])
    return tuple(map(printable, cells))


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Lines as long as they need to be: an id that is cut or broken can't be pasted into the next command."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


@dead.command()
def show(letter_id: Annotated[str, typer.Argument(metavar="ID")], redis: RedisOption = None) -> None:
    """Show a dead letter with its message, as JSON. THIS SHOWS THE PROMPT."""
    with _opened(redis) as letters:
        found = letters.find(letter_id)
    if not found:
        fail(f"there is no dead letter {letter_id}; `promptmill dead list` names them")
    for _, letter in found:
        shown = {**_without_message(letter), "message": _readable(letter)}
        typer.echo(printable_json(json.dumps(shown, indent=2, ensure_ascii=False)))


def _readable(letter: dict[str, Any]) -> Any:
    raw = message_of(letter)
    try:
        message = orjson.loads(raw)
        message["body"] = orjson.loads(base64.b64decode(message["body"]))
    except (ValueError, LookupError, TypeError):
        return raw.decode("utf-8", "backslashreplace")
    return message


@dead.command()
def retry(
    letter_id: Annotated[str | None, typer.Argument(metavar="ID", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All that can be retried.")] = False,
    redis: RedisOption = None,
) -> None:
    """Put a dead letter's message back into its queue, for a new life: nothing of its past counts against it."""
    if every == (letter_id is not None):
        fail("name a dead letter, or say --all")
    with _opened(redis) as letters:
        found = [pair for pair in letters if pair[1]["kind"] != "garbage"] if every else letters.find(letter_id or "")
        if not found and not every:
            fail(f"there is no dead letter {letter_id}; `promptmill dead list` names them")
        try:
            # Oldest first, so that they stand in the queue as they did.
            retried = sum(letters.retry(text, letter) for text, letter in reversed(found))
        except ValueError as error:
            fail(str(error))
    typer.echo(f"{retried} back in the queue")


@dead.command()
def purge(
    letter_id: Annotated[str | None, typer.Argument(metavar="ID", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    redis: RedisOption = None,
) -> None:
    """Throw dead letters away, with their prompts. The jobs' failures stay."""
    if every == (letter_id is not None):
        fail("name a dead letter, or say --all")
    with _opened(redis) as letters:
        found = list(letters) if every else letters.find(letter_id or "")
        if not found and not every:
            fail(f"there is no dead letter {letter_id}; `promptmill dead list` names them")
        if not yes:
            typer.confirm(f"Throw away {len(found)} messages for good?", abort=True)
        for text, _ in found:
            letters.purge(text)
    typer.echo(f"{len(found)} thrown away")
