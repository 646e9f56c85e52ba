"""Whoever reads the limiter can find each of its files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import workers.limiter

FOLDER = Path(workers.limiter.__file__).parent


@pytest.mark.parametrize("folder", ["", "waiting", "leasing", "shared"])
def test_the_reading_order_names_every_module_once(folder: str) -> None:
    path = FOLDER / folder
    text = ast.get_docstring(ast.parse((path / "__init__.py").read_text()), clean=False) or ""
    listed = [name.rstrip("/") for name in re.findall(r"^ *(\w+(?:\.py|/)) {2,}", text, re.MULTILINE)]
    modules = [each.name for each in path.glob("*.py") if each.name != "__init__.py"]
    folders = [each.parent.name for each in path.glob("*/__init__.py")]
    assert sorted(listed) == sorted([*modules, *folders])
