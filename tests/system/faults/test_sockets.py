"""A worker on a Redis that is reached through a Unix socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import Celery

from tasks import PromptQueue
from tests.support.waiting import PATIENCE_S

from .harness import MESSAGES

if TYPE_CHECKING:
    from .harness import World


PASSWORD = "canary-password-b290"


def test_a_worker_takes_jobs_from_a_socket(world: World) -> None:
    path = world.directory / "redis.sock"
    world.start_redis(f"unixsocket {path}")
    world.redis.config_set("requirepass", PASSWORD)  # for connections to come
    url = f"unix://:{PASSWORD}@{path}?db=0"
    worker = world.start_worker(url=url, concurrency=2)
    queue = PromptQueue(url).sync
    world.enter(queue)
    assert queue.submit(model="quick", messages=MESSAGES).result(timeout_s=PATIENCE_S).ok
    sockets = [entry for entry in world.redis.client_list() if str(path) in entry["addr"]]
    assert len(sockets) > 3, "queue, results and limiter all come this way"
    with Celery(set_as_current=False) as app:
        app.conf.update(
            broker_url=f"socket://{path}?virtual_host=0",
            broker_transport="workers.broker:SocketTransport",
            broker_password=PASSWORD,
        )
        [stats] = app.control.inspect([worker.name], timeout=PATIENCE_S, limit=1).stats().values()
    assert str(path) in str(stats) and PASSWORD not in str(stats)
    assert PASSWORD not in worker.log_text()
