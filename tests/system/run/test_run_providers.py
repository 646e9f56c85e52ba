"""`promptmill run` through each wire, and to a server that no catalogue names: real processes, a strict provider."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from workers.simulator import RunningSimulator, SimulatorOptions, start

from .run_harness import RunCommand

GSM8K = Path(__file__).parents[3] / "examples" / "gsm8k.jsonl"
ROWS = 60
INPUT_USD, OUTPUT_USD = Decimal("0.15"), Decimal("0.60")
"""Of gpt-4o-mini, per million tokens: the preset's."""

KEY = "sk-own-0123456789abcdef"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.covers("run", "dialect")
@pytest.mark.parametrize("dialect", ["azure", "anthropic", "gemini"])
def test_each_question_is_answered_once_at_the_limit(dialect: str, promptmill_run: RunCommand, tmp_path: Path) -> None:
    limited = ("--rpm", "1200", "--algorithm", "sliding", "--latency-ms", "20", "--workers", "1")
    arguments = ("--limit", str(ROWS), "--simulate", "--dialect", dialect, *limited, "--json")
    finished = promptmill_run(GSM8K, "-o", "out.jsonl", *arguments)
    assert finished.code == 0, finished.stderr
    summary = finished.summary
    assert (summary["succeeded"], summary["provider_calls"], summary["rate_limited"]) == (ROWS, ROWS, 0)
    bodies = [row["response"]["body"] for row in rows_of(tmp_path / "out.jsonl")]
    usages = [body["usage"] for body in bodies]
    cost = sum(INPUT_USD * each["prompt_tokens"] + OUTPUT_USD * each["completion_tokens"] for each in usages)
    assert Decimal(str(summary["cost_usd"])) == pytest.approx(cost / 1_000_000, abs=Decimal("0.000001"))
    assert all(body["object"] == "chat.completion" for body in bodies)
    assert [body["id"].startswith("msg_") for body in bodies] == [dialect == "anthropic"] * ROWS


@pytest.fixture
def own_server() -> Iterator[RunningSimulator]:
    """A server with a key, on a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    options = SimulatorOptions(latency_ms=0, api_key=KEY)
    server = asyncio.run_coroutine_threadsafe(start(options), loop).result(timeout=10)
    yield server
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(timeout=10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=10)
    loop.close()


@pytest.mark.covers("run", "base_url", "api_key_env")
def test_a_server_that_no_catalogue_names(
    promptmill_run: RunCommand, own_server: RunningSimulator, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "model": "gpt-4o"}\n', encoding="utf-8")
    where = ("--base-url", own_server.url, "--api-key-env", "OWN_KEY", "--workers", "1", "--json")
    finished = promptmill_run("in.jsonl", "-o", "out.jsonl", "--model", "org/own", *where, OWN_KEY=KEY)
    assert finished.code == 0, finished.stderr
    assert own_server.stats()["calls"] == 2
    rows = rows_of(tmp_path / "out.jsonl")
    assert {row["promptmill"]["answered_by"] for row in rows} == {"server/org/own"}
    assert KEY not in (tmp_path / "out.jsonl").read_text(encoding="utf-8") + finished.stderr + finished.stdout


def test_without_a_model_the_rows_must_name_it(
    promptmill_run: RunCommand, own_server: RunningSimulator, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "model": "gpt-4o"}\n{"prompt": "b"}\n', encoding="utf-8")
    where = ("--base-url", own_server.url, "--api-key-env", "OWN_KEY", "--workers", "1", "--json")
    finished = promptmill_run("in.jsonl", "-o", "out.jsonl", *where, OWN_KEY=KEY)
    assert (finished.code, finished.summary["succeeded"], finished.summary["bad_rows"]) == (2, 1, 1)
    assert "give --model" in finished.stderr
    answered = [row["promptmill"].get("answered_by") for row in rows_of(tmp_path / "out.jsonl")]
    assert "server/gpt-4o" in answered, "a preset's name is the server's own here"


def test_a_providers_own_name_needs_no_catalogue(promptmill_run: RunCommand, tmp_path: Path) -> None:
    """The run's check, the client's and the worker's agree on it."""
    (tmp_path / "in.jsonl").write_text(
        '{"prompt": "a", "model": "groq/maker/new"}\n{"prompt": "b", "model": "nobody/new"}\n', encoding="utf-8"
    )
    finished = promptmill_run("in.jsonl", "-o", "out.jsonl", "--simulate", "--workers", "1", "--json")
    assert (finished.code, finished.summary["succeeded"], finished.summary["bad_rows"]) == (2, 1, 1)
    [good, bad] = sorted(rows_of(tmp_path / "out.jsonl"), key=lambda row: row["custom_id"])
    assert (good["promptmill"]["answered_by"], good["promptmill"]["cost_usd"]) == ("groq/maker/new", None)
    assert bad["error"]["code"] == "not_found"


SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer", "minimum": 0}, "why": {"type": "string"}},
    "required": ["answer", "why"],
    "additionalProperties": False,
}


@pytest.mark.covers("run", "schema", "repair")
@pytest.mark.parametrize("dialect", ["anthropic", "deepseek"])
def test_every_answer_fits_the_schema(dialect: str, promptmill_run: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    broken = ("--simulate", "--dialect", dialect, "--fault", "badjson=0.5", "--latency-ms", "0", "--workers", "1")
    asked = ("--schema", "schema.json", "--repair", "1", "--limit", str(ROWS), "--json")
    finished = promptmill_run(GSM8K, "-o", "out.jsonl", *broken, *asked)
    assert finished.code == 0, finished.stderr
    rows = rows_of(tmp_path / "out.jsonl")
    answers = [json.loads(row["response"]["body"]["choices"][0]["message"]["content"]) for row in rows]
    assert all(type(each["answer"]) is int and each.keys() == {"answer", "why"} for each in answers)
    repaired = [row["promptmill"]["repaired"] for row in rows]
    assert {"syntax", "asked_again"} <= set(repaired)
    assert finished.summary["provider_calls"] == ROWS + repaired.count("asked_again")
