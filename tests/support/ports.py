"""Ports for servers that are started by number."""

from __future__ import annotations

import random
import socket

__all__ = ["free_port"]

LOWEST, HIGHEST = 10_000, 32_000
"""Below the range from which Linux gives ports to connections, and low enough for a node of a Redis Cluster, which
listens 10,000 higher too."""

_random = random.SystemRandom()
"""Hypothesis seeds the other one, so that tests which run at the same time would choose alike."""


def free_port() -> int:
    """A loopback port where nothing listens, for now."""
    while True:
        port = _random.randint(LOWEST, HIGHEST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
