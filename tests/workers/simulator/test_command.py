"""The command line, as a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from tests.support.listening import started
from workers.cli import app

from .conftest import question

COMMAND = [sys.executable, "-m", "workers.cli", "simulate"]


@contextmanager
def simulator_process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running simulator and its URL."""
    process, url = started([*COMMAND, *arguments], stderr=subprocess.PIPE)
    try:
        yield process, url
    finally:
        process.kill()
        process.communicate()


def stopped(process: subprocess.Popen[str], number: signal.Signals) -> Any:
    """The totals that it prints at its end."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    return json.loads(errors)


async def test_it_says_where_it_listens_and_stops_cleanly(http: aiohttp.ClientSession) -> None:
    """To people, and to the process that starts it."""
    options = ["--port", "0", "--latency-ms", "0", "--rpm", "60", "--seed", "3"]
    with simulator_process(*options) as (process, url):
        assert process.stdout is not None
        assert url in process.stdout.readline()
        async with http.post(url + "/chat/completions", json=question()) as response:
            assert response.status == 200
            assert response.headers["x-ratelimit-limit-requests"] == "60"
        assert stopped(process, signal.SIGTERM)["by_status"] == {"200": 1}


async def test_faults_and_keys_are_taken_from_the_command_line(http: aiohttp.ClientSession) -> None:
    options = ["--fault", "500=0.5", "--fault", "503=0.5", "--api-key", "sk-1", "--algorithm", "sliding"]
    with simulator_process("--port", "0", "--latency-ms", "0", "--jitter", "0", "--tpm", "900", *options) as (
        process,
        url,
    ):
        async with http.post(url + "/chat/completions", json=question()) as response:
            assert response.status == 401
        statuses = set()
        for number in range(5):
            headers = {"Authorization": "Bearer sk-1"}
            body = question(f"{number}", max_tokens=5)
            async with http.post(url + "/chat/completions", json=body, headers=headers) as response:
                statuses.add(response.status)
        assert statuses <= {500, 503}
        assert stopped(process, signal.SIGINT)["by_status"].keys() == {"401", *map(str, statuses)}


def refused(*arguments: str) -> str:
    """What a command says that ends at once."""
    done = CliRunner().invoke(app, ["simulate", *arguments], env={"COLUMNS": "2000", "TERM": "dumb"})
    assert done.exit_code == 2
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--fault", "418=1"], "Error: The simulated provider can't do that: unknown fault '418'"),
        (["--fault", "500"], "write NAME=SHARE"),
        (["--rpm", "0"], "rpm is 0"),
        (["--algorithm", "leaky"], "leaky"),
        (["--ready-fd", "999"], "Error: --ready-fd: 999 is no open file descriptor"),
    ],
)
def test_bad_usage_exits_2_and_says_why(arguments: list[str], complaint: str) -> None:
    assert complaint in refused(*arguments)


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refused("--port", str(port))
    assert f"port {port}" in error
    assert "--port 0" in error
