"""Each fault as it looks from the other end of the connection."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest

from tests.support.waiting import wait_until_async
from workers.simulator import FAULT_HEADER, RunningSimulator
from workers.simulator.faults import Bomb

from .conftest import Start, ledger, question


def asking(http: aiohttp.ClientSession, simulator: RunningSimulator, fault: str, **options: Any) -> Any:
    body = options.pop("body", question())
    headers = {FAULT_HEADER: fault, **options.pop("headers", {})}
    return http.post(simulator.url + "/chat/completions", json=body, headers=headers, **options)


async def raw_reply(simulator: RunningSimulator, fault: str) -> tuple[bytes, BaseException | None]:
    """All bytes until the connection ends, and the error that ended it, if one did."""
    body = json.dumps(question()).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{FAULT_HEADER}: {fault}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    received = b""
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while piece := await reader.read(65_536):
            received += piece
    except ConnectionError as error:
        return received, error
    finally:
        writer.close()
    return received, None


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("429", 429, "rate_limit_exceeded"),
        ("quota", 429, "insufficient_quota"),
        ("500", 500, None),
        ("503", 503, None),
        ("400", 400, None),
        ("401", 401, "invalid_api_key"),
        ("403", 403, "model_not_allowed"),
        ("404", 404, "model_not_found"),
        ("408", 408, "request_timeout"),
        ("context", 400, "context_length_exceeded"),
        ("error-200", 200, "upstream_error"),
    ],
)
async def test_errors_have_openais_body(
    simulate: Start, http: aiohttp.ClientSession, fault: str, status: int, code: str | None
) -> None:
    async with asking(http, await simulate(), fault) as response:
        assert response.status == status
        assert (await response.json())["error"]["code"] == code


async def test_529_has_another_providers_body(simulate: Start, http: aiohttp.ClientSession) -> None:
    async with asking(http, await simulate(), "529") as response:
        assert response.status == 529
        assert (await response.json())["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize(("fault", "status"), [("502-html", 502), ("503-html", 503), ("html", 200)])
async def test_pages_are_html(simulate: Start, http: aiohttp.ClientSession, fault: str, status: int) -> None:
    async with asking(http, await simulate(), fault) as response:
        assert (response.status, response.content_type) == (status, "text/html")
        assert (await response.text()).startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("fault", "headers"),
    [
        ("429", {"Retry-After": "1"}),
        ("429-plain", {}),
        ("429-negative", {"Retry-After": "-5"}),
        ("429-huge", {"Retry-After": "31536000000"}),
        ("429-junk", {"Retry-After": "a little later; please"}),
        ("429-ms", {"retry-after-ms": "250"}),
        ("429-llm-provider", {"llm_provider-retry-after": "1"}),
    ],
)
async def test_a_429_tells_when_to_come_back_in_its_own_way(
    simulate: Start, http: aiohttp.ClientSession, fault: str, headers: dict[str, str]
) -> None:
    async with asking(http, await simulate(), fault) as response:
        assert response.status == 429
        told = {name: value for name, value in response.headers.items() if "retry" in name.lower()}
    assert told == headers


async def test_429_date_is_a_moment_ahead(simulate: Start, http: aiohttp.ClientSession) -> None:
    async with asking(http, await simulate(), "429-date") as response:
        at_s = parsedate_to_datetime(response.headers["Retry-After"]).timestamp()
    assert 0 < at_s - time.time() <= 2


@pytest.mark.parametrize(
    ("fault", "body"), [("empty", b""), ("null", b"null"), ("no-choices", None), ("null-content", None)]
)
async def test_200_that_is_no_answer(
    simulate: Start, http: aiohttp.ClientSession, fault: str, body: bytes | None
) -> None:
    async with asking(http, await simulate(), fault) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        received = await response.read()
    if body is not None:
        assert received == body
    elif fault == "no-choices":
        assert json.loads(received)["choices"] == []
    else:
        assert json.loads(received)["choices"][0]["message"]["content"] is None


async def test_200_that_is_no_json(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    async with asking(http, simulator, "nan") as response:
        assert b'"index":NaN' in await response.read()
    async with asking(http, simulator, "bad-utf8") as response:
        with pytest.raises(UnicodeDecodeError):
            (await response.read()).decode()
    async with asking(http, simulator, "deep") as response:
        body = await response.read()
    assert b"[" * 200_000 + b"]" * 200_000 in body
    with pytest.raises(RecursionError):
        json.loads(body)


async def test_a_bad_answer_to_a_stream_comes_as_an_event(simulate: Start, http: aiohttp.ClientSession) -> None:
    async with asking(http, await simulate(), "error-200", body=question(stream=True)) as response:
        assert response.content_type == "text/event-stream"
        text = await response.text()
    assert text.startswith('data: {"error":')
    assert text.endswith("\n\n")


async def test_hang_answers_never_and_notices_the_leaving(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    waiting = asyncio.create_task(asking(http, simulator, "hang").__aenter__())
    await wait_until_async(lambda: simulator.stats()["in_flight"] == 1, description="the call hanging")
    assert not waiting.done()
    waiting.cancel()
    await wait_until_async(lambda: simulator.stats()["cancelled"] == 1, description="the client's leaving noticed")


async def test_reset_ends_with_rst_and_close_with_fin(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    received, error = await raw_reply(simulator, "reset")
    assert received == b""
    assert isinstance(error, ConnectionResetError)
    assert await raw_reply(simulator, "close") == (b"", None)
    calls = await ledger(http, simulator)
    assert [(call["fault"], call["status"], call["cancelled"]) for call in calls] == [
        ("reset", None, False),
        ("close", None, False),
    ]


async def test_partial_promises_more_than_it_sends(simulate: Start) -> None:
    received, error = await raw_reply(await simulate(), "partial")
    head, _, body = received.partition(b"\r\n\r\n")
    assert error is None
    assert f"Content-Length: {len(body) + 1000}".encode() in head
    assert json.loads(body)["choices"]


@pytest.mark.parametrize("stream", [False, True])
async def test_chunk_cut_ends_without_the_last_chunk(
    simulate: Start, http: aiohttp.ClientSession, stream: bool
) -> None:
    simulator = await simulate()
    async with asking(http, simulator, "chunk-cut", body=question(stream=stream)) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    received, _ = await raw_reply(simulator, "chunk-cut")
    assert b"Transfer-Encoding: chunked" in received
    assert not received.endswith(b"0\r\n\r\n")


async def test_drip_sends_byte_by_byte(simulate: Start, http: aiohttp.ClientSession) -> None:
    async with asking(http, await simulate(), "drip") as response:
        pieces = [await response.content.readany() for _ in range(3)]
        assert int(response.headers["Content-Length"]) > 100
        response.close()
    assert pieces == [b"{", b'"', b"i"]


async def test_slow_takes_ten_times_as_long(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(latency_ms=10, jitter=0)
    async with asking(http, simulator, "slow") as response:
        assert response.status == 200
    (call,) = await ledger(http, simulator)
    assert call["duration_s"] >= 0.099


@pytest.mark.parametrize("stream", [False, True])
async def test_content_filter_withholds_the_text_but_counts_it(
    simulate: Start, http: aiohttp.ClientSession, stream: bool
) -> None:
    simulator = await simulate()
    body = question(stream=stream, stream_options={"include_usage": True})
    async with asking(http, simulator, "content-filter", body=body) as response:
        text = await response.text()
    assert '"finish_reason":"content_filter"' in text
    assert '"finish_reason":"stop"' not in text
    (call,) = await ledger(http, simulator)
    assert f'"completion_tokens":{call["completion_tokens"]},' in text


async def test_huge_is_streamed_and_stops_with_its_reader(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    async with asking(http, simulator, "huge") as response:
        assert "Content-Length" not in response.headers
        received = 0
        async for piece in response.content.iter_any():
            received += len(piece)
            if received > 5_000_000:
                break
        response.close()
    await wait_until_async(lambda: simulator.stats()["in_flight"] == 0, description="the flood stopped")
    assert simulator.stats()["cancelled"] == 1


async def test_gzip_bomb_is_small_and_inflates_to_200_mb(simulate: Start) -> None:
    async with aiohttp.ClientSession(auto_decompress=False) as http, asking(http, await simulate(), "gzip-bomb") as r:
        assert r.headers["Content-Encoding"] == "gzip"
        body = await r.read()
    assert len(body) < 1_000_000
    inflate, inflated_bytes, rest = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16), 0, body
    while rest:
        inflated_bytes += len(inflate.decompress(rest, 1_000_000))
        rest = inflate.unconsumed_tail
    assert inflated_bytes == 200_000_000
    assert inflate.eof, "checksum and length are right"


def test_a_bomb_of_any_size_is_a_good_gzip_file() -> None:
    assert zlib.decompress(Bomb(1_234_567).body(), wbits=zlib.MAX_WBITS | 16) == b" " * 1_234_567


async def test_header_100k(simulate: Start) -> None:
    roomy = aiohttp.ClientSession(max_field_size=200_000, max_line_size=200_000)
    async with roomy as http, asking(http, await simulate(), "header-100k") as response:
        assert len(response.headers["X-Padding"]) == 100_000
        assert (await response.json())["choices"]


async def test_redirect_shows_in_the_ledger_whether_the_key_came_along(
    simulate: Start, http: aiohttp.ClientSession
) -> None:
    simulator = await simulate()
    key = {"Authorization": "Bearer k"}
    async with asking(http, simulator, "redirect", headers=key, allow_redirects=False) as response:
        assert response.status == 302
    assert [call["path"] for call in await ledger(http, simulator)] == ["/v1/chat/completions"]
    async with asking(http, simulator, "redirect", headers=key) as response:
        assert response.status == 200
    followed = (await ledger(http, simulator))[-1]
    assert (followed["path"], followed["authorized"]) == ("/v1/redirected", True)


async def test_an_unknown_fault_is_refused_with_the_known_names(simulate: Start, http: aiohttp.ClientSession) -> None:
    async with asking(http, await simulate(), "gremlin") as response:
        assert response.status == 400
        assert "gzip-bomb" in (await response.json())["error"]["message"]


async def test_a_share_of_one_strikes_every_call(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(faults={"503": 1.0})
    for number in range(5):
        async with http.post(simulator.url + "/chat/completions", json=question(f"{number}")) as response:
            assert response.status == 503
    assert simulator.stats()["by_status"] == {"503": 5}


async def test_faults_strike_embeddings_too(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(faults={"500": 1.0})
    async with http.post(simulator.url + "/embeddings", json={"model": "m", "input": "x"}) as response:
        assert response.status == 500


async def test_a_stop_breaks_off_what_hangs(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    waiting = asyncio.create_task(asking(http, simulator, "hang").__aenter__())
    await wait_until_async(lambda: simulator.stats()["in_flight"] == 1, description="the call hanging")
    await simulator.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await waiting


async def strike(http: aiohttp.ClientSession, simulator: RunningSimulator, body: Any) -> tuple[int, str]:
    async with http.post(simulator.url.removesuffix("/v1") + "/__faults", json=body) as response:
        return response.status, await response.text()


async def status_of_a_call(http: aiohttp.ClientSession, simulator: RunningSimulator) -> int:
    async with http.post(simulator.url + "/chat/completions", json=question()) as response:
        return response.status


async def test_an_outage_at_will(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(faults={"400": 1.0})
    assert await status_of_a_call(http, simulator) == 400
    assert (await strike(http, simulator, {"faults": {"503": 1.0}}))[0] == 200
    assert await status_of_a_call(http, simulator) == 503
    assert (await strike(http, simulator, {"faults": {}}))[0] == 200
    assert await status_of_a_call(http, simulator) == 200


async def test_an_outage_of_a_given_length_ends_by_itself(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    await strike(http, simulator, {"faults": {"503": 1.0}, "for_s": 0.3})
    assert await status_of_a_call(http, simulator) == 503

    async def is_over() -> bool:
        return await status_of_a_call(http, simulator) == 200

    await wait_until_async(is_over, description="the outage ends")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"faults": {"404040": 1.0}}, "unknown fault"),
        ({"faults": {"503": 2.0}}, "must lie between 0 and 1"),
        ({"fault": {"503": 1.0}}, "not of this form"),
        ([], "not of this form"),
    ],
)
async def test_faults_that_there_are_not_change_nothing(
    simulate: Start, http: aiohttp.ClientSession, body: Any, says: str
) -> None:
    simulator = await simulate()
    status, text = await strike(http, simulator, body)
    assert status == 400 and says in text and "for_s" in text
    assert await status_of_a_call(http, simulator) == 200


def streamed(http: aiohttp.ClientSession, simulator: RunningSimulator, fault: str) -> Any:
    return asking(http, simulator, fault, body={**question(), "stream": True})


async def test_a_stream_is_cut_after_some_of_its_text(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    received = b""
    with pytest.raises(aiohttp.ClientPayloadError):
        async with streamed(http, simulator, "stream-cut") as response:
            async for piece in response.content.iter_any():
                received += piece
    assert b'"content":"' in received and b"[DONE]" not in received


async def test_a_stream_stands_still_after_some_of_its_text(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate()
    received = b""
    with pytest.raises(TimeoutError):
        async with streamed(http, simulator, "stream-hang") as response, asyncio.timeout(0.2):
            async for piece in response.content.iter_any():
                received += piece
    assert b'"content":"' in received and b"[DONE]" not in received


@pytest.mark.parametrize(
    ("dialect", "error"), [("openai", b'data: {"error":'), ("anthropic", b"event: error\ndata: {")]
)
async def test_a_stream_ends_with_an_error(
    simulate: Start, http: aiohttp.ClientSession, dialect: Any, error: bytes
) -> None:
    simulator = await simulate(dialect=dialect)
    path = "/messages" if dialect == "anthropic" else "/chat/completions"
    headers = {FAULT_HEADER: "stream-error", "anthropic-version": "2023-06-01", "x-api-key": "sk-any"}
    body = {**question(), "stream": True, "max_tokens": 200}
    async with http.post(simulator.url + path, json=body, headers=headers) as response:
        *_, last, end = (await response.read()).split(b"\n\n")
    assert (response.status, end) == (200, b"")
    assert last.startswith(error)


async def test_tokens_come_at_their_pace(simulate: Start, http: aiohttp.ClientSession) -> None:
    simulator = await simulate(tokens_per_s=100, output_tokens=20, jitter=0, latency_ms=0)
    began = time.monotonic()
    async with http.post(simulator.url + "/chat/completions", json={**question(), "stream": True}) as response:
        events = (await response.read()).count(b"data: {")
    assert time.monotonic() - began >= (events - 2) / 100
