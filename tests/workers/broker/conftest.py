from __future__ import annotations

from typing import Any

import pytest

from workers.telemetry.notices import notices

from .broker import Broker


@pytest.fixture(autouse=True)
def nothing_to_tell() -> None:
    """Other tests of this process may have left something."""
    notices.take()


@pytest.fixture
def broker(client: Any) -> Broker:
    return Broker(client)
