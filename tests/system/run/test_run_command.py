"""`promptmill run` from outside: files in, files out, exit codes, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from tests.support.redis_server import RedisServer as RedisServerOfTests
from tests.support.waiting import wait_until, wait_until_async
from workers.cli import app
from workers.commands.run.output.state import RunState
from workers.commands.run.processes.environ import engine_environ
from workers.commands.run.processes.fleet import WorkerFleet
from workers.commands.run.processes.lifeline import Lifeline
from workers.commands.run.processes.redis_server import RedisServer
from workers.simulator import RunningSimulator, SimulatorOptions
from workers.simulator import start as start_simulator

from .run_harness import RunCommand, Started, read_rows, write_rows

QUICK = ("--simulate", "--latency-ms", "5", "--workers", "1")

SUMMARY_KEYS = {
    *("submitted", "succeeded", "failed", "cancelled", "expired", "wall_s", "throughput_per_s", "latency_s"),
    *("input_tokens", "output_tokens", "cost_usd", "attempts", "rate_limited", "cached", "provider_calls", "errors"),
}


def prompts(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {number} and 1?", "answer": "?"} for number in range(count)]


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# -- the whole way, simulated


@pytest.mark.covers("run", "input_file", "output", "as_json", "simulate")
def test_every_row_gets_its_answer(promptmill_run: RunCommand, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", prompts(300))
    first = promptmill_run("in.jsonl", "-o", "new/out.jsonl", *QUICK, "--json")
    assert first.code == 0, first.stderr
    summary = first.summary
    assert summary.keys() >= SUMMARY_KEYS
    assert (summary["submitted"], summary["succeeded"], summary["provider_calls"]) == (300, 300, 300)
    assert summary["latency_s"].keys() == {"p50", "p95", "p99"}
    assert summary["cost_usd"] > 0
    assert summary["prompt_fields"] == {"question": 300}

    output = tmp_path / "new" / "out.jsonl"
    rows = read_rows(output)
    assert sorted(rows) == list(range(1, 301))
    assert {line: row["custom_id"] for line, row in rows.items()} == {line: f"row-{line}" for line in rows}
    assert all(row["response"]["status_code"] == 200 and row["error"] is None for row in rows.values())
    assert all(row["promptmill"]["text"] for row in rows.values())
    assert names_in(tmp_path / "new") == ["out.jsonl"]

    before = output.stat()
    again = promptmill_run("in.jsonl", "-o", "new/out.jsonl", *QUICK)
    assert (again.code, output.stat().st_mtime_ns) == (0, before.st_mtime_ns)
    assert "300 from an earlier run" in again.stdout


def test_failed_rows_are_tried_again_and_others_not(promptmill_run: RunCommand, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", prompts(40))
    first = promptmill_run("in.jsonl", "-o", "out.jsonl", *QUICK, "--fault", "400=0.5", "--json")
    assert first.code == 1, first.stderr
    summary = first.summary
    failed = summary["failed"]
    assert 0 < failed < 40
    assert summary["errors"] == {"bad_request": failed}
    kept = {line: row for line, row in read_rows(tmp_path / "out.jsonl").items() if row["error"] is None}
    assert len(kept) == 40 - failed

    again = promptmill_run("in.jsonl", "-o", "out.jsonl", *QUICK, "--json")
    assert (again.code, again.summary["submitted"], again.summary["kept"]) == (0, failed, 40 - failed), again.stderr
    rows = read_rows(tmp_path / "out.jsonl")
    assert len(rows) == 40
    assert kept.items() <= rows.items()


@pytest.mark.covers("run", "model", "field", "limit", "concurrency")
def test_the_command_line_decides_model_field_rows_and_pace(promptmill_run: RunCommand, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [{"q": f"What is {number}?", "text": "not this"} for number in range(30)])
    slow = ("--simulate", "--latency-ms", "100", "--jitter", "0", "--workers", "1", "--concurrency", "1")
    arguments = ("--field", "q", "--model", "gpt-4o", "--limit", "20", *slow, "--json")
    finished = promptmill_run("in.jsonl", "-o", "out.jsonl", *arguments)
    assert finished.code == 0, finished.stderr
    assert (finished.summary["submitted"], finished.summary["prompt_fields"]) == (20, {"q": 20})
    assert finished.summary["wall_s"] >= 2.0, "one at a time"
    assert {row["promptmill"]["model"] for row in read_rows(tmp_path / "out.jsonl").values()} == {"gpt-4o"}


BAD_ROWS: list[tuple[Any, str, str]] = [
    ("not json", "bad_request", "not JSON"),
    ({"answer": "x"}, "bad_request", "no prompt"),
    ('{"prompt": NaN}', "bad_request", "NaN"),
    ('{"prompt": "\\ud800"}', "bad_request", "surrogate"),
    ('{"prompt": "' + "x" * 20_000_000 + '"}', "bad_request", "16 MiB"),
    ({"prompt": "Hi", "model": "gpt-40"}, "not_found", "gpt-4o"),
    ({"messages": [], "model": "gpt-4o"}, "bad_request", "messages"),
    ({"messages": [{"role": "user", "content": "Hi"}], "stream": True}, "bad_request", "stream"),
    ({"custom_id": "first", "prompt": "again"}, "bad_request", "custom_id"),
    ({"url": "/v1/images/generations", "body": {"model": "gpt-4o", "prompt": "Hi"}}, "bad_request", "none of /v1/chat"),
]


def test_bad_rows_are_named_and_good_rows_done(promptmill_run: RunCommand, tmp_path: Path) -> None:
    typed = {"__type__": "datetime", "__value__": "x"}
    good = [
        {"custom_id": "first", "prompt": "Hello"},
        {"messages": [{"role": "user", "content": "Hello", **typed}], **typed},
        {"model": "embedding-v2", "input": ["a", "b"]},
    ]
    rows = [good[0], *(bad for bad, _, _ in BAD_ROWS), "", *good[1:]]
    write_rows(tmp_path / "in.jsonl", rows)
    finished = promptmill_run("in.jsonl", "-o", "out.jsonl", *QUICK, "--json")
    assert finished.code == 2, finished.stderr
    assert (finished.summary["succeeded"], finished.summary["bad_rows"]) == (3, len(BAD_ROWS))
    output = read_rows(tmp_path / "out.jsonl")
    first = len(BAD_ROWS) + 3
    assert [line for line, row in sorted(output.items()) if row["error"] is None] == [1, first, first + 1]
    for line, (_, code, part) in enumerate(BAD_ROWS, start=2):
        error = output[line]["error"]
        assert error["code"] == code
        assert error["message"].startswith(f"in.jsonl:{line}: ")
        assert part in error["message"]
        assert f"in.jsonl:{line}: " in finished.stderr


def test_instructions_nulls_and_large_pictures_are_sent(promptmill_run: RunCommand, tmp_path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9_000_000}}
    rows = [
        {"instruction": "Sum up.", "input": "The mill stands by the river.", "output": ""},
        {"prompt": "Hello", "model": None},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}]},
    ]
    write_rows(tmp_path / "in.jsonl", rows)
    finished = promptmill_run("in.jsonl", "-o", "out.jsonl", "--model", "gpt-4o", *QUICK, "--json")
    assert finished.code == 0, finished.stderr
    output = read_rows(tmp_path / "out.jsonl")
    assert [output[line]["error"] for line in (1, 2, 3)] == [None] * 3
    assert {row["promptmill"]["model"] for row in output.values()} == {"gpt-4o"}


# -- ends that nobody planned, against a simulator that outlives the run


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[RunningSimulator]:
    """A provider without a key, with a catalogue that names it: the way without --simulate."""
    simulator = await start_simulator(SimulatorOptions(latency_ms=100, jitter=0))
    (tmp_path / "catalog.toml").write_text(
        f"""
        [providers.here]
        base_url = "{simulator.url}"
        [models."gpt-4o-mini"]
        provider = "here"
        """
    )
    yield simulator
    await simulator.stop()


async def some_rows_written(started: Started, output: Path) -> list[psutil.Process]:
    await wait_until_async(
        lambda: started.process.poll() is not None or (output.exists() and output.stat().st_size > 10_000),
        description="the first rows are written",
    )
    assert started.process.poll() is None, "it has ended before it could be interrupted"
    return started.children()


async def finish(started: Started) -> Any:
    return await asyncio.to_thread(started.finish)


ROWS = 1_500
SLOW = ("--workers", "1", "--concurrency", "50", "--json")


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
async def test_interrupted_run_continues_and_pays_nothing_twice(
    promptmill_run: RunCommand, tmp_path: Path, provider: RunningSimulator, way: signal.Signals
) -> None:
    write_rows(tmp_path / "in.jsonl", prompts(ROWS))
    environ = {"PROMPTMILL_CATALOG": "catalog.toml"}
    started = promptmill_run.start("in.jsonl", "-o", "out.jsonl", *SLOW, **environ)
    children = await some_rows_written(started, tmp_path / "out.jsonl")
    started.process.send_signal(way)
    finished = await finish(started)
    assert finished.code == (-way if way == signal.SIGKILL else 130), finished.stderr
    assert len(children) >= 3, "guardian, Redis, worker"
    await wait_until_async(lambda: all(map(is_gone, children)), description="no process stays behind")
    assert (tmp_path / "out.jsonl.promptmill").is_dir()
    if way != signal.SIGKILL:
        assert finished.summary["interrupted"] is True
        assert len(read_rows(tmp_path / "out.jsonl")) == finished.summary["succeeded"] > 0
        assert "promptmill" in finished.stderr.splitlines()[-1]

    again = await asyncio.to_thread(promptmill_run, "in.jsonl", "-o", "out.jsonl", *SLOW, **environ)
    assert again.code == 0, again.stderr
    rows = read_rows(tmp_path / "out.jsonl")
    assert len(rows) == ROWS
    assert again.summary["submitted"] + again.summary["kept"] == ROWS
    assert provider.stats()["calls"] == ROWS == sum(row["promptmill"]["attempts"] for row in rows.values())
    assert names_in(tmp_path) == ["catalog.toml", "in.jsonl", "out.jsonl"]


def test_stopping_before_the_first_row_leaves_nothing(promptmill_run: RunCommand, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", prompts(3))
    started = promptmill_run.start("in.jsonl", "-o", "out.jsonl", *QUICK)
    wait_until(
        lambda: any("celery" in child.cmdline() for child in started.children()), description="the worker starts"
    )
    children = started.children()
    started.process.terminate()
    assert started.finish().code == 130
    wait_until(lambda: all(map(is_gone, children)), description="no process stays behind")
    assert names_in(tmp_path) == ["in.jsonl"]


async def test_worker_that_dies_is_started_again(
    promptmill_run: RunCommand, tmp_path: Path, provider: RunningSimulator
) -> None:
    write_rows(tmp_path / "in.jsonl", prompts(700))
    started = promptmill_run.start("in.jsonl", "-o", "out.jsonl", *SLOW, PROMPTMILL_CATALOG="catalog.toml")
    children = await some_rows_written(started, tmp_path / "out.jsonl")
    next(child for child in children if "celery" in child.cmdline()).kill()
    finished = await finish(started)
    assert finished.code == 0, finished.stderr
    assert len(read_rows(tmp_path / "out.jsonl")) == finished.summary["succeeded"] == 700
    assert "is started again" in finished.stderr


async def test_redis_that_dies_ends_the_run_with_the_next_step(
    promptmill_run: RunCommand, tmp_path: Path, provider: RunningSimulator
) -> None:
    write_rows(tmp_path / "in.jsonl", prompts(700))
    started = promptmill_run.start("in.jsonl", "-o", "out.jsonl", *SLOW, PROMPTMILL_CATALOG="catalog.toml")
    children = await some_rows_written(started, tmp_path / "out.jsonl")
    next(child for child in children if "redis-server" in child.name()).kill()
    finished = await finish(started)
    assert finished.code == 1
    assert "Redis" in finished.stderr
    assert "Run the same command again" in finished.stderr
    assert "Traceback" not in finished.stderr
    await wait_until_async(lambda: all(map(is_gone, children)), description="no process stays behind")


@pytest.mark.covers("run", "workers", "redis")
async def test_running_workers_are_used(promptmill_run: RunCommand, tmp_path: Path, provider: RunningSimulator) -> None:
    lifeline, state = Lifeline(), RunState.open(tmp_path / "services")
    lifeline.open()
    server = await RedisServer.start(state.redis, lifeline=lifeline, log=state.log("redis"))
    environ = engine_environ(PROMPTMILL_REDIS_URL=server.url, PROMPTMILL_CATALOG=str(tmp_path / "catalog.toml"))
    fleet = WorkerFleet(size=1, concurrency=50, environ=environ, lifeline=lifeline, state=state)
    async with Redis.from_url(server.url) as redis:
        await fleet.start(redis, key_prefix="")
    write_rows(tmp_path / "in.jsonl", [*prompts(20), {"prompt": "Hi", "model": "gpt-40"}])
    arguments = ("in.jsonl", "-o", "out.jsonl", "--workers", "0", "--redis", server.url, "--json")
    finished = await asyncio.to_thread(promptmill_run, *arguments)
    assert (finished.code, finished.summary["succeeded"]) == (2, 20), finished.stderr
    assert read_rows(tmp_path / "out.jsonl")[21]["error"]["code"] == "not_found"
    await fleet.stop(grace_s=5)
    await server.stop()
    await lifeline.close()
    state.close(finished=True)


# -- refused before anything is started


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["run", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.mark.usefixtures("clean_environment")
class TestRefusals:
    @pytest.fixture
    def rows(self, tmp_path: Path) -> Path:
        return write_rows(tmp_path / "in.jsonl", prompts(3))

    def test_missing_key(self, rows: Path, tmp_path: Path) -> None:
        text = refused(rows, "-o", "out.jsonl")
        assert "OPENAI_API_KEY" in text
        assert "--simulate" in text
        assert names_in(tmp_path) == ["in.jsonl"], "nothing is left of a run that never was"

    def test_placeholder_key(self, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-your-key")
        text = refused(rows, "-o", "out.jsonl")
        assert "OPENAI_API_KEY" in text
        assert "sk-your-key" not in text

    def test_missing_input(self) -> None:
        assert "No such file" in refused("nowhere.jsonl", "-o", "out.jsonl", "--simulate")

    def test_standard_input(self) -> None:
        assert "Save it to a file" in refused("-", "-o", "out.jsonl", "--simulate")

    def test_output_that_is_a_directory(self, rows: Path, tmp_path: Path) -> None:
        (tmp_path / "taken").mkdir()
        assert "Can't write the output" in refused(rows, "-o", "taken", "--simulate")

    @pytest.mark.parametrize("output", ["in.jsonl/out.jsonl", "/dev/null/out.jsonl"])
    def test_output_that_can_not_be_written(self, rows: Path, output: str) -> None:
        assert "Choose another place with -o" in refused(rows, "-o", output, "--simulate")

    def test_output_of_somebody_else(self, rows: Path) -> None:
        before = rows.read_bytes()
        assert "in.jsonl:1 is no output row" in refused(rows, "-o", rows, "--simulate")
        assert rows.read_bytes() == before

    def test_output_that_another_run_writes(self, rows: Path, tmp_path: Path) -> None:
        state = RunState.open(tmp_path / "out.jsonl")
        assert "Another `promptmill run`" in refused(rows, "-o", "out.jsonl", "--simulate")
        state.close(finished=True)

    def test_running_workers_need_a_redis(self, rows: Path) -> None:
        assert "--redis" in refused(rows, "-o", "out.jsonl", "--workers", "0")

    def test_redis_that_is_not_there(self, rows: Path) -> None:
        text = refused(rows, "-o", "out.jsonl", "--workers", "0", "--redis", "redis://:hush@127.0.0.1:1/0")
        assert "127.0.0.1:1" in text
        assert "hush" not in text

    def test_redis_url_that_is_none(self, rows: Path) -> None:
        assert "redis://" in refused(rows, "-o", "out.jsonl", "--redis", "http://:hush@here")

    def test_options_of_the_simulator_without_it(self, rows: Path) -> None:
        assert "Add --simulate" in refused(rows, "-o", "out.jsonl", "--latency-ms", "5", "--fault", "429=0.1")

    def test_options_that_the_simulator_refuses(self, rows: Path) -> None:
        assert "nonsense" in refused(rows, "-o", "out.jsonl", "--simulate", "--fault", "nonsense=0.1")

    def test_bad_setting(self, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PROMPTMILL_CONCURRENCY", "many")
        assert "PROMPTMILL_CONCURRENCY" in refused(rows, "-o", "out.jsonl", "--simulate")

    def test_bad_catalogue(self, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PROMPTMILL_CATALOG", "nowhere.toml")
        assert "nowhere.toml" in refused(rows, "-o", "out.jsonl", "--simulate")

    def test_missing_options(self) -> None:
        assert "--output" in refused("in.jsonl")


def test_changed_input_is_noticed_before_anything_is_sent(promptmill_run: RunCommand, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", prompts(3))
    assert promptmill_run("in.jsonl", "-o", "out.jsonl", *QUICK).code == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    write_rows(rows, [*prompts(1), {"question": "Another?"}, *prompts(1)])
    changed = promptmill_run("in.jsonl", "-o", "out.jsonl", *QUICK)
    assert changed.code == 2
    assert "in.jsonl:2 is not the row" in changed.stderr
    write_rows(rows, prompts(2))
    assert "only 2 of them" in promptmill_run("in.jsonl", "-o", "out.jsonl", *QUICK).stderr
    write_rows(rows, prompts(3))
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    for option, value in (("--model", "gpt-4o"), ("--schema", "schema.json")):
        changed = promptmill_run("in.jsonl", "-o", "out.jsonl", option, value, *QUICK)
        assert option in changed.stderr.partition("has changed since")[0]
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_rows_with_a_custom_id_may_move(promptmill_run: RunCommand, tmp_path: Path) -> None:
    """Sorted, and with rows put in front and between: each old row keeps its answer, the new ones alone are sent."""
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    named = [{"custom_id": f"q-{number}", **row} for number, row in enumerate(prompts(20))]
    write_rows(path, named)
    assert promptmill_run("in.jsonl", "-o", "out.jsonl", *QUICK).code == 0
    kept = output.read_bytes()
    new = [{"custom_id": name, "question": f"And {name}?"} for name in ("a", "b")]
    write_rows(path, [new[0], *reversed(named[:10]), new[1], *named[10:]])
    again = promptmill_run("in.jsonl", "-o", "out.jsonl", *QUICK, "--json")
    assert again.code == 0, again.stderr
    assert (again.summary["kept"], again.summary["provider_calls"]) == (20, 2)
    assert output.read_bytes().startswith(kept)
    added = [json.loads(line) for line in output.read_bytes().removeprefix(kept).splitlines()]
    assert {row["custom_id"]: row["promptmill"]["line"] for row in added} == {"a": 1, "b": 12}

    write_rows(path, [new[0], named[0], {**named[1], "question": "Something else?"}, *named[2:], new[1]])
    changed = promptmill_run("in.jsonl", "-o", "out.jsonl", *QUICK)
    assert changed.code == 2
    assert "in.jsonl:3 is not the row" in changed.stderr


def test_a_limit_does_not_hide_that_rows_without_id_have_moved(promptmill_run: RunCommand, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", prompts(3))
    assert promptmill_run("in.jsonl", "-o", "out.jsonl", *QUICK).code == 0
    assert promptmill_run("in.jsonl", "-o", "out.jsonl", "--limit", "1", *QUICK).code == 0
    write_rows(path, [{"custom_id": "new", "question": "And?"}, *prompts(3)])
    moved = promptmill_run("in.jsonl", "-o", "out.jsonl", "--limit", "1", *QUICK)
    assert moved.code == 2, moved.stderr
    assert "in.jsonl:2 is not the row" in moved.stderr


# -- the command line itself


@pytest.mark.parametrize("output", ["-", "/dev/null", "out.csv", "out.jsonl.gz"])
def test_an_output_that_run_can_not_write_is_refused_at_once(
    promptmill_run: RunCommand, tmp_path: Path, output: str
) -> None:
    write_rows(tmp_path / "in.jsonl", prompts(1))
    refused = promptmill_run("in.jsonl", "-o", output, *QUICK)
    assert refused.code == 2
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert names_in(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize(
    "text", ["question,answer\nWhat?,That.\n", "[\n  {}\n]\n", "Hello\n"], ids=["csv", "list", "text"]
)
def test_an_input_that_is_no_json_lines_is_refused_at_once(
    promptmill_run: RunCommand, tmp_path: Path, text: str
) -> None:
    (tmp_path / "in.jsonl").write_text(text)
    refused = promptmill_run("in.jsonl", "-o", "out.jsonl", *QUICK)
    assert refused.code == 2
    assert "in.jsonl:1 is no JSON object, so nothing is sent" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert names_in(tmp_path) == ["in.jsonl"]


def test_a_run_whose_first_rows_fail_alike_stops_with_the_reason(promptmill_run: RunCommand, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", prompts(3_000))
    stopped = promptmill_run("in.jsonl", "-o", "out.jsonl", *QUICK, "--fault", "401=1.0")
    assert stopped.code == 1, stopped.stderr
    assert "The first 20 rows have all failed alike, so the rest is not sent: auth:" in stopped.stderr
    assert "The provider said: " in stopped.stderr
    rows = read_rows(tmp_path / "out.jsonl")
    assert len(rows) < 2_500
    assert {row["error"]["code"] for row in rows.values()} == {"auth"}


def test_a_run_that_waits_for_its_provider_says_so_once(promptmill_run: RunCommand, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", prompts(3))
    (tmp_path / "own.toml").write_text('[providers.mute]\nbase_url = "http://127.0.0.1:1/v1"\nany_model = true\n')
    options = {"PROMPTMILL_CATALOG": "own.toml", "PROMPTMILL_BREAKER__PATIENCE_S": "4"}
    ended = promptmill_run("in.jsonl", "-o", "out.jsonl", "--model", "m", "--workers", "2", **options)
    assert ended.code == 1
    assert ended.stderr.count("Provider mute (127.0.0.1:1) can't be reached (") == 1, ended.stderr
    assert "; its jobs wait. They go on by themselves." in ended.stderr and "PROMPTMILL_HTTP__PROXY" in ended.stderr


def test_workers_0_without_workers_says_so(promptmill_run: RunCommand, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", prompts(1))
    (tmp_path / "redis").mkdir()
    server = RedisServerOfTests(tmp_path / "redis")
    try:
        refused = promptmill_run("in.jsonl", "-o", "out.jsonl", "--workers", "0", "--redis", server.url)
    finally:
        server.close()
    assert refused.code == 2
    assert "--workers 0 uses workers that run already, and none listens at 127.0.0.1" in refused.stderr


def test_version_and_help() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["--version"]).output.startswith("promptmill ")
    text = runner.invoke(app, ["--help"]).output
    assert "run" in text
    assert "simulate" in text
    assert runner.invoke(app, ["nonsense"]).exit_code == 2
