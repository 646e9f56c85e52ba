"""A Redis that fails over to a replica that was behind, behind one address."""

from __future__ import annotations

from pathlib import Path

from .proxy import Proxy
from .redis_server import RedisServer


class Failover:
    """A master, a replica, and an address that leads to the master until the replica takes over."""

    def __init__(self, directory: Path) -> None:
        folders = [directory / "master", directory / "replica"]
        for folder in folders:
            folder.mkdir()
        self.master = RedisServer(folders[0])
        self.replica = RedisServer(folders[1], f"replicaof 127.0.0.1 {self.master.port}")
        self.proxy = Proxy(self.master.port)
        self.url = f"redis://127.0.0.1:{self.proxy.port}/0"

    def stop_following(self) -> None:
        """The replica has what the master has now, and hears nothing more."""
        with self.master.client() as master, self.replica.client() as replica:
            while master.info("replication")["connected_slaves"] != 1:
                assert master.ping()
            assert master.wait(1, 10_000) == 1
            replica.replicaof("NO", "ONE")

    def take_over(self) -> None:
        self.proxy.move(self.replica.port)

    def close(self) -> None:
        self.proxy.close()
        for server in (self.master, self.replica):
            server.close()
