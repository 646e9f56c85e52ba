from __future__ import annotations

from typing import Any

import pytest

from .fleet import fleet_of


@pytest.fixture
def fleet(server: Any, client: Any, pipeline_to: Any) -> Any:
    def make(provider_url: str, *, size: int = 2, **options: Any) -> Any:
        return fleet_of(client, server.url, pipeline_to, provider_url, size=size, **options)

    return make
