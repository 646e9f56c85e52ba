"""Connections that Redis cuts while jobs run: the worker comes back, and so does every place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from tests.support.waiting import wait_until

from .harness import Side

if TYPE_CHECKING:
    from .harness import Workers


def cut_connections(side: Side) -> int:
    """Have Redis close all of the worker's connections. Returns how many there were."""
    ports = {c.laddr.port for c in psutil.Process(side.process.pid).net_connections("tcp") if c.raddr}
    clients = [client for client in side.redis.client_list() if int(client["addr"].rpartition(":")[2]) in ports]
    return sum(side.redis.client_kill_filter(_id=client["id"]) for client in clients)


def wait_reconnecting(side: Side, times: int) -> None:
    wait_until(lambda: side.log_text().count("Trying to re-establish") >= times, "the worker has noticed")


def test_jobs_go_on_and_no_place_is_lost_or_given_twice(workers: Workers) -> None:
    side = workers.start(concurrency=4)
    # Acknowledged at start: with kombu's own transport a cut connection gives unacknowledged messages back.
    running = side.many("early_nap", [(1.0,)] * 4)
    waiting = side.many("early_nap", [(0.1,)] * 8)
    wait_until(lambda: side.pool()["running"] == side.unacknowledged() == 4, "four run, four more are received")
    for cut in (1, 2):
        assert cut_connections(side)
        wait_reconnecting(side, cut)
        wait_until(side.answers, "the worker is back")
    assert side.wait_results(*running) == [1] * 4
    assert all(side.wait_results(*waiting))
    assert side.most_at_once("crowd", 4) == 4
    wait_until(lambda: side.pool()["running"] == 0, "all jobs have ended")
    pool = side.pool()
    assert (pool["free"], pool["max-concurrency"]) == (4, 4)


def test_a_full_pool_admits_nobody_after_a_reconnect(workers: Workers) -> None:
    side = workers.start(concurrency=2)
    running = side.many("early_nap", [(2.5,)] * 2)
    wait_until(lambda: side.pool()["running"] == 2, "all places are taken")
    assert cut_connections(side)
    wait_reconnecting(side, 1)
    late = side.many("crowd", [(2,)] * 2)
    for id_ in late:
        side.wait_event(id_, "received")
    pool = side.pool()
    assert (pool["running"], pool["free"]) == (2, 0)
    assert [side.count(id_, "prerun") for id_ in late] == [0, 0]
    side.wait_results(*running, *late)
