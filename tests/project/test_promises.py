"""The rows of docs/explain/promises.md: each is held by a test that is marked with its number."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "explain" / "promises.md"
ROW = re.compile(r"^\| (\d+) \|.*\| `(test_\w+\.py)` \|$", re.MULTILINE)

MARK = "pytest.mark.promise"
NAME = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)

LONGEST_NAME = 60


@cache
def sources() -> dict[Path, str]:
    """All tests, read and not imported."""
    return {path: path.read_text(encoding="utf-8") for path in sorted(TESTS.rglob("test_*.py"))}


def promising() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The functions of all files with a mark, which alone are parsed: that takes a second for all."""
    for path, source in sources().items():
        if MARK in source:
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield path, node


def marked() -> dict[int, set[str]]:
    """Row -> the files with a test that is marked `@pytest.mark.promise(ROW, ...)`."""
    found: dict[int, set[str]] = defaultdict(set)
    for path, test in promising():
        for decorator in test.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == MARK:
                for argument in decorator.args:
                    found[ast.literal_eval(argument)].add(path.name)
    return dict(found)


def test_each_row_of_the_promises_has_its_tests() -> None:
    rows = {int(number): file for number, file in ROW.findall(PAGE.read_text(encoding="utf-8"))}
    assert len(rows) == len(re.findall(r"^\| \d+ \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)) > 0
    found = marked()
    assert sorted(found) == sorted(rows), "a row without @pytest.mark.promise(ROW), or a mark without a row"
    assert {row: file for row, file in rows.items() if file not in found[row]} == {}, "the page names another file"


def test_names_of_tests_can_be_read_at_a_glance() -> None:
    names = [name for source in sources().values() for name in NAME.findall(source)]
    long = [name for name in names if len(name) > LONGEST_NAME]
    assert long == [], f"at most {LONGEST_NAME} characters"
