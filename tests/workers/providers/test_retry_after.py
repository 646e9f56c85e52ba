"""`Retry-After` in every form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.providers.retry_after import MAX_RETRY_AFTER_S, retry_after_s

NOW = 1_767_225_600.0  # 2026-01-01 00:00:00 UTC


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"retry-after": "0"}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1.0),
        ({"llm_provider-retry-after": "3"}, 3.0),
        ({"retry-after": "1", "llm_provider-retry-after": "3"}, 1.0),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:10 GMT"}, 10.0),
        ({"retry-after": "Thursday, 01-Jan-26 00:00:10 GMT"}, 10.0),
        ({"retry-after": "Thu, 01 Jan 2026 01:00:10 +0100"}, 10.0),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:10 -0000"}, 10.0),
        ({"retry-after": "Wed, 31 Dec 2025 23:00:00 GMT"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "1_000"}, None),
        ({"retry-after": "²"}, None),
        ({"retry-after": "a little later; please"}, None),
        ({"retry-after": "Thu, 99 Foo 2026 00:00:10 GMT"}, None),
        ({"retry-after": "31536000000"}, MAX_RETRY_AFTER_S),
        ({"retry-after-ms": "99999999999"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}, MAX_RETRY_AFTER_S),
    ],
)
def test_each_form(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(headers, NOW) == pytest.approx(wait_s)


def test_a_date_is_measured_by_the_providers_own_clock() -> None:
    headers = {"retry-after": "Thu, 01 Jan 2026 00:00:10 GMT", "date": "Thu, 01 Jan 2026 00:00:04 GMT"}
    assert retry_after_s(headers, NOW - 7_200) == 6.0


names = st.sampled_from(["retry-after", "retry-after-ms", "llm_provider-retry-after", "date"])
dates = st.builds(
    "{}, {} {} {} {}:{}:{} {}".format,
    *(st.sampled_from(["Mon", "", "x"]), st.integers(-1, 99), st.sampled_from(["Jan", "Feb", "q", ""])),
    *(st.integers(-1, 10**6), st.integers(-1, 99), st.integers(-1, 99), st.integers(-1, 10**20)),
    st.text(max_size=6),
)


@pytest.mark.promise(22)
@given(headers=st.dictionaries(names, st.text() | dates | st.floats().map(str) | st.integers().map(str)))
def test_no_header_raises_or_waits_without_end(headers: dict[str, str]) -> None:
    wait_s = retry_after_s(headers, NOW)
    assert wait_s is None or 0.0 <= wait_s <= MAX_RETRY_AFTER_S
