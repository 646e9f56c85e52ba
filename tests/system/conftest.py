"""Which tests of real worker processes stay together when the suite runs on several processes."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARING = {"faults", "semantics"}
"""Folders whose tests share workers or run side by side already: each stays in one process. Elsewhere a file does."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            place = item.path.relative_to(HERE)
            item.add_marker(pytest.mark.xdist_group(place.parts[0] if place.parts[0] in SHARING else str(place)))
