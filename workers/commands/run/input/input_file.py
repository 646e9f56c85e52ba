"""The lines of an input file, read in pieces: a file of any size costs the same memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Self

from ..errors import UnusableInput

__all__ = ["MAX_LINE_BYTES", "InputFile", "Line"]

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Longer lines are skipped without being held in memory."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank. `number` counts from 1; `text` is None where the line is too long to read."""

    number: int
    text: bytes | None

    @property
    def size_bytes(self) -> int:
        return len(self.text or b"")


class InputFile:
    """An open input file.

    It must be a regular file: a run that continues reads its input again from the start, and a pipe would be
    empty by then.
    """

    def __init__(self, path: Path, *, limit: int | None = None) -> None:
        self.path = path
        self._limit = limit
        self._file = _open(path)
        self._lines = self._numbered()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, *, max_lines: int, max_bytes: int) -> list[Line]:
        """The next lines, at least one unless the file has ended. Blocks on the disk: call it in a thread."""
        taken: list[Line] = []
        size = 0
        for line in islice(self._lines, max_lines):
            taken.append(line)
            size += line.size_bytes
            if size >= max_bytes:
                break
        return taken

    def __iter__(self) -> Iterator[Line]:
        return self._lines

    def _numbered(self) -> Iterator[Line]:
        return islice(_lines(self._file), self._limit)


def _open(path: Path) -> BinaryIO:
    try:
        # Opening a named pipe would wait for its writer.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=1 << 20)
    except IsADirectoryError:
        raise UnusableInput(f"The input {path} is a directory. Name a file of JSON lines.") from None
    except OSError as error:
        raise UnusableInput(f"Can't read the input {path}: {error.strerror}.") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UnusableInput(
            f"The input {path} is not a regular file. Save it to one first: a run that was interrupted reads "
            "its input again."
        )
    return file


def _lines(file: BinaryIO) -> Iterator[Line]:
    number = 0
    while text := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(text) > MAX_LINE_BYTES and not text.endswith(b"\n"):
            _skip_line(file)
            yield Line(number, None)
            continue
        text = _without_mark(text) if number == 1 else text
        if stripped := text.strip():
            yield Line(number, stripped)


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass


def _without_mark(text: bytes) -> bytes:
    return text.removeprefix(BYTE_ORDER_MARK)
