"""Whoever reads the limiter can find each of its files."""

from __future__ import annotations

from pathlib import Path

import workers.limiter

FOLDER = Path(workers.limiter.__file__).parent
MODULES = sorted(path for path in FOLDER.glob("*.py") if path.name != "__init__.py")


def test_the_reading_order_names_every_module_once() -> None:
    listed = [line.split()[0] for line in (workers.limiter.__doc__ or "").splitlines() if line.startswith("    ")]
    assert sorted(listed) == [path.name for path in MODULES]
