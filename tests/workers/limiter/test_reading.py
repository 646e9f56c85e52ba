"""What is read or guessed: rate headers, token estimates, Redis's time on our clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.catalog import Limits
from tasks.results import Usage
from workers.limiter.cost import Cost
from workers.limiter.estimate import Estimator
from workers.limiter.heard.headers import learned, rate_headers, wait_s
from workers.limiter.shared.clock import ScheduleClock
from workers.providers.durations import until_s
from workers.providers.size import Media
from workers.simulator.limits import reset_text

NOW = 1_767_225_600.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("1s", 1.0),
        ("20ms", 0.02),
        ("1.5s", 1.5),
        ("1h2m3s", 3_723.0),
        ("7", 7.0),
        (" 2s ", 2.0),
        ("86400s", 86_400.0),
        ("900000s", 900_000.0),
        ("1000000000", 1e9),
        ("", None),
        ("soon", None),
        ("-1s", None),
        ("1s!", None),
        ("nan", None),
        ("1e9s", None),
        ("\u0661s", None),
        ("1s" * 100, None),
    ],
)
def test_resets(text: str, seconds: float | None) -> None:
    assert until_s(text, NOW) == (None if seconds is None else pytest.approx(seconds))


@given(st.floats(0, 3_600))
def test_every_reset_that_the_simulator_writes_is_read(seconds: float) -> None:
    assert until_s(reset_text(seconds), NOW) == pytest.approx(seconds, abs=0.0011, rel=1e-4)


@given(
    st.dictionaries(
        st.sampled_from([f"x-ratelimit-{part}-requests" for part in ("limit", "remaining", "reset")]), st.text()
    )
)
def test_junk_is_no_news(headers: dict[str, str]) -> None:
    for found in rate_headers(headers, NOW):
        assert 0 <= found.remaining <= found.limit and found.reset_s >= 0


def told(limit: int, remaining: int, reset: str, name: str = "requests") -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{name}": str(limit),
        f"x-ratelimit-remaining-{name}": str(remaining),
        f"x-ratelimit-reset-{name}": reset,
    }


def test_limits_are_learned_if_unknown_and_only_lowered_if_known() -> None:
    assert learned(Limits(), {"rpm": 500, "tpm": 30_000}) == Limits(rpm=500, tpm=30_000)
    assert learned(Limits(rpm=100, tpm=40_000), {"rpm": 500, "tpm": 30_000}) == Limits(rpm=100, tpm=30_000)


@pytest.mark.parametrize(
    ("headers", "tells"),
    [
        (told(500, 499, "120ms"), "rpm"),
        (told(500, 499, "59s"), "rpm"),  # fixed windows: all is free at the next boundary, however little was used
        (told(500, 499, "1m0s"), "rpm"),
        (told(200, 199, "7m12s"), "rpd"),
        (told(10_000, 9_000, "2h24m0s"), "rpd"),
        (told(14_400, 14_370, "2m59.56s"), "rpd"),  # as Groq documents them (console.groq.com/docs/rate-limits)
        (told(18_000, 17_997, "7.66s", "tokens"), "tpm"),
        (told(14_400, 14_399, "6s"), None),  # the same bucket of a day, of which less was used
        (told(14_400, 14_399, "3.4s"), None),
        (told(14_400, 14_390, "59.5s"), None),
        (told(14_400, 14_390, "4s"), "rpm"),
        (told(800, 799, "60s"), "rpm"),  # a minute that begins with its first request
        (told(14_400, 14_399, "5ms"), "rpm"),
        (told(14_400, 14_400, "0s"), "rpm"),
        (told(1_000_000, 999_500, "43.2s", "tokens"), None),
        (told(1_000_000, 999_500, "30ms", "tokens"), "tpm"),
        (told(30_000, 29_000, "2s", "tokens"), "tpm"),
        (told(1_000_000, 900_000, "2h24m0s", "tokens"), None),
    ],
)
def test_which_limit_a_header_tells(headers: dict[str, str], tells: str | None) -> None:
    (found,) = rate_headers(headers, NOW)
    assert found.tells == tells


@given(limit=st.integers(200, 100_000), uses=st.lists(st.floats(0.5, 30), min_size=1, max_size=40))
def test_a_days_bucket_is_never_a_minutes_limit(limit: int, uses: list[float]) -> None:
    """Requests at intervals (seconds) from a bucket that fills by `limit` a day, as its provider tells of it."""
    taken = 0.0
    for apart_s in uses:
        taken = max(0.0, taken - apart_s * limit / 86_400) + 1
        remaining, reset = int(limit - taken), reset_text(taken * 86_400 / limit)
        (found,) = rate_headers(told(limit, remaining, reset), NOW)
        assert found.tells in (None, "rpd")


@given(limit=st.integers(10, 100_000), uses=st.lists(st.floats(0, 3), min_size=1, max_size=40))
def test_a_minutes_bucket_is_told_at_each_answer(limit: int, uses: list[float]) -> None:
    taken = 0.0
    for apart_s in uses:
        taken = min(float(limit), max(0.0, taken - apart_s * limit / 60) + 1)
        (found,) = rate_headers(told(limit, int(limit - taken), reset_text(taken * 60 / limit)), NOW)
        assert found.tells == "rpm"


def test_a_429_without_retry_after_waits_for_what_is_spent() -> None:
    assert wait_s(told(500, 0, "800ms") | told(30_000, 10, "20s", "tokens"), NOW) == pytest.approx(0.8)
    assert wait_s(told(500, 0, "800ms") | told(30_000, 0, "20s", "tokens"), NOW) == 20.0
    assert wait_s(told(500, 0, "7h0m0s"), NOW) == 25_200.0
    assert wait_s(told(500, 3, "1s"), NOW) is None


def test_what_azure_sends_tells_the_wait_or_nothing() -> None:
    no_limit = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "55"}
    assert wait_s(no_limit, NOW) == 55.0
    assert rate_headers(no_limit, NOW) == []
    unknown = told(-1, -1, "0", "tokens")
    assert wait_s(unknown, NOW) is None
    assert rate_headers(unknown, NOW) == []


def test_output_is_the_90th_percentile_within_max_tokens() -> None:
    estimator = Estimator()
    for tokens in range(1, 101):
        estimator.learn(Cost(), Usage(output_tokens=tokens))
    assert estimator.cost(input_chars=4).output_tokens == 91
    assert estimator.cost(input_chars=4, max_tokens=50).output_tokens == 50
    assert estimator.cost(input_chars=4, max_tokens=50, answers=3).output_tokens == 150


def test_a_few_short_answers_do_not_lower_the_first_guess() -> None:
    estimator = Estimator()
    for _ in range(31):
        estimator.learn(Cost(), Usage(output_tokens=10))
    assert estimator.cost(input_chars=4).output_tokens == 1_024
    estimator.learn(Cost(), Usage(output_tokens=10))
    assert estimator.cost(input_chars=4).output_tokens == 10


def test_a_call_may_take_twice_the_longest_answer_it_permits() -> None:
    estimator = Estimator()
    assert estimator.beyond_tokens([estimator.cost(input_chars=4)]) == 0  # the first guess is all there is
    for tokens in range(1, 101):
        estimator.learn(Cost(), Usage(output_tokens=tokens))
    stated = [estimator.cost(input_chars=4, max_tokens=limit, answers=2) for limit in (50, 120, 4_096)]
    assert [cost.output_tokens for cost in stated] == [100, 182, 182]
    assert [estimator.beyond_tokens([cost]) for cost in stated] == [0, 2 * (120 - 91), 2 * (200 - 91)]
    assert estimator.beyond_tokens([estimator.cost(input_chars=4)]) == 200 - 91
    assert estimator.beyond_tokens([*stated, estimator.embedding_cost(input_chars=9)]) == 2 * (200 - 91)
    assert estimator.beyond_tokens([Cost(10, 90)]) == 0  # what is no estimate is taken at its word
    assert estimator.beyond_tokens([]) == 0


def test_one_odd_answer_is_not_what_is_reserved_for_each() -> None:
    estimator = Estimator()
    for tokens in (100, 10**8, 100):
        estimator.learn(Cost(100, input_chars=400), Usage(10**8, tokens))
    assert estimator.cost(input_chars=4_000).output_tokens <= 4 * 1_024
    assert estimator.cost(input_chars=4_000).input_tokens < 1_200
    for _ in range(40):
        estimator.learn(Cost(100, input_chars=400), Usage(100, 100))
    assert estimator.cost(input_chars=4).output_tokens == 100
    # Answers that really are long are believed within a few.
    longer = Estimator()
    for _ in range(3):
        longer.learn(Cost(), Usage(output_tokens=60_000))
    assert longer.cost(input_chars=4).output_tokens == 60_000


def test_each_of_a_call_s_answers_counts_for_its_share() -> None:
    estimator = Estimator()
    for _ in range(40):
        estimator.learn(estimator.cost(input_chars=4, answers=4), Usage(1, 400))
    assert estimator.cost(input_chars=4).output_tokens == 100
    assert estimator.cost(input_chars=4, answers=2).output_tokens == 200


def test_only_the_last_answers_count() -> None:
    estimator = Estimator()
    for tokens in [4_000] * 300 + [10] * 256:
        estimator.learn(Cost(), Usage(output_tokens=tokens))
    assert estimator.cost(input_chars=4).output_tokens == 10


def test_characters_per_token_are_learned() -> None:
    estimator = Estimator()
    for _ in range(200):
        cost = estimator.cost(input_chars=1_000)
        estimator.learn(cost, Usage(input_tokens=1_000, output_tokens=1))
    assert estimator.cost(input_chars=1_000).input_tokens == pytest.approx(1_000, rel=0.02)


@given(
    offset=st.floats(-1e6, 1e6),
    trips=st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)), min_size=1, max_size=30),
    ahead_s=st.floats(0, 4),
)
def test_instants_are_late_by_the_fastest_reply_at_most(
    offset: float, trips: list[tuple[float, float]], ahead_s: float
) -> None:
    clock, now = ScheduleClock(), 1_000.0
    for there_s, back_s in trips:
        written = now + there_s
        clock.learn(written - offset, asked_at=now, heard_at=written + back_s)
        now = written + back_s + 0.01
    due = clock.monotonic(now - offset + ahead_s)
    assert due >= now + ahead_s - 1e-6
    assert due <= now + ahead_s + min(back_s for _, back_s in trips) + 30 * 1e-4 + 1e-6


def test_a_step_of_redis_s_clock_is_followed() -> None:
    clock = ScheduleClock()
    clock.learn(100.0, asked_at=1.0, heard_at=1.001)
    clock.learn(500.0, asked_at=2.0, heard_at=2.001)
    assert clock.monotonic(501.0) == pytest.approx(3.001)


PICTURE, SOUND, FILE = Media(pictures=1), Media(sounds=1), Media(files=1)


@pytest.mark.parametrize("media", [PICTURE, SOUND, FILE])
@pytest.mark.parametrize("tokens", [85, 25_000])
def test_what_a_picture_a_sound_or_a_file_takes_is_learned(media: Media, tokens: int) -> None:
    estimator = Estimator()
    text = estimator.cost(input_chars=400).input_tokens
    for _ in range(12):
        estimator.learn(estimator.cost(input_chars=400, media=media), Usage(text + tokens, 5))
    assert estimator.cost(input_chars=400, media=media).input_tokens == pytest.approx(text + tokens, rel=0.05, abs=15)
    assert estimator.cost(input_chars=400).input_tokens == text, "text is as it was"


def test_a_prompt_with_a_picture_may_be_as_small_as_its_text() -> None:
    cost = Estimator().cost(input_chars=120, media=Media(pictures=40))
    assert cost.input_tokens > 40_000
    assert cost.least("tokens") == 10
