"""The rows that are left to do, in the input's order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from ..errors import UnusableInput
from ..output.output_file import FinishedRows
from .custom_ids import CustomIds
from .input_file import InputFile, Line
from .models import ModelCheck
from .rows import BadRow, Row, RowReader

__all__ = ["RowSource", "count_rows"]


class RowSource:
    """Reads rows on demand and leaves out those that an earlier run has finished.

    All methods block on the disk and on parsing: call them in a thread.
    """

    def __init__(
        self,
        path: Path,
        *,
        reader: RowReader,
        models: ModelCheck,
        finished: FinishedRows,
        limit: int | None,
    ) -> None:
        self._path = path
        self._reader = reader
        self._models = models
        self._finished = finished
        self._limit = limit
        self._custom_ids = CustomIds()
        self._input = InputFile(path, limit=limit)

    def check_finished(self, output: Path) -> int:
        """How many rows of the input have their answer in the output.

        Raises `UnusableInput` if an answer there belongs to another row than the input now has on its line.
        """
        if not self._finished.count:
            return 0
        matching = 0
        with InputFile(self._path, limit=self._limit) as lines:
            for line in lines:
                matching += self._is_finished(line, output)
        if matching < self._finished.count and self._limit is None:
            raise UnusableInput(
                f"{output} answers {self._finished.count:,} rows, and {self._path} has only {matching:,} of them. "
                "Use the input as it was, or choose another place with -o."
            )
        return matching

    def check_first_line(self) -> None:
        """Raises `UnusableInput` if the input does not even begin as JSON lines do: it is another kind of file."""
        with InputFile(self._path, limit=1) as lines:
            first = next(iter(lines), None)
        if first is not None and first.text is not None and not first.text.startswith(b"{"):
            raise UnusableInput(
                f"{self._path}:{first.number} is no JSON object, so nothing is sent. The input must hold one JSON "
                'object a line, such as {"prompt": "Hello"}.'
            )

    def check_first_model(self) -> None:
        """Raises `UnusableInput` if the first row to do needs a key that is missing or unusable."""
        with InputFile(self._path, limit=self._limit) as lines:
            rows = (self._reader.read(line) for line in lines if self._finished.digest(line.number) is None)
            first = next((row for row in rows if isinstance(row, Row)), None)
        problem = self._models.problem(first.model) if first else None
        if problem is not None and problem.code == "auth":
            raise UnusableInput(f"{problem.text} Or try it without a provider: --simulate.")

    def take(self, *, max_rows: int, max_bytes: int) -> list[Row | BadRow]:
        """The next rows to do; none when the input has ended."""
        while lines := self._input.take(max_lines=max_rows, max_bytes=max_bytes):
            rows = [self._read(line) for line in lines if self._finished.digest(line.number) is None]
            if rows:
                return rows
        return []

    def again(self, lines: set[int], *, max_rows: int) -> Iterator[list[Row]]:
        """Rows that were taken before, once more, by the numbers of their lines. Reads the input from its start."""
        with InputFile(self._path, limit=self._limit) as file:
            rows = (self._reader.read(line) for line in file if line.number in lines)
            taken = (row for row in rows if isinstance(row, Row))
            while part := list(itertools.islice(taken, max_rows)):
                yield part

    def close(self) -> None:
        self._input.__exit__()

    def _is_finished(self, line: Line, output: Path) -> bool:
        digest = self._finished.digest(line.number)
        if digest is None:
            return False
        row = self._reader.read(line)
        if not isinstance(row, Row) or row.digest != digest:
            raise UnusableInput(
                f"{self._path}:{line.number} is not the row that {output} has an answer to: the input, --model, "
                "--field or --simulate has changed since. Use them as they were, or choose another place with -o."
            )
        return self._custom_ids.add(row.custom_id)

    def _read(self, line: Line) -> Row | BadRow:
        row = self._reader.read(line)
        if isinstance(row, BadRow):
            return row
        if problem := self._models.problem(row.model):
            return BadRow(row.line, row.custom_id, problem.text, problem.code)
        if not self._custom_ids.add(row.custom_id):
            return BadRow(row.line, row.custom_id, "another row has the same `custom_id`")
        return row


def count_rows(path: Path, *, limit: int | None) -> int:
    """How many rows the input has. Reads the whole file."""
    with InputFile(path, limit=limit) as lines:
        return sum(1 for _ in itertools.islice(lines, limit))
