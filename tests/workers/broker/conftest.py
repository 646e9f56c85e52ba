from __future__ import annotations

from typing import Any

import pytest

from .broker import Broker


@pytest.fixture
def broker(client: Any) -> Broker:
    return Broker(client)
