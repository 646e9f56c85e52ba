"""Which tests claim which names, read from the source of the tests: nothing is imported, nothing runs."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

__all__ = ["claims"]

TESTS = Path(__file__).parents[1]
MARK = "pytest.mark.covers"


def claims() -> dict[tuple[str, str], set[str]]:
    """Kind and name, and the node ids (without parameters) of the tests marked with them."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for path in sorted(TESTS.rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        if MARK not in source:  # to parse all of them takes seconds
            continue
        tree = ast.parse(source)
        for place, test in _tests(tree, path.relative_to(TESTS.parent).as_posix()):
            for kind, name in _marked(test):
                found[kind, name].add(place)
    return dict(found)


def _tests(tree: ast.AST, place: str) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _tests(node, f"{place}::{node.name}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield f"{place}::{node.name}", node


def _marked(test: ast.AST) -> Iterator[tuple[str, str]]:
    """`pytest.mark.covers(KIND, NAME, ...)` among the decorators, in the marks of a `pytest.param` too."""
    for decorator in getattr(test, "decorator_list", ()):
        for node in ast.walk(decorator):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == MARK:
                kind, *of_kind = (ast.literal_eval(argument) for argument in node.args)
                yield from ((kind, name) for name in of_kind)
