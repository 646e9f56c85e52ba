"""The output file, its state directory, and the counts at the end."""

from __future__ import annotations

import json
import math
import os
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from config.catalog import Limits, load_catalog
from tasks.results import Attempt, JobError, PromptResult, Usage
from workers.cli import app as promptmill
from workers.commands.run.errors import UnusableInput
from workers.commands.run.input.rows import BadRow
from workers.commands.run.options import RunOptions
from workers.commands.run.output.latency import LatencyHistogram
from workers.commands.run.output.output_file import OutputFile, answer_line, refusal_line
from workers.commands.run.output.progress import Snapshot, duration
from workers.commands.run.output.state import RunState
from workers.commands.run.output.summary import Outcome, next_step, summary_numbers, summary_table
from workers.commands.run.output.tally import Tally
from workers.commands.run.processes.simulation import Simulation, simulated_catalog
from workers.simulator.options import SimulatorOptions

DIGEST = "00000000000000ab"


def succeeded(**values: object) -> PromptResult:
    fields = {"id": "job", "text": "Hi", "response": {"id": "chatcmpl-1"}, "attempts": 1, **values}
    return PromptResult(status="succeeded", **fields)  # type: ignore[arg-type]


def failed(code: str = "timeout", **values: object) -> PromptResult:
    error = JobError(code=code, message="too slow")  # type: ignore[arg-type]
    return PromptResult(id="job", status="failed", error=error, attempts=1, **values)  # type: ignore[arg-type]


def row_of(result: PromptResult, *, line: int = 1, digest: str = DIGEST) -> bytes:
    return answer_line(result, custom_id=f"row-{line}", line=line, digest=digest)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    output = tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.promptmill").mkdir()
    return output


def reopened(path: Path, content: bytes) -> OutputFile:
    path.write_bytes(content)
    output = OutputFile.open(path)
    output.close()
    return output


# -- rows


def test_answer_is_a_batch_output_line() -> None:
    result = succeeded(usage=Usage(3, 4), failed_attempts=(Attempt(code="timeout", message="x"),))
    row = json.loads(row_of(result, line=7))
    assert row["response"] == {"status_code": 200, "request_id": "chatcmpl-1", "body": {"id": "chatcmpl-1"}}
    assert (row["id"], row["custom_id"], row["error"]) == ("job", "row-7", None)
    expected = result.to_dict() | {"line": 7, "row_digest": DIGEST}
    del expected["response"]
    assert row["promptmill"] == json.loads(json.dumps(expected))


def test_failure_has_an_error_and_no_response() -> None:
    row = json.loads(row_of(failed()))
    assert (row["response"], row["error"]) == (None, {"code": "timeout", "message": "too slow"})


def test_refusal_names_file_and_line() -> None:
    row = json.loads(refusal_line(BadRow(3, "row-3", "no prompt"), job_id="job", input_path=Path("in.jsonl")))
    assert row["error"] == {"code": "bad_request", "message": "in.jsonl:3: no prompt"}
    assert (row["custom_id"], row["promptmill"]["status"]) == ("row-3", "failed")


@pytest.mark.parametrize("odd", [2**70, "\ud800", 1.5])
def test_answers_that_orjson_refuses_are_written_too(odd: object) -> None:
    result = succeeded(response={"odd": odd}, failed_attempts=(Attempt(code="timeout", message="x"),))
    row = json.loads(row_of(result))
    assert row["response"]["body"] == {"odd": odd}
    assert row["promptmill"]["failed_attempts"][0]["code"] == "timeout"


# -- continuing


def test_answered_rows_are_kept_and_others_taken_out(path: Path) -> None:
    kept = row_of(succeeded(), line=1) + row_of(succeeded(), line=5)
    bad = refusal_line(BadRow(3, "row-3", "why"), job_id="job", input_path=Path("in"))
    output = reopened(path, row_of(succeeded(), line=1) + row_of(failed(), line=2) + bad + row_of(succeeded(), line=5))
    assert path.read_bytes() == kept
    assert [output.finished.digest(f"row-{line}") for line in (1, 2, 3, 5, 99)] == [DIGEST, None, None, DIGEST, None]


