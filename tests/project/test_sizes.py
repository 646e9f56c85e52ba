"""No file and no class does two things: what is large says in its docstring why it is one thing all the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tasks

ROOT = Path(tasks.__file__).parents[1]
SOURCES = sorted(
    path for room in ("tasks", "config", "workers") for kind in ("*.py", "*.lua") for path in (ROOT / room).rglob(kind)
)
MODULES = [path for path in SOURCES if path.suffix == ".py"]
METHOD = re.compile(r"^ +(?:async )?def ", re.MULTILINE)

MOST_LINES = 400
MOST_METHODS = 25
MOST_FILES = 12
"""Of a folder, its `__init__` and `__main__` not counted: its list is read at a glance."""

FOLDERS = sorted({path.parent for path in MODULES})
REASON = re.compile(r"More than \d+ (lines|methods), because .+")


def reason_for(what: str, text: str | None) -> bool:
    """Whether a docstring says why it has so many."""
    found = REASON.search(" ".join((text or "").split()))
    return found is not None and found[1] == what


def methods_of(node: ast.ClassDef) -> int:
    return sum(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body)


def large_classes(source: str) -> Iterator[str]:
    """Names of classes with too many methods and no reason."""
    if len(METHOD.findall(source)) <= MOST_METHODS:
        return
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef) or methods_of(node) <= MOST_METHODS:
            continue
        if not reason_for("methods", ast.get_docstring(node)):
            yield f"{node.name}: {methods_of(node)} methods"


def is_too_long(source: str, *, docstring: str | None) -> bool:
    return len(source.splitlines()) > MOST_LINES and not reason_for("lines", docstring)


def docstring_of(path: Path, source: str) -> str | None:
    """A script's is its first lines."""
    return ast.get_docstring(ast.parse(source)) if path.suffix == ".py" else source[:2_000]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# One test for all files: a case of each would cost every process of the tests more than the look at the files.
def test_no_file_is_too_long() -> None:
    lengths = {}
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        length = len(source.splitlines())
        if length > MOST_LINES and is_too_long(source, docstring=docstring_of(path, source)):
            lengths[name_of(path)] = length
    assert lengths == {}


def test_no_class_has_too_many_methods() -> None:
    found = {name_of(path): list(large_classes(path.read_text(encoding="utf-8"))) for path in MODULES}
    assert {name: classes for name, classes in found.items() if classes} == {}


def test_no_folder_has_too_many_files() -> None:
    """Where there are, a part of them is a subject of its own."""
    counts = {
        name_of(folder): sum(not path.name.startswith("__") for path in folder.glob("*.py")) for folder in FOLDERS
    }
    assert {name: count for name, count in counts.items() if count > MOST_FILES} == {}


@pytest.mark.parametrize(
    ("docstring", "is_large"),
    [
        ("", True),
        ("A large one.", True),
        ("More than 25 methods, because\n    they are all kombu's.", False),
        ("More than 25 methods.", True),
        ("More than 400 lines, because it is a table.", True),
    ],
)
def test_a_large_class_needs_a_reason(docstring: str, is_large: bool) -> None:
    methods = "".join(f"    def m{number}(self): ...\n" for number in range(MOST_METHODS + 1))
    assert bool(list(large_classes(f'class Large:\n    """{docstring}"""\n{methods}'))) is is_large
    assert list(large_classes(f"class Small:\n{methods.replace('    def m0(self): ...', '')}")) == []


def test_a_long_file_needs_a_reason() -> None:
    assert is_too_long("\n" * (MOST_LINES + 1), docstring="A long one.")
    assert not is_too_long("\n" * MOST_LINES, docstring=None)
    assert not is_too_long("\n" * (MOST_LINES + 1), docstring="More than 400 lines, because it is a table.")
