"""Which rungs a job meets, by its shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from config.catalog import Catalog
from config.settings import get_settings
from tasks.results import Usage
from workers.cli import app
from workers.pipeline.rungs.breaker import Breaker
from workers.pipeline.rungs.input_length import InputLength
from workers.pipeline.rungs.packing import Packing
from workers.pipeline.rungs.record_size import RecordSize
from workers.pipeline.rungs.retry import Retries
from workers.pipeline.rungs.schema import Schema
from workers.pipeline.trip import Shape, Trip
from workers.prompt.failure import Failure, Incapable
from workers.prompt.parked import Parked
from workers.providers import Answer

ALWAYS = ["Elsewhere", "Breaker", "Retries", "Admission"]
EMBED = ["Elsewhere", "InputLength", "RecordSize", "Breaker", "Retries", "Packing", "Admission"]

LADDERS = {
    Shape("chat", "m", has_deadline=False, has_schema=True): ["Elsewhere", "Schema", *ALWAYS[1:]],
    Shape("chat", "m", has_deadline=False): ALWAYS,
    Shape("chat", "m", has_deadline=True): ["Deadline", *ALWAYS],
    Shape("embed", "m", has_deadline=False): EMBED,
    Shape("embed", "m", has_deadline=True): ["Deadline", *EMBED],
    Shape("chat", "m", has_deadline=False, has_fallbacks=False): ALWAYS,
    Shape("chat", "m", has_deadline=False, has_fallbacks=True): ["Fallbacks", *ALWAYS],
    Shape("chat", "m", has_deadline=True, has_fallbacks=True): ["Deadline", "Fallbacks", *ALWAYS],
    Shape("chat", "nobody-knows", has_deadline=False, has_fallbacks=True): ["Fallbacks", *ALWAYS],
}


async def test_the_rungs_of_each_shape(pipeline_to: Any) -> None:
    async with pipeline_to("http://127.0.0.1:9/v1") as pipeline:
        built = {shape: [type(rung).__name__ for rung in pipeline.ladder(shape).rungs] for shape in LADDERS}
        assert built == LADDERS
        again = Shape("chat", "m", has_deadline=True)
        assert pipeline.ladder(again) is pipeline.ladder(again)
        with pytest.raises(Incapable):
            pipeline.ladder(Shape("chat", "unknown", has_deadline=False))


async def test_a_chain_of_the_catalogue_is_on_the_ladder(pipeline_to: Any, chat_job: Any) -> None:
    models = {"m": {"provider": "p", "fallbacks": ["e"]}, "e": {"provider": "p"}}
    made = Catalog.model_validate(
        {
            "providers": {"p": {"base_url": "http://127.0.0.1:9/v1"}},
            "models": models,
            "routes": {"auto": {"default": "e"}},
        }
    )
    async with pipeline_to("", catalog=made) as pipeline:
        met = {
            (name, own): type(pipeline.ladder(Shape("chat", name, False, own)).rungs[0]).__name__
            for name in ("m", "e", "auto")
            for own in (None, False)
        }
    assert {key for key, first in met.items() if first == "Fallbacks"} == {
        ("m", None),
        ("auto", None),
        ("auto", False),
    }


def test_doctor_shows_a_routes_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(
        """
        [models.small]
        provider = "openai"
        fallbacks = ["gpt-4o"]
        [routes.auto]
        rules = [{ when = { tag = "hard" }, model = "small" }]
        targets = ["gpt-4o-mini", "gpt-4.1"]
        choose = "fastest"
        [routes.plain]
        default = "small"
        """
    )
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", "redis://127.0.0.1:1/0")  # nothing is asked
    monkeypatch.setenv("PROMPTMILL_CATALOG", str(path))
    get_settings.cache_clear()
    shown = CliRunner().invoke(app, ["doctor", "--ladder", "auto", "--json"])
    assert json.loads(shown.stdout)["chain"] == [
        'tag = "hard": small then gpt-4o',
        "else, fastest first: gpt-4o-mini, gpt-4.1",
    ]
    assert json.loads(shown.stdout)["chat"] == ["Fallbacks", *ALWAYS, "Call"]
    assert "else: small then gpt-4o" in CliRunner().invoke(app, ["doctor", "--ladder", "plain"]).stdout
    get_settings.cache_clear()


def test_doctor_shows_the_ladders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_REDIS_URL", "redis://127.0.0.1:1/0")  # nothing is asked
    get_settings.cache_clear()
    shown = CliRunner().invoke(app, ["doctor", "--ladder", "gpt-4o-mini"])
    assert shown.exit_code == 0 and max(map(len, shown.stdout.splitlines())) <= 120
    models, model, heading, *rungs = shown.stdout.splitlines()
    assert (models, model, heading) == ("models", "  gpt-4o-mini", "rungs, outermost first")
    assert [line.split()[0] for line in rungs] == [
        *("Deadline", "Elsewhere", "InputLength", "Answers", "Schema", "RecordSize"),
        *("Breaker", "Retries", "Packing", "Admission", "Call"),
    ]
    assert [line.rpartition(" (")[2] for line in rungs if line.endswith(")")] == [
        *("jobs with a deadline)", "embed)", "jobs with a cache time)", "jobs with a schema)", "embed)", "embed)")
    ]
    as_json = CliRunner().invoke(app, ["doctor", "--ladder", "gpt-4o-mini", "--json"])
    assert json.loads(as_json.stdout)["chat with a deadline"] == [
        *LADDERS[Shape("chat", "m", has_deadline=True)],
        "Call",
    ]
    assert json.loads(as_json.stdout)["embed with a cache time"][:3] == ["Elsewhere", "InputLength", "Answers"]
    assert "Schema" in json.loads(as_json.stdout)["chat with a schema"]
    assert json.loads(as_json.stdout)["chain"] == ["gpt-4o-mini"]
    unknown = CliRunner().invoke(app, ["doctor", "--ladder", "nope"])
    assert unknown.exit_code == 1 and "no model is named 'nope'" in unknown.stderr
    get_settings.cache_clear()


# -- a rung alone, above a ladder of three lines


def answer() -> Answer:
    return Answer(text="x", response={}, usage=Usage())


@pytest.fixture
def trip(chat_job: Any, pipeline: Any) -> Trip:
    made = Trip(chat_job(), 0.0)
    made.route = pipeline.ladder(Shape.of(made.job)).route
    return made


@pytest.fixture
async def pipeline(pipeline_to: Any) -> Any:
    async with pipeline_to("http://127.0.0.1:9/v1") as made:
        yield made


def rung_of(pipeline: Any, kind: type) -> Any:
    [found] = [rung for rung in pipeline.rungs if isinstance(rung, kind)]
    return found


@pytest.mark.parametrize("passing", [Parked(1.0, "far away"), KeyboardInterrupt()])
async def test_parked_and_the_like_pass_through_every_rung(pipeline: Any, trip: Trip, passing: BaseException) -> None:
    trip.job.options.deadline_at = 1e12

    async def down(trip: Trip) -> Answer:
        raise passing

    for rung in pipeline.rungs:
        if not isinstance(rung, InputLength | RecordSize | Schema | Packing):
            with pytest.raises(type(passing)):
                await rung(trip, down)


async def test_retries_try_again_and_wait_between(pipeline: Any, trip: Trip, clock: Any) -> None:
    async def down(trip: Trip) -> Answer:
        trip.attempts += 1
        if trip.attempts < 3:
            raise Failure("server_error", "busy", retryable=True)
        return answer()

    assert (await rung_of(pipeline, Retries)(trip, down)).text == "x"
    assert (trip.attempts, len(clock.slept_s)) == (3, 2)


async def test_what_was_no_attempt_is_not_for_retries(pipeline: Any, trip: Trip, clock: Any) -> None:
    async def down(trip: Trip) -> Answer:
        raise Failure("connection", "nobody there", retryable=True, unreachable=True)

    with pytest.raises(Failure):
        await rung_of(pipeline, Retries)(trip, down)
    assert clock.slept_s == []


async def test_what_fails_in_an_outage_is_no_attempt(pipeline: Any, trip: Trip) -> None:
    async def down(trip: Trip) -> Answer:
        trip.attempts += 1
        if trip.attempts == 1:
            failure = Failure("server_error", "busy", http_status=503, retryable=True)
            failure.outlasts = True
            raise failure
        return answer()

    assert (await rung_of(pipeline, Breaker)(trip, down)).text == "x"
    assert (trip.attempts, trip.postponed) == (2, 1)


async def test_with_fallbacks_an_outage_is_not_waited_for(pipeline: Any, trip: Trip, clock: Any) -> None:
    refused = Failure("connection", "nobody there", retryable=True, unreachable=True)
    trip.route.health.note_failure(refused, job_id="another", probe=trip, began_at=clock.now_s)
    trip.untried = 1

    async def down(trip: Trip) -> Answer:
        raise AssertionError("it is not called")

    with pytest.raises(Failure) as raised:
        await rung_of(pipeline, Breaker)(trip, down)
    assert raised.value.code == "connection" and "was not called" in raised.value.message
    assert clock.slept_s == []
