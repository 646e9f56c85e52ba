"""Ports for servers that are started by number."""

from __future__ import annotations

import random
import socket

__all__ = ["free_port"]

LOWEST, HIGHEST = 10_000, 32_000
"""Below the range from which Linux gives ports to connections."""

CLUSTER_BUS = 10_000
"""A node of a Redis Cluster listens so much higher too."""

_random = random.SystemRandom()
"""Hypothesis seeds the other one, so that tests which run at the same time would choose alike."""


def free_port(*, of_a_cluster: bool = False) -> int:
    """A loopback port where nothing listens, for now; `of_a_cluster`: nor at that of its bus."""
    highest = HIGHEST - CLUSTER_BUS if of_a_cluster else HIGHEST
    while True:
        port = _random.randint(LOWEST, highest)
        if _is_free(port) and (not of_a_cluster or _is_free(port + CLUSTER_BUS)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
