"""A compressed body is measured before it is unfolded."""

from __future__ import annotations

import bz2
import lzma
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from kombu import compression as kombu_compression

from workers.broker import compression
from workers.broker.compression import MAX_BODY_BYTES, why_unreadable

METHODS: dict[str, Callable[[bytes], bytes]] = {"gzip": zlib.compress, "bzip2": bz2.compress, "lzma": lzma.compress}


@pytest.mark.parametrize("method", METHODS)
def test_a_bomb_is_refused_in_little_memory(method: str) -> None:
    body = METHODS[method](b"\0" * (MAX_BODY_BYTES + 1))
    tracemalloc.start()
    try:
        reason = why_unreadable(body, method)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reason is not None and "more than 64 MB" in reason
    assert peak < 16 * 1024 * 1024, "lzma needs 8 MB for its dictionary"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", [b"", b"x", b"\0" * 1_000_000, bytes(range(256)) * 5_000])
def test_others_pass(method: str, text: bytes) -> None:
    assert why_unreadable(METHODS[method](text), method) is None


@pytest.mark.parametrize("method", ["bzip2", "lzma"])
def test_streams_one_after_the_other_add_up(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(compression, "MAX_BODY_BYTES", 1_500_000)
    one = METHODS[method](b"\0" * 1_000_000)
    assert why_unreadable(one, method) is None
    assert why_unreadable(one + one, method) is not None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("damage", [lambda body: body[:-9], lambda body: body[:9], lambda body: b"no" + body, bytes])
def test_what_is_damaged_is_left_to_kombu(method: str, damage: Any) -> None:
    assert why_unreadable(damage(METHODS[method](b"text" * 100_000)), method) is None


def test_a_method_that_cannot_be_limited_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kombu_compression._decoders, "application/x-brotli", bytes)
    monkeypatch.setitem(kombu_compression._aliases, "brotli", "application/x-brotli")
    assert "brotli, which can't be limited" in str(why_unreadable(b"", "brotli"))
    assert why_unreadable(b"", "a method that kombu does not know") is None
