"""A file of rows at a provider whose day is used up: people are told, and no row is given up."""

from __future__ import annotations

from pathlib import Path

from ...support.scripted import Answer, Asked, ScriptedProvider, completion
from .run_harness import RunCommand, Started, read_rows, write_rows

ROWS = 40
ANSWERED = 3


def day_is_used_up(asked: Asked) -> Answer:
    if asked.number < ANSWERED:
        return Answer(200, completion())
    return Answer(429, {"error": {"message": "The day's quota is used up."}}, {"Retry-After": "3600"})


def said_until(run: Started, text: str) -> str:
    """What the run has said up to the line with this text. The test's own time limit ends the wait."""
    assert run.process.stderr is not None
    said = ""
    for line in run.process.stderr:
        said += line
        if text in line:
            return said
    raise AssertionError(f"the run ended and said: {said}")


def test_a_run_says_that_the_provider_asks_for_an_hour(promptmill_run: RunCommand, tmp_path: Path) -> None:
    provider = ScriptedProvider(day_is_used_up)
    try:
        (tmp_path / "own.toml").write_text(
            f'[providers.tired]\nbase_url = "{provider.base_url}"\n[models.m]\nprovider = "tired"\n'
        )
        write_rows(tmp_path / "in.jsonl", [{"prompt": f"row {number}"} for number in range(ROWS)])
        # A shorter pause than the usual minute before the second answer is asked for.
        options = {"PROMPTMILL_CATALOG": "own.toml", "PROMPTMILL_RETRY__CAP_S": "2"}
        run = promptmill_run.start("in.jsonl", "-o", "out.jsonl", "--model", "m", "--workers", "1", **options)
        said = said_until(run, "asks to wait")
        calls = len(provider.asked)
        run.interrupt()
        ended = run.finish()
    finally:
        provider.close()
    assert "Provider tired asks to wait 60 minutes before the next call of m" in said
    assert ended.code == 130, ended.stderr
    assert len(read_rows(tmp_path / "out.jsonl")) == ANSWERED, "no row was given up"
    assert calls <= ROWS + 2, "each row that was under way, and the probe"
