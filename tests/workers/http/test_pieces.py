"""Streamed answers over real connections: cut anywhere, packed, large, or no stream at all."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from config.catalog import Timeout
from config.settings import Http as HttpSettings
from workers.http.session import Http
from workers.prompt.failure import Failure
from workers.prompt.job import PromptJob
from workers.providers import CODECS, ProviderRequest, RawResponse

JOB = PromptJob("job-1", "chat", "m", {"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
TEXT = "Zwölf 😀"


def chunk(**fields: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": None, **fields}]}


def stream(*texts: str) -> bytes:
    chunks = [chunk(delta={"content": text}) for text in texts]
    usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}}
    events = [json.dumps(each).encode() for each in (*chunks, chunk(finish_reason="stop"), usage)]
    return b"".join(b"data: %b\n\n" % each for each in [*events, b"[DONE]"])


def reply(body: bytes, *headers: str, length: int | None = None) -> bytes:
    head = ["HTTP/1.1 200 OK", "Connection: close", *headers]
    head += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def asked(http: Http, url: str, texts: list[str], **timeout: float) -> RawResponse:
    assembly = CODECS["openai"].assembly(JOB)
    request = ProviderRequest(f"{url}/chat/completions", {}, b"{}")
    return await http.stream(request, assembly, timeout=Timeout(**timeout), on_text=texts.append)


def text_of(raw: RawResponse) -> str:
    content: str = json.loads(raw.body)["choices"][0]["message"]["content"]
    return content


async def test_cut_at_any_byte_it_is_whole_or_no_answer(raw_server: Any) -> None:
    body = stream("Zw", "ölf ", "😀")
    whole_from = body.index(b'"stop"')
    async with Http(HttpSettings()) as http:

        async def one(cut: int, *, length: int | None) -> None:
            server = await raw_server(reply(body[:cut], length=length))
            texts: list[str] = []
            try:
                raw = await asked(http, server.url, texts)
            except Failure as failure:
                assert (failure.retryable, cut < len(body)) == (True, True), cut
                assert failure.code in {"connection", "bad_response"}, cut
                assert failure.suspected_payment, cut
            else:
                assert cut > whole_from and text_of(raw) == "".join(texts) == TEXT, cut
            assert TEXT.startswith("".join(texts))

        for start in range(0, len(body), 64):
            cuts = range(start, min(start + 64, len(body)))
            await asyncio.gather(*(one(cut, length=None) for cut in cuts if cut > 0))
            await asyncio.gather(*(one(cut, length=len(body)) for cut in cuts if cut > 0))


async def test_a_packed_stream(raw_server: Any) -> None:
    server = await raw_server(reply(gzip.compress(stream("24 ", "clips")), "Content-Encoding: gzip"))
    texts: list[str] = []
    async with Http(HttpSettings()) as http:
        raw = await asked(http, server.url, texts)
    assert text_of(raw) == "".join(texts) == "24 clips"


async def test_a_large_one_takes_its_part_of_the_memory(raw_server: Any) -> None:
    text = "x" * 200_000
    server = await raw_server(reply(stream(text)))
    async with Http(HttpSettings()) as http:
        raw = await asked(http, server.url, [])
        assert text_of(raw) == text
        assert http._unstored.held >= len(text)
        del raw
        await asyncio.sleep(0)
        assert http._unstored.held == 0


@pytest.mark.parametrize("body", [b"", b"\n\n", b'{"choices": []}', b"<html></html>", b"null", b" " * 100_000 + b"{}"])
async def test_what_is_no_stream_comes_as_it_is(raw_server: Any, body: bytes) -> None:
    server = await raw_server(reply(body, length=len(body)))
    async with Http(HttpSettings()) as http:
        raw = await asked(http, server.url, [])
    assert (raw.status, raw.body) == (200, body)


async def test_an_error_is_read_as_an_error(raw_server: Any) -> None:
    server = await raw_server(b"HTTP/1.1 503 X\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
    async with Http(HttpSettings()) as http:
        raw = await asked(http, server.url, [])
    assert (raw.status, raw.body) == (503, b"{}")


async def test_the_first_piece_has_the_calls_whole_time(raw_server: Any) -> None:
    server = await raw_server(reply(b": still here\n\n"), close=False)
    async with Http(HttpSettings()) as http:
        with pytest.raises(Failure) as raised:
            await asked(http, server.url, [], total_s=0.2)
    assert (raised.value.code, raised.value.suspected_payment) == ("timeout", True)


async def test_a_connection_is_used_again_after_a_stream(simulate: Any) -> None:
    simulator = await simulate()
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-any-key-will-do"}
    async with Http(HttpSettings()) as http:
        for _ in range(3):
            request = ProviderRequest(f"{simulator.url}/chat/completions", headers, body)
            await http.stream(request, CODECS["openai"].assembly(JOB), timeout=Timeout(), on_text=len)
    assert simulator.stats()["connections"] == 1
