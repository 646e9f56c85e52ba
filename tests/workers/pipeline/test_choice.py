"""How a route chooses: rules in their order, the cheapest, the fastest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.catalog import Rule, When
from workers.pipeline.routing.choice import Facts, Target, by_price, cheapest, fastest, first_rule, words


def facts(*, tokens: int = 100, **asked: Any) -> Facts:
    given: dict[str, Any] = {"tag": None, "priority": "normal", "tenant": None, "left_s": None, **asked}
    return Facts(input_tokens=lambda name: tokens, **given)


def rule(model: str = "m", **when: Any) -> Rule:
    return Rule.model_validate({"when": when, "model": model})


@pytest.mark.covers("catalog", "when.tag", "when.priority", "when.tenant", "when.deadline_under_s")
@pytest.mark.covers("catalog", "when.input_tokens_over", "when.input_tokens_under")
@pytest.mark.parametrize(
    ("when", "fits", "does_not"),
    [
        ({"tag": "hard"}, {"tag": "hard"}, {"tag": "easy"}),
        ({"tag": "hard"}, {"tag": "hard"}, {}),
        ({"priority": "bulk"}, {"priority": "bulk"}, {}),
        ({"tenant": "acme"}, {"tenant": "acme"}, {"tenant": "other"}),
        ({"tenant": "acme"}, {"tenant": "acme"}, {}),
        ({"input_tokens_over": 100}, {"tokens": 101}, {"tokens": 100}),
        ({"input_tokens_under": 100}, {"tokens": 99}, {"tokens": 100}),
        ({"deadline_under_s": 60}, {"left_s": 59.0}, {"left_s": 60.0}),
        ({"deadline_under_s": 60}, {"left_s": -1.0}, {}),
        ({"tag": "a", "input_tokens_over": 5}, {"tag": "a", "tokens": 6}, {"tag": "a", "tokens": 5}),
        ({"tag": "a", "input_tokens_over": 5}, {"tag": "a", "tokens": 6}, {"tokens": 6}),
        ({"input_tokens_over": 5, "input_tokens_under": 9}, {"tokens": 6}, {"tokens": 9}),
    ],
)
def test_a_rule_fits_where_all_that_it_states_holds(when: Any, fits: Any, does_not: Any) -> None:
    assert first_rule([rule(**when)], facts(**fits)) is not None
    assert first_rule([rule(**when)], facts(**does_not)) is None


def test_the_first_rule_that_fits_decides() -> None:
    rules = [rule("x", tag="no"), rule("y", priority="normal"), rule("z", priority="normal")]
    found = first_rule(rules, facts())
    assert found is not None and (found[0], found[1].model) == (2, "y")


def test_the_input_is_estimated_only_where_a_rule_asks() -> None:
    def fails(name: str) -> int:
        raise AssertionError("nobody asked")

    asked = Facts(tag="a", priority="normal", tenant=None, left_s=None, input_tokens=fails)
    assert first_rule([rule(tag="b", input_tokens_over=1), rule(tag="a")], asked) is not None


def test_a_rule_reads_as_it_was_written() -> None:
    assert words(When(tag="hard", deadline_under_s=30)) == 'tag = "hard", deadline_under_s = 30'
    assert words(When(input_tokens_over=8_000_000)) == "input_tokens_over = 8000000"


whens = st.fixed_dictionaries(
    {},
    optional={
        "tag": st.sampled_from("ab"),
        "priority": st.sampled_from(["bulk", "normal"]),
        "tenant": st.sampled_from("tu"),
        "input_tokens_over": st.integers(1, 9),
        "input_tokens_under": st.integers(1, 9),
        "deadline_under_s": st.integers(1, 9),
    },
).filter(bool)
jobs = st.builds(
    facts,
    tokens=st.integers(1, 9),
    tag=st.none() | st.sampled_from("ab"),
    priority=st.sampled_from(["bulk", "normal"]),
    tenant=st.none() | st.sampled_from("tu"),
    left_s=st.none() | st.floats(-1, 9),
)


@given(when=whens, job=jobs)
def test_a_rule_holds_where_each_of_its_conditions_holds_alone(when: dict[str, Any], job: Facts) -> None:
    alone = [first_rule([rule(**{name: value})], job) is not None for name, value in when.items()]
    assert (first_rule([rule(**when)], job) is not None) == all(alone)


@given(whens=st.lists(whens, max_size=5), job=jobs)
def test_no_rule_before_the_chosen_one_fits(whens: list[dict[str, Any]], job: Facts) -> None:
    rules = [rule(**when) for when in whens]
    found = first_rule(rules, job)
    before = rules if found is None else rules[: found[0] - 1]
    assert all(first_rule([each], job) is None for each in before)


# -- the cheapest and the fastest


@pytest.mark.parametrize(
    ("prices", "order", "why"),
    [
        ({"a": 0.002, "b": 0.0012}, "ba", "cheapest: about $0.0012, the next $0.002"),
        ({"a": None, "b": 0.00000123}, "ba", "cheapest: about $0.0000012"),
        ({"a": 0.0, "b": 0.1}, "ab", "cheapest: about $0, the next $0.1"),
        ({"a": 0.1, "b": 0.1}, "ab", "cheapest: about $0.1, the next $0.1"),
        ({"a": None, "b": None}, "ab", "cheapest: no price is known, so the list's order"),
    ],
)
def test_the_cheapest_goes_first(prices: dict[str, float | None], order: str, why: str) -> None:
    in_time = cheapest([Target(name, price_usd=each) for name, each in prices.items()], left_s=60.0)
    for names, said in (by_price(list(prices), list(prices.values())), in_time):
        assert ("".join(names), said) == (order, why)


@pytest.mark.parametrize(
    ("targets", "left_s", "order", "why"),
    [
        ([("a", 2.0, 0), ("b", 0.5, 0)], None, "ba", "fastest: answers in about 0.5 s"),
        ([("a", 2.0, 0), ("b", 0.5, 9)], None, "ab", "fastest: answers in about 2 s"),
        ([("a", 2.0, 1), ("b", 0.5, 9)], 20, "ab", "fastest: answers in about 2 s after a wait of 1 s"),
        ([("a", 2.0, 0), ("b", None, 0)], None, "ab", "fastest: answers in about 2 s"),
        ([("a", None, 0), ("b", 2.0, 0)], None, "ba", "fastest: answers in about 2 s"),
        ([("a", None, 0), ("b", 2.0, 0)], 1, "ab", "fastest of those in time: no latency is known yet, so the"),
        ([("a", None, 0), ("b", None, 0)], None, "ab", "fastest: no latency is known yet, so the list's order"),
        ([("a", None, 9), ("b", None, 0)], 5, "ba", "fastest of those in time: no latency is known yet, so the"),
        ([("a", 1.0, 9), ("b", 3.0, 0)], 5, "ba", "fastest of those in time: answers in about 3 s"),
        ([("a", 9.0, 0), ("b", 8.0, 0)], 5, "ba", "fastest: answers in about 8 s"),
    ],
)
def test_the_fastest_goes_first(targets: Any, left_s: float | None, order: str, why: str) -> None:
    given = [Target(name, latency_s=latency, wait_s=wait) for name, latency, wait in targets]
    names, said = fastest(given, left_s=left_s)
    assert "".join(names) == order
    assert said.startswith(why)


def test_the_cheapest_is_one_that_answers_in_time() -> None:
    slow, dear = Target("slow", price_usd=0.1, wait_s=60.0), Target("dear", price_usd=0.2, latency_s=2.0)
    assert cheapest([slow, dear], left_s=90.0)[0] == ["slow", "dear"]
    names, why = cheapest([slow, dear], left_s=30.0)
    assert (names, why) == (["dear", "slow"], "cheapest of those in time: about $0.2, the next $0.1")
    assert cheapest([slow, dear], left_s=1.0)[0] == ["slow", "dear"], "none is in time"
