"""The output file: appended to as results come, and read again by a run that continues."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson

from tasks.results import JobError, PromptResult

from ..errors import RunError, UnusableInput
from ..input.custom_ids import DigestsById
from ..input.rows import BadRow

__all__ = ["FinishedRows", "OutputFile", "answer_line", "refusal_line"]

RESULT_FIELDS = tuple(field.name for field in fields(PromptResult) if field.name != "response")


class FinishedRows:
    """Which rows of the input have an answer already: by their custom ids, which are `row-N` where a line has none."""

    def __init__(self) -> None:
        self._digests = DigestsById()

    @property
    def count(self) -> int:
        return len(self._digests)

    def digest(self, custom_id: str) -> str | None:
        """The digest of the row that the id's answer belongs to; None if the id has no answer."""
        value = self._digests.get(custom_id)
        return f"{value:016x}" if value else None

    def add(self, custom_id: str, digest: str) -> bool:
        """Note an answered row. False if it was there already."""
        return self._digests.add(custom_id, int(digest, 16))


class OutputFile:
    """Appends rows. Nothing is on the disk for sure before `sync` has returned."""

    def __init__(self, path: Path, file: BinaryIO, *, finished: FinishedRows, is_new: bool) -> None:
        self.path = path
        self._is_new = is_new
        self.finished = finished
        self._file = file

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open for writing; rows without an answer, from an earlier run, are taken out to be tried again.

        Raises `UnusableInput` if the path can't be written, or holds something that `run` has not written.
        """
        try:
            is_new = not path.exists()
            finished = FinishedRows() if is_new else _resume(path)
            return cls(path, path.open("ab", buffering=1 << 20), finished=finished, is_new=is_new)
        except OSError as error:
            raise UnusableInput(
                f"Can't write the output {path}: {error.strerror}. Choose another place with -o."
            ) from None

    def append(self, line: bytes) -> None:
        self._guarded(self._file.write, line)

    def flush(self) -> None:
        self._guarded(self._file.flush)

    def sync(self) -> None:
        """Wait until the disk has what was flushed. Call it in a thread."""
        self._guarded(os.fsync, self._file.fileno())

    def close(self) -> None:
        self._guarded(self._file.close)

    def discard(self) -> None:
        """Remove the file if this run has made it, for a run that was refused before it began."""
        if self._is_new:
            self.path.unlink(missing_ok=True)

    def _guarded(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except OSError as error:
            raise RunError(
                f"Can't write the output {self.path}: {error.strerror}. Answers that are not in it yet wait in "
                "Redis. Make room first."
            ) from None


def answer_line(result: PromptResult, *, custom_id: str, line: int, digest: str) -> bytes:
    """The output row of a job: an OpenAI batch output line, plus `promptmill`."""
    promptmill = {name: getattr(result, name) for name in RESULT_FIELDS}
    row = {
        "id": result.id,
        "custom_id": custom_id,
        "response": _response(result),
        "error": _error(result.error),
        "promptmill": promptmill | {"line": line, "row_digest": digest},
    }
    return _encoded(row) + b"\n"


def refusal_line(bad: BadRow, *, job_id: str, input_path: Path) -> bytes:
    """The output row of a row that can't be sent."""
    error = JobError(code=bad.code, message=f"{input_path}:{bad.line}: {bad.reason}")
    result = PromptResult(id=job_id, status="failed", error=error)
    return answer_line(result, custom_id=bad.custom_id, line=bad.line, digest="0" * 16)


def _response(result: PromptResult) -> dict[str, Any] | None:
    if result.response is None:
        return None
    return {"status_code": 200, "request_id": result.response.get("id"), "body": result.response}


def _error(error: JobError | None) -> dict[str, str] | None:
    return None if error is None else {"code": error.code, "message": error.message}


def _encoded(row: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(row)
    except TypeError:
        # orjson takes neither integers beyond 64 bits nor lone surrogates; a provider's answer may hold both.
        return json.dumps(row, default=asdict, separators=(",", ":")).encode()


def _resume(path: Path) -> FinishedRows:
    """Find the answered rows of an earlier run and take all others out of the file."""
    finished = FinishedRows()
    total_bytes, kept_bytes = path.stat().st_size, 0
    for row in _answered(path, finished):
        kept_bytes += len(row)
    if kept_bytes < total_bytes:
        _rewrite(path)
    return finished


def _answered(path: Path, finished: FinishedRows) -> Iterator[bytes]:
    """The whole lines that hold a row's first answer, each noted in `finished`."""
    with path.open("rb", buffering=1 << 20) as file:
        for number, text in enumerate(file, start=1):
            if not text.endswith(b"\n"):
                return  # the last line of a run that was killed while it wrote
            custom_id, digest, succeeded = _mark(text, path=path, number=number)
            if succeeded and finished.add(custom_id, digest):
                yield text


def _mark(text: bytes, *, path: Path, number: int) -> tuple[str, str, bool]:
    """An output row's custom id, its row's digest, and whether it has an answer."""
    try:
        row = json.loads(text)
        custom_id, promptmill = row["custom_id"], row["promptmill"]
        digest, succeeded = promptmill["row_digest"], promptmill["status"] == "succeeded"
        if not isinstance(custom_id, str) or len(digest) != 16 or (succeeded and not int(digest, 16)):
            raise ValueError(custom_id)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnusableInput(
            f"{path}:{number} is no output row of `promptmill run`, so the file is left as it is. "
            "Choose another place with -o, or remove the file."
        ) from None
    return custom_id, digest, succeeded


def _rewrite(path: Path) -> None:
    """Replace the file by its answered rows, at once or not at all."""
    rewritten = path.with_name(f"{path.name}.promptmill") / "rewritten.jsonl"
    with rewritten.open("wb", buffering=1 << 20) as file:
        file.writelines(_answered(path, FinishedRows()))
        file.flush()
        os.fsync(file.fileno())
    rewritten.chmod(path.stat().st_mode)
    rewritten.replace(path)
