"""Each of the limiter's files says what it is, and whoever reads can find it."""

from __future__ import annotations

from pathlib import Path

import pytest

import workers.limiter

FOLDER = Path(workers.limiter.__file__).parent
MODULES = sorted(path for path in FOLDER.glob("*.py") if path.name != "__init__.py")
SCRIPTS = sorted(FOLDER.rglob("*.lua"))


def test_the_reading_order_names_every_module_once() -> None:
    listed = [line.split()[0] for line in (workers.limiter.__doc__ or "").splitlines() if line.startswith("    ")]
    assert sorted(listed) == [path.name for path in MODULES]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_part_says_what_it_needs_and_gives_and_a_script_what_it_includes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"-- {path.name}: ")
    assert ("\n-- Needs: " in text and "\n-- Gives: " in text) != ("\n--- @include " in text)
