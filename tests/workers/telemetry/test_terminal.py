"""What stands in messages is shown to people without a control character (workers/telemetry/terminal.py)."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from config.settings import get_settings
from tasks import JobError, PromptResult
from tasks.wire import redis_keys
from tests.support.redis_server import RedisServer
from workers.cli import app
from workers.telemetry import logs
from workers.telemetry.terminal import printable, printable_json, printable_lines

HOSTILE = "id\x1b[2J\x9b31m\r\nforged line\u202e"
LETTER: dict[str, Any] = {
    "id": HOSTILE,
    "kind": "unknown_task",
    "task": f"task {HOSTILE}",
    "reason": f"no task {HOSTILE}",
    "queue": "prompts",
    "at": 1_700_000_000,
    "message": HOSTILE,
}


def shown(server: RedisServer, *arguments: str) -> str:
    environ = {"COLUMNS": "300", "TERM": "dumb"}
    output = CliRunner().invoke(app, [*arguments, "--redis", server.url], env=environ).output
    assert not [line for line in output.split("\n") if not line.isprintable()], output
    assert not [line for line in output.split("\n") if line.startswith("forged")], output
    return output


def test_dead_letters_move_no_cursor_and_forge_no_line(server: RedisServer) -> None:
    with server.client() as client:
        client.delete(redis_keys.DEAD)
        client.lpush(redis_keys.DEAD, json.dumps(LETTER))
    assert r"id\x1b[2J\x9b31m\r\nforged line\u202e" in shown(server, "dead", "list")
    (line,) = shown(server, "dead", "list", "--json").splitlines()
    assert json.loads(line)["id"] == HOSTILE
    as_json = json.loads(shown(server, "dead", "show", HOSTILE))
    assert (as_json["id"], as_json["message"]) == (HOSTILE, HOSTILE)
    shown(server, "dead", "show", "\x1b[2J")


def test_the_reason_of_a_failure_is_shown_in_one_line(server: RedisServer) -> None:
    failed = PromptResult("j", "failed", error=JobError(code="bad_request", message=HOSTILE))
    stored = {"exc_type": "BadRequest", "exc_message": [HOSTILE], "promptmill": failed.to_dict()}
    with server.client() as client:
        client.set(redis_keys.result("j"), json.dumps({"status": "FAILURE", "result": stored}))
    assert r"\x1b[2J" in shown(server, "status", "j")


@pytest.fixture
def _plain_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    get_settings.cache_clear()
    monkeypatch.setenv("PROMPTMILL_LOG__JSON", "false")
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    for handler in logging.getLogger().handlers:
        if handler not in handlers:
            handler.close()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
    get_settings.cache_clear()


@pytest.mark.usefixtures("_plain_logging")
def test_plain_log_lines_can_not_be_forged(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logs.configure(logfile=str(path))
    logger = logging.getLogger("promptmill.test")
    logger.warning("task %s was refused", HOSTILE)
    try:
        raise RuntimeError(HOSTILE)
    except RuntimeError:
        logger.exception("it failed")
    lines = path.read_text().split("\n")
    assert all(line.isprintable() for line in lines)
    assert r"task id\x1b[2J\x9b31m\r\nforged line\u202e was refused" in lines[0]
    assert not [line for line in lines if line.startswith("forged")]
    assert any(line == r"    forged line\u202e" for line in lines), "the exception's own lines stand apart"


@given(st.text())
def test_every_text_becomes_one_printable_line(text: str) -> None:
    assert printable(text).isprintable()
    assert all(line.isprintable() for line in printable_lines(text).split("\n"))


@given(st.recursive(st.text(), lambda values: st.lists(values) | st.dictionaries(st.text(), values)))
def test_json_says_the_same(value: Any) -> None:
    text = printable_json(json.dumps(value, ensure_ascii=False, indent=2))
    assert json.loads(text) == value
    assert all(line.isprintable() for line in io.StringIO(text).read().split("\n"))
