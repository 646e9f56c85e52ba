"""The worker's log lines (workers/telemetry/logs.py)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import get_settings
from workers.telemetry import logs


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    names = ["", *logs.JOB_LOGGERS]
    before = {name: logging.getLogger(name).level for name in names}
    handlers = logging.getLogger().handlers[:]
    get_settings.cache_clear()
    yield
    for handler in logging.getLogger().handlers:
        if handler not in handlers:
            handler.close()
    logging.getLogger().handlers[:] = handlers
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
    get_settings.cache_clear()


def written(path: Path) -> str:
    for handler in logging.getLogger().handlers:
        handler.flush()
    return path.read_text()


def fail_with(secret: str) -> None:
    key_of_a_provider = secret
    raise RuntimeError("no reason given") from KeyError(len(key_of_a_provider))


@pytest.mark.parametrize("as_json", ["true", "false"])
def test_a_traceback_shows_no_local_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: str) -> None:
    monkeypatch.setenv("PROMPTMILL_LOG__JSON", as_json)
    logs.configure(logfile=str(tmp_path / "log"))
    secret = "sk-" + "canary"  # in two parts, because a traceback shows the lines of source
    try:
        fail_with(secret)
    except RuntimeError:
        logging.getLogger("promptmill.test").exception("it failed")
    text = written(tmp_path / "log")
    assert "RuntimeError: no reason given" in text
    assert "fail_with" in text
    assert secret not in text


@pytest.mark.covers("setting", "log.json")
def test_each_line_is_a_json_object_where_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_LOG__JSON", "true")
    logs.configure(logfile=str(tmp_path / "log"))
    logging.getLogger("promptmill.test").info("%d jobs\nin two lines", 3)
    (line,) = written(tmp_path / "log").splitlines()
    assert (
        json.loads(line).items()
        >= {"event": "3 jobs\nin two lines", "level": "info", "logger": "promptmill.test"}.items()
    )


def test_configured_again_it_goes_by_the_latest_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs.configure()
    monkeypatch.setenv("PROMPTMILL_LOG__JOBS", "true")
    get_settings.cache_clear()
    logs.configure(logfile=str(tmp_path / "log"))
    logging.getLogger("celery.app.trace").info("Task succeeded")
    assert "Task succeeded" in written(tmp_path / "log")


@pytest.mark.covers("setting", "log.jobs")
@pytest.mark.parametrize(("jobs", "shown"), [("true", True), ("false", False)])
def test_a_job_has_lines_of_its_own_only_where_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str, shown: bool
) -> None:
    monkeypatch.setenv("PROMPTMILL_LOG__JOBS", jobs)
    logs.configure(logfile=str(tmp_path / "log"))
    logging.getLogger("celery.app.trace").info("Task succeeded")
    logging.getLogger("celery.app.trace").warning("Task in trouble")
    text = written(tmp_path / "log")
    assert ("Task succeeded" in text) is shown
    assert "Task in trouble" in text


@pytest.mark.covers("setting", "log.level")
def test_what_is_below_the_level_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_LOG__LEVEL", "error")
    logs.configure(logfile=str(tmp_path / "log"))
    logging.getLogger("promptmill.test").warning("a warning")
    logging.getLogger("promptmill.test").error("an error")
    text = written(tmp_path / "log")
    assert "an error" in text
    assert "a warning" not in text
