"""The text of one job's answer on its way to Redis: what was taken, and what waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.streams import digest_of

from ..prompt.secret import STRUCK, is_secret

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Feed"]


class Feed:
    """One job's. Each call that brings text is a run of its own. Belongs to `Streams`, and to one loop."""

    # What waits, and what was taken and may have to be said again.
    __slots__ = (
        "_begins",
        "_ends",
        "_hidden",
        "_is_full",
        "_most_bytes",
        "_note",
        "_pending",
        "_run",
        "_size",
        "_taken",
        "_unsaid",
        "chars",
        "ended",
        "is_lost",
        "is_waiting",
        "job_id",
    )

    def __init__(self, job_id: str, *, most_bytes: int, note: Callable[[Feed], None]) -> None:
        """`most_bytes`: how much text is written, of all runs together. `note` is told that something waits."""
        self.job_id = job_id
        self.is_waiting = False
        """Whether the next tick takes it."""
        self.is_lost = False
        """Whether its stream is gone, or another worker writes it."""
        self.chars = 0
        """Of the run's text, as far as it was taken."""
        self.ended: asyncio.Future[None] | None = None
        """Done when Redis has the end."""
        self._most_bytes = most_bytes
        self._note = note
        self._run = 0
        self._begins = False
        self._pending: list[str] = []
        self._taken: list[str] = []
        self._unsaid: dict[str, Any] | None = None
        self._ends: str | None = None
        self._is_full = False
        self._size = 0
        self._hidden = ""

    def begin(self, key: str = "") -> None:
        """A call begins; what an earlier one has brought is no part of the answer. `key` is struck from its text."""
        self._begins = True
        self._pending, self._taken, self._unsaid, self.chars = [], [], None, 0
        self._hidden = key if is_secret(key) else ""
        self._wait()

    def write(self, text: str) -> None:
        """A piece of the text."""
        self._pending.append(text)
        if not self.is_waiting:
            self._wait()

    def end(self, text: str, ended: asyncio.Future[None]) -> None:
        """The job has an answer. It may be another than what the call brought: repaired, say."""
        if not text.startswith("".join(self._taken)):
            self.begin()
        self._hidden = ""
        self._pending = [] if self._is_full else [text[self.chars :]]
        self._ends, self.ended = digest_of(text), ended
        self._wait()

    def close(self) -> None:
        """The job has ended without an answer."""
        self._pending, self._ends = [], ""
        self._wait()

    def _wait(self) -> None:
        if not self.is_waiting and not self.is_lost:
            self.is_waiting = True
            self._note(self)

    def take(self) -> dict[str, Any]:
        """What is to be said now, in the words of write.lua."""
        self.is_waiting = False
        text = self._take_text()
        said: dict[str, Any] = {"id": self.job_id, "text": text, "at": self.chars}
        said["run"] = 0 if self._begins else self._run
        if self._is_full:
            said["full"] = 1
        if self._ends is not None:
            said["digest"] = self._ends
        self._begins, self._unsaid = False, said
        return said

    def _take_text(self) -> str:
        """What waits, and before it what was taken and did not arrive."""
        text = "".join(self._pending)
        self._pending.clear()
        if self._hidden:
            text, held = _without(text, self._hidden)
            if held:
                self._pending.append(held)
        self._size += len(text.encode())
        if self._is_full or self._size > self._most_bytes:
            self._is_full, text = True, ""
        if text:
            self._taken.append(text)
            self.chars += len(text)
        before = self._unsaid
        if before is None:
            return text
        self._begins = self._begins or before["run"] == 0
        return str(before["text"]) + text

    def arrived(self, run: int) -> None:
        """The script's reply: the number of the run."""
        said = self._unsaid
        if said is None:
            return  # another call has begun meanwhile
        self._run, self._unsaid = run, None
        if "digest" in said:
            self._done()

    def lose(self) -> None:
        """Nobody reads what is written from now on."""
        self.is_lost = True
        self._pending.clear()
        self._done()

    def again(self) -> None:
        """Redis did not take it."""
        self._wait()

    def _done(self) -> None:
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(None)


def _without(text: str, secret: str) -> tuple[str, str]:
    """The text without the secret, and what of its end may be the secret's beginning."""
    text = text.replace(secret, STRUCK)
    start = max(0, len(text) - len(secret) + 1)
    while (start := text.find(secret[0], start)) >= 0:
        if secret.startswith(text[start:]):
            return text[:start], text[start:]
        start += 1
    return text, ""
