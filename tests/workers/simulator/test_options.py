"""What is refused before anything listens, and that each refusal says what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from workers.simulator import FAULTS, SimulatorOptions, parse_fault
from workers.simulator.faults import pick


def test_a_fault_is_a_name_and_a_share() -> None:
    assert parse_fault("429=0.1") == ("429", 0.1)
    assert parse_fault("chunk-cut=1") == ("chunk-cut", 1.0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("429", "write NAME=SHARE, for example 429=0.1"),
        ("429=often", "write a number from 0 to 1"),
        ("429=1.5", "must lie between 0 and 1"),
        ("429=nan", "must lie between 0 and 1"),
        ("418=0.1", "unknown fault '418'; the known ones are 429, 429-plain"),
    ],
)
def test_a_wrong_fault_says_what_would_be_right(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_fault(text)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"latency_ms": -1}, "latency_ms is -1: it must be at least 0"),
        ({"jitter": float("nan")}, "jitter is nan"),
        ({"rpm": 0}, "rpm is 0: it must be at least 1"),
        ({"port": 70_000}, "at most 65535"),
        ({"algorithm": "leaky"}, "choose one of bucket, sliding, fixed"),
        ({"faults": {"429": 0.6, "500": 0.6}}, "add up to 1.2"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SimulatorOptions(**options)


def test_the_key_is_not_in_the_repr() -> None:
    assert "canary" not in repr(SimulatorOptions(api_key="canary"))


def test_each_fault_gets_its_share_of_the_draws() -> None:
    shares = {"429": 0.25, "500": 0.5}
    assert [pick(shares, uniform) for uniform in (0.0, 0.24, 0.25, 0.74, 0.75, 0.99)] == [
        "429",
        "429",
        "500",
        "500",
        None,
        None,
    ]


def test_every_fault_of_the_promises_is_there() -> None:
    promised = {
        *("429", "429-plain", "429-date", "429-negative", "429-huge", "429-junk", "429-ms", "429-llm-provider"),
        *("quota", "500", "502-html", "503", "503-html", "529", "401", "403", "404", "400", "408", "context"),
        *("hang", "reset", "close", "partial", "chunk-cut", "drip", "slow", "error-200", "empty", "null"),
        *("no-choices", "null-content", "html", "nan", "bad-utf8", "deep", "content-filter"),
        *("badjson", "truncated", "flex-full", "stream-cut", "stream-hang", "stream-error"),
        *("huge", "gzip-bomb", "header-100k", "redirect"),
    }
    assert set(FAULTS) == promised
