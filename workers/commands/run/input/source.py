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
        """How many rows of the input, up to the limit, have their answer in the output.

        Raises `UnusableInput` if a row of the output is no longer in the input, or no longer what it was: a row with
        a `custom_id` may have moved, one without is known by its line.
        """
        if not self._finished.count:
            return 0
        matching = in_all = self._count_finished(output, limit=self._limit)
        if self._limit is not None and matching < self._finished.count:
            in_all = self._count_finished(output, limit=None)
        if in_all < self._finished.count:
            raise UnusableInput(
                f"{output} answers {self._finished.count:,} rows, and {self._path} has only {in_all:,} of them. "
                "Rows may move if each has a `custom_id`; one without is known by its line. "
                "Use the input as it was, or choose another place with -o."
            )
        return matching

    def _count_finished(self, output: Path, *, limit: int | None) -> int:
        ids = CustomIds()
        with InputFile(self._path, limit=limit) as lines:
            return sum(self._is_finished(self._reader.read(line), ids, output) for line in lines)

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
            rows = (self._reader.read(line) for line in lines)
            first = next((row for row in rows if isinstance(row, Row) and not self._has_answer(row)), None)
        problem = self._models.problem(first.model) if first else None
        if problem is not None and problem.code == "auth":
            raise UnusableInput(f"{problem.text} Or try it without a provider: --simulate.")

    def take(self, *, max_rows: int, max_bytes: int) -> list[Row | BadRow]:
        """The next rows to do; none when the input has ended."""
        while lines := self._input.take(max_lines=max_rows, max_bytes=max_bytes):
            if rows := [row for line in lines if (row := self._read(line)) is not None]:
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

    def _is_finished(self, row: Row | BadRow, ids: CustomIds, output: Path) -> bool:
        digest = self._finished.digest(row.custom_id)
        if digest is None or not ids.add(row.custom_id):
            return False
        if not isinstance(row, Row) or row.digest != digest:
            raise UnusableInput(
                f"{self._path}:{row.line} is not the row that {output} has an answer to: the input, --model, "
                "--field, --schema or --simulate has changed since. Rows may move if each has a `custom_id`; one "
                "without is known by its line. Use them as they were, or choose another place with -o."
            )
        return True

    def _has_answer(self, row: Row) -> bool:
        return self._finished.digest(row.custom_id) is not None

    def _read(self, line: Line) -> Row | BadRow | None:
        """None: the row has its answer."""
        row = self._reader.read(line)
        if isinstance(row, BadRow):
            return row
        has_answer = self._has_answer(row)
        if not has_answer and (problem := self._models.problem(row.model)):
            return BadRow(row.line, row.custom_id, problem.text, problem.code)
        if not self._custom_ids.add(row.custom_id):
            return BadRow(row.line, row.custom_id, "another row has the same `custom_id`")
        return None if has_answer else row


def count_rows(path: Path, *, limit: int | None) -> int:
    """How many rows the input has. Reads the whole file."""
    with InputFile(path, limit=limit) as lines:
        return sum(1 for _ in itertools.islice(lines, limit))
