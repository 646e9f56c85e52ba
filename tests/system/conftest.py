"""How this room shares the machine when pytest has several processes (`pytest -n 3 tests/system`).

The scenarios of faults/ run side by side by themselves, and the tests of semantics/ share their workers: each of these
folders stays in one process. Of the others each module does.
"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

IN_ONE_PROCESS = ("tests/system/faults/", "tests/system/semantics/")


class BySharing(LoadScopeScheduling):  # type: ignore[misc]  # xdist publishes no types
    def _split_scope(self, nodeid: str) -> str:
        shared = [folder for folder in IN_ONE_PROCESS if nodeid.startswith(folder)]
        return shared[0] if shared else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> BySharing:
    return BySharing(config, log)
