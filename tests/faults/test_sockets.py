"""A worker on a Redis that is reached through a Unix socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks import PromptQueue

from .harness import MESSAGES, PATIENCE_S

if TYPE_CHECKING:
    from .harness import World


def test_a_worker_takes_jobs_from_a_socket(world: World) -> None:
    path = world.directory / "redis.sock"
    world.start_redis(f"unixsocket {path}")
    url = f"unix://{path}?db=0"
    worker = world.start_worker(url=url, concurrency=2)
    queue = PromptQueue(url).sync
    world.enter(queue)
    assert queue.submit(model="quick", messages=MESSAGES).result(timeout_s=PATIENCE_S).ok
    with world.server.client() as client:
        sockets = [entry for entry in client.client_list() if str(path) in entry["addr"]]
    assert len(sockets) > 3, "queue, results and limiter all come this way"
    assert worker.is_alive()