def test_a_line_that_was_cut_is_taken_out(path: Path) -> None:
    whole = row_of(succeeded(), line=1)
    for cut in (1, len(whole) // 2, len(whole) - 1):
        output = reopened(path, whole + row_of(succeeded(), line=2)[:cut])
        assert (path.read_bytes(), output.finished.count) == (whole, 1)


def test_a_row_that_is_there_twice_is_kept_once(path: Path) -> None:
    reopened(path, row_of(succeeded(), line=1) * 2)
    assert path.read_bytes() == row_of(succeeded(), line=1)


@pytest.mark.parametrize("content", [b"hello\n", b"{}\n", b"[]\n", b'{"promptmill": {"line": 1}}\n', b"null\n"])
def test_somebody_elses_file_is_left_alone(path: Path, content: bytes) -> None:
    with pytest.raises(UnusableInput, match=r"out\.jsonl:2"):
        reopened(path, row_of(succeeded()) + content)
    assert path.read_bytes() == row_of(succeeded()) + content


@given(statuses=st.lists(st.booleans(), max_size=30), cut=st.integers(0, 400))
def test_any_prefix_of_an_output_can_be_continued(
    tmp_path_factory: pytest.TempPathFactory, statuses: list[bool], cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "out.jsonl"
    RunState.open(path).close(finished=False)
    rows = [row_of(succeeded() if ok else failed(), line=line) for line, ok in enumerate(statuses, start=1)]
    whole = b"".join(rows)
    output = reopened(path, whole[: max(0, len(whole) - cut)])
    kept = path.read_bytes().splitlines(keepends=True)
    assert len(kept) == output.finished.count
    assert set(kept) <= {row for row, ok in zip(rows, statuses, strict=True) if ok}


# -- state


def test_job_ids_stay_the_same_until_the_run_has_finished(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    first = RunState.open(output)
    job_id = first.job_id(custom_id="row-1", digest=DIGEST)
    first.close(finished=False)
    again = RunState.open(output)
    assert (again.job_id(custom_id="row-1", digest=DIGEST), again.is_new, first.is_new) == (job_id, False, True)
    assert again.job_id(custom_id="row-2", digest=DIGEST) != job_id
    again.close(finished=True)
    assert not again.directory.exists()
    new = RunState.open(output)
    assert new.job_id(custom_id="row-1", digest=DIGEST) != job_id
    new.close(finished=True)


def test_two_runs_can_not_write_one_output(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    state = RunState.open(output)
    with pytest.raises(UnusableInput, match="Another"):
        RunState.open(output)
    state.close(finished=True)
    RunState.open(output).close(finished=True)


def test_state_is_private(tmp_path: Path) -> None:
    state = RunState.open(tmp_path / "out.jsonl")
    assert state.directory.stat().st_mode & 0o077 == 0
    state.close(finished=True)


# -- counts


@given(st.lists(st.floats(1e-5, 1e4), min_size=1), st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_percentiles_are_within_one_percent(durations_s: list[float], share: float) -> None:
    histogram = LatencyHistogram()
    for duration_s in durations_s:
        histogram.add(duration_s)
    exact_s = sorted(durations_s)[max(1, math.ceil(share * len(durations_s))) - 1]
    assert histogram.percentile_s(share) == pytest.approx(exact_s, rel=0.01)


def test_percentile_of_nothing() -> None:
    assert LatencyHistogram().percentile_s(0.5) is None


def test_durations_out_of_any_range_are_counted() -> None:
    histogram = LatencyHistogram()
    for duration_s in (0.0, -1.0, 1e9):
        histogram.add(duration_s)
    assert histogram.percentile_s(0.1) == pytest.approx(1e-6, rel=0.01)


def test_cost_is_exact_and_unknown_is_not_zero() -> None:
    tally = Tally()
    for _ in range(10):
        tally.end(succeeded(cost_usd=0.1))
    assert tally.cost_usd == Decimal(1)
    tally.end(succeeded())
    assert (tally.cost_usd, tally.unpriced) == (Decimal(1), 1)
    assert summary_numbers(Outcome(Tally(), wall_s=1, startup_s=1))["cost_usd"] is None


def test_what_the_cache_saved_stands_in_the_summary() -> None:
    tally = Tally()
    for result in (
        succeeded(cost_usd=0.2),
        succeeded(cached=True, cost_usd=0.0, saved_usd=0.2),
        succeeded(cached=True),
    ):
        tally.end(result)
    outcome = Outcome(tally, wall_s=1, startup_s=1)
    numbers = summary_numbers(outcome)
    assert (numbers["cached"], numbers["saved_usd"]) == (2, 0.2)
    assert "2 (67%), $0.2000 saved" in [*summary_table(outcome).columns[1].cells]


def test_429s_count_where_the_job_succeeded_too() -> None:
    tally = Tally()
    refused = Attempt(code="rate_limited", message="x", http_status=429)
    tally.end(succeeded(attempts=3, failed_attempts=(refused, refused)))
    error = JobError(code="rate_limited", message="x", attempts=(refused,))
    tally.end(PromptResult(id="job", status="failed", error=error, attempts=1))
    assert (tally.rate_limited, tally.attempts) == (3, 4)


def test_exit_codes() -> None:
    def code(*results: PromptResult, bad: bool = False, interrupted: bool = False) -> int:
        tally = Tally()
        for result in results:
            tally.end(result)
        if bad:
            tally.refuse(BadRow(1, "row-1", "why"))
        return Outcome(tally, wall_s=1, startup_s=1, interrupted=interrupted).exit_code

    assert code(succeeded()) == 0
    assert code(succeeded(), failed()) == 1
    assert code(succeeded(), failed(), bad=True) == 2
    assert code(succeeded(), bad=True, interrupted=True) == 130


def test_the_line_to_continue_can_be_pasted() -> None:
    outcome = Outcome(Tally(), wall_s=1, startup_s=1, interrupted=True)
    assert next_step(outcome, output=Path("o"), arguments=["run", "my file"]).endswith("promptmill run 'my file'")


def test_the_next_step_says_why_the_first_row_failed() -> None:
    tally = Tally()
    error = JobError(code="auth", message="the key is refused\x1b[2J; check KEY")
    tally.end(PromptResult(id="job", status="failed", error=error, attempts=1))
    tally.end(failed())
    said = next_step(Outcome(tally, wall_s=1, startup_s=1), output=Path("o"), arguments=["run"])
    assert said.splitlines()[0] == r"The first row that failed: auth: the key is refused\x1b[2J; check KEY"
    assert "too slow" not in said


def test_the_next_step_names_the_codes_of_bad_rows() -> None:
    tally = Tally()
    tally.refuse(BadRow(1, "row-1", "why", "permission"))
    tally.refuse(BadRow(2, "row-2", "why"))
    said = next_step(Outcome(tally, wall_s=1, startup_s=1), output=Path("o"), arguments=["run"])
    assert "with code bad_request or permission and" in said


def test_progress_says_what_is_left() -> None:
    now = Snapshot(done=50, total=1_050, rate_per_s=10.0, queued=7, failed=2, rate_limited=3, tokens=9, cost_usd=0.5)
    assert now.text(200) == (
        "50/1,050 rows · 7 queued · 2 failed · 10/s · 1 min 40 s left · 3 x 429 · $0.5000 · 9 tokens"
    )


def test_progress_fits_a_terminal_and_keeps_what_matters() -> None:
    now = Snapshot(
        done=999_999,
        total=1_000_000,
        rate_per_s=2_129.0,
        queued=2_000,
        failed=12_345,
        rate_limited=1_234,
        tokens=123_456_789,
        cost_usd=1_234.5,
    )
    assert len(now.text()) <= 79
    assert now.text().startswith("999,999/1,000,000 rows · 2,000 queued · 12,345 failed · 2,129/s · 0 s left")


def test_durations_as_people_say_them() -> None:
    assert [duration(time_s) for time_s in (None, 4.2, 200, 7_500)] == ["?", "4 s", "3 min 20 s", "2 h 5 min"]


# -- simulation


def test_simulated_catalog_keeps_names_and_prices_and_no_way_out(tmp_path: Path) -> None:
    path, url = tmp_path / "catalog.toml", "http://127.0.0.1:1/v1"
    real = load_catalog()
    limits = Simulation(rpm=60, algorithm="fixed").limits()
    path.write_text(simulated_catalog(real, url=url, limits=limits), encoding="utf-8")
    simulated = load_catalog(path)
    assert simulated.models.keys() == real.models.keys()
    for name, model in simulated.models.items():
        assert (model.provider, model.price, model.limits) == ("simulator", real.models[name].price, limits)
        assert model.timeout == real.models[name].timeout
    assert {(provider.base_url, provider.api_keys) for provider in simulated.providers.values()} == {(url, ())}


def test_simulated_catalog_keeps_routes_and_fallbacks(tmp_path: Path) -> None:
    mine, path = tmp_path / "mine.toml", tmp_path / "catalog.toml"
    mine.write_text(
        """
        [models.small]
        provider = "openai"
        context_tokens = 8_000
        fallbacks = ["gpt-4o", "openai/gpt-9"]
        fallback_on = ["content_filter"]
        [routes.auto]
        rules = [{ when = { tag = "hard", deadline_under_s = 2.5 }, model = "gpt-4.1" }]
        targets = ["small", "gpt-4o-mini"]
        choose = "cheapest"
        [routes.other]
        default = "small"
        """,
        encoding="utf-8",
    )
    real = load_catalog(mine)
    path.write_text(simulated_catalog(real, url="http://127.0.0.1:1/v1", limits=Simulation().limits()), "utf-8")
    simulated = load_catalog(path)
    assert simulated.routes == real.routes
    of = [
        (each.context_tokens, each.fallbacks, each.fallback_on)
        for each in (real.models["small"], simulated.models["small"])
    ]
    assert of[0] == of[1] == (8_000, ("gpt-4o", "openai/gpt-9"), ("content_filter",))


@pytest.mark.parametrize(
    "simulation", [Simulation(faults=("nonsense=0.1",)), Simulation(latency_ms=-1), Simulation(rpm=0)]
)
def test_what_the_simulator_would_refuse_is_refused_before(simulation: Simulation) -> None:
    with pytest.raises(UnusableInput, match="simulated provider"):
        simulation.check()


@pytest.mark.covers("run", "latency_ms", "jitter", "rpm", "tpm", "algorithm", "burst", "fault", "seed")
def test_the_simulator_s_options_reach_the_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From `run`'s command line to the simulator's own command, which serves nobody here."""
    served: list[SimulatorOptions] = []

    def start(options: RunOptions, console: object) -> None:
        assert options.simulation is not None
        ready, other = os.pipe()
        with os.fdopen(ready), os.fdopen(other, "w"):
            assert CliRunner().invoke(promptmill, options.simulation.command(ready_fd=other)[4:]).exit_code == 0
        raise UnusableInput("nothing is run here")

    monkeypatch.setattr("workers.commands.run.command._finished", start)
    monkeypatch.setattr("workers.commands.simulate.serve", lambda options, **_: served.append(options))
    given = {"latency-ms": "7", "jitter": "0.25", "rpm": "60", "tpm": "900", "algorithm": "fixed", "seed": "4"}
    arguments = [text for name, value in given.items() for text in (f"--{name}", value)]
    faults = ["--burst", "3", "--fault", "429=0.1", "--fault", "hang=0.2"]
    CliRunner().invoke(promptmill, ["run", "in.jsonl", "-o", "out.jsonl", "--simulate", *arguments, *faults])
    (options,) = served
    assert (options.latency_ms, options.jitter, options.rpm, options.tpm) == (7, 0.25, 60, 900)
    assert (options.algorithm, options.burst, options.seed) == ("fixed", 3, 4)
    assert options.faults == {"429": 0.1, "hang": 0.2}


def test_the_limiter_is_told_of_the_simulator_s_limits() -> None:
    assert Simulation(rpm=60, tpm=900, algorithm="fixed").limits() == Limits(rpm=60, tpm=900, algorithm="fixed")
    assert Simulation(latency_ms=3).limits() == Limits()
