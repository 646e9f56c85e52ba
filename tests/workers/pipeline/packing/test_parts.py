"""The pieces that packing is made of: shares, caps, density, what is about one input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.catalog import Model
from tasks.results import Usage
from workers.pipeline.packing.caps import LEARNED_FOR_S, CallCaps, is_about_the_call
from workers.pipeline.packing.inputs import family_of, group_key, inputs_of
from workers.pipeline.packing.shares import share_out, shared_usage
from workers.prompt.failure import Failure
from workers.prompt.job import Options, PromptJob


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_shares_add_up_and_are_in_proportion(total: int, weights: list[int]) -> None:
    shares = share_out(total, weights)
    assert sum(shares) == total and min(shares) >= 0
    whole = sum(weights) or len(weights)
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * (weight if sum(weights) else 1) / whole) <= 1


def test_each_kind_of_tokens_adds_up() -> None:
    parts = shared_usage(Usage(101, 0, 33, 7), [5, 1, 1])
    assert [sum(getattr(part, name) for part in parts) for name in ("input_tokens", "cached_tokens")] == [101, 33]
    assert sum(part.cache_write_tokens for part in parts) == 7


def refused(body: str, *, status: int = 400) -> Failure:
    return Failure("too_large", "too large", http_status=status, provider_body=body)


def test_a_learned_cap_is_forgotten_in_time() -> None:
    model, caps = Model(name="e", provider="p"), CallCaps()
    caps.learn(refused("array too long"), inputs=64, tokens=1_000, now=10.0)
    assert (caps.inputs(model, now=20.0), caps.tokens(model, now=20.0)) == (64, 300_000)
    caps.learn(refused("Requested 5 tokens, max 3 tokens per request"), inputs=32, tokens=900, now=20.0)
    assert (caps.inputs(model, now=30.0), caps.tokens(model, now=30.0)) == (64, 900)
    assert caps.inputs(model, now=20.0 + LEARNED_FOR_S) == 2_048


@pytest.mark.parametrize(
    ("body", "of_the_call"),
    [
        ("Invalid 'input': array too long. Expected an array with maximum length 2048", True),
        ("Requested 302000 tokens, max 300000 tokens per request", True),
        ("batch size is invalid, it should not be larger than 10", True),
        ("This model's maximum context length is 8192 tokens, however you requested 9000 tokens", False),
        ("the input is too long", False),
    ],
)
def test_what_is_said_of_the_call_and_what_of_an_input(body: str, of_the_call: bool) -> None:
    assert is_about_the_call(refused(body)) is of_the_call
    assert is_about_the_call(refused(body, status=413))


def test_what_stands_in_an_input() -> None:
    assert inputs_of({"input": "one"}) == ["one"]
    assert inputs_of({"input": [1, 2]}) == [[1, 2]]
    assert inputs_of({"input": ["a", "b"]}) == ["a", "b"]
    families = [family_of(inputs_of({"input": each})) for each in ("a", [1], ["a", "b"], [[1]], ["a", [1]], [{"x": 1}])]
    assert families == ["texts", "tokens", "texts", "tokens", None, None]


def test_calls_are_shared_by_equal_requests_alone() -> None:
    def key(**body: object) -> object:
        job = PromptJob("j", "embed", "e", {"model": "e", "input": "x", **body}, Options())
        return group_key(job, "e", "texts")

    assert key() == key(input="y") and key(dimensions=4, user="a") == key(user="a", dimensions=4)
    assert len({key(), key(user="a"), key(user="b"), key(dimensions=4), key(big=2**70)}) == 5
