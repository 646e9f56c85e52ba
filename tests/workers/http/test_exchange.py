"""One request over the wire, both ways: by our own exchange, and by aiohttp's session, which sends what is unusual."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.catalog import Timeout
from config.settings import Http as HttpSettings
from workers.http.exchange import MAX_BODY_BYTES, Exchanges
from workers.http.session import Http
from workers.prompt.failure import Failure
from workers.providers import ProviderRequest, RawResponse

QUICK = Timeout(total_s=5, connect_s=2, read_s=2)
CHAT = b'{"model": "m", "messages": [{"role": "user", "content": "2 + 2"}]}'

DIRECTLY: dict[str, str] = {}
BY_SESSION = {"X-Note": "a\ttab"}
"""A tab is legal in a header, and unusual enough."""

both_ways = pytest.mark.parametrize("way", [DIRECTLY, BY_SESSION], ids=["directly", "by session"])


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with Http(HttpSettings()) as http:
        yield http


async def ask(
    http: Http, url: str, way: dict[str, str], *, timeout: Timeout = QUICK, body: bytes = CHAT, **headers: str
) -> RawResponse:
    headers = {"Content-Type": "application/json", **headers, **way}
    return await http.post(ProviderRequest(f"{url}/chat/completions", headers, body), timeout=timeout)


@asynccontextmanager
async def serving(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """The URL of a server that has `answer` talk to each client, and waits for it at the end."""
    talks: list[asyncio.Task[Any] | None] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*(task for task in talks if task is not None))


def spoken(request: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Its first line, its headers in alphabetical order, its body."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    return first, sorted(line for line in headers if not line.startswith(b"X-Note")), body


NAMED: dict[str, Any] = {"Authorization": "Bearer sk-1", "X-Name": "Zoë"}


@pytest.mark.parametrize("force_close", [False, True])
async def test_both_ways_say_the_same(force_close: bool, raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, b"{}"))
    async with Http(HttpSettings(force_close=force_close)) as http:
        for way in (DIRECTLY, BY_SESSION):
            await ask(http, server.url, way, **NAMED)
    directly, by_session = map(spoken, server.requests)
    assert directly == by_session
    assert directly[0] == b"POST /v1/chat/completions HTTP/1.1"
    assert {"X-Name: Zoë".encode(), b"User-Agent: promptmill", b"Content-Type: application/json"} <= set(directly[1])
    assert (b"Connection: close" in directly[1], directly[2]) == (force_close, CHAT)


@both_ways
async def test_a_path_is_sent_as_it_is_written(way: dict[str, str], http: Http, raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, b"{}"))
    await ask(http, f"{server.url}/models%2Fa/ü?api-version=2024 01", way)
    assert spoken(server.requests[0])[0].startswith(b"POST /v1/models%2Fa/%C3%BC?api-version=2024+01")


async def test_the_two_ways_share_the_connections(http: Http, simulate: Any) -> None:
    simulator = await simulate()
    for way in (DIRECTLY, BY_SESSION, DIRECTLY):
        assert (await ask(http, simulator.url, way)).status == 200
    assert simulator.stats()["connections"] == 1


@pytest.mark.parametrize("size", [MAX_BODY_BYTES, MAX_BODY_BYTES + 1])
async def test_the_last_body_that_goes_directly_and_the_first_not(
    size: int, http: Http, raw_server: Any, reply: Any
) -> None:
    server = await raw_server(reply(200, b"{}"))
    await ask(http, server.url, DIRECTLY, body=b"x" * size)
    assert server.requests[0].endswith(b"x" * size)
    async with aiohttp.ClientSession() as session:
        goes_directly = Exchanges(session, max_header_bytes=8_190)._direct(server.url, {}, b"x" * size) is not None
        assert goes_directly == (size <= MAX_BODY_BYTES)


async def test_a_login_in_the_url_is_sent_as_one(http: Http, raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, b"{}"))
    await ask(http, server.url.replace("//", "//user:word@"), DIRECTLY)
    first, headers, _ = spoken(server.requests[0])
    assert first == b"POST /v1/chat/completions HTTP/1.1"
    assert b"Authorization: Basic dXNlcjp3b3Jk" in headers


async def test_a_login_in_the_url_beside_a_key_is_refused(http: Http, raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, b"{}"))
    with pytest.raises(Failure) as caught:
        await ask(http, server.url.replace("//", "//user:word@"), DIRECTLY, Authorization="Bearer sk-1")
    assert (caught.value.code, caught.value.retryable, server.requests) == ("internal", False, [])


@pytest.mark.promise(21)
@both_ways
async def test_a_redirect_is_not_followed(way: dict[str, str], http: Http, simulate: Any) -> None:
    simulator = await simulate("redirect")
    assert (await ask(http, simulator.url, way)).status == 302
    assert simulator.stats()["calls"] == 1


# -- answers


INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"

ANSWERS = {
    "after interim ones": INTERIM + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    "until the end of the connection": b"HTTP/1.1 200 OK\r\n\r\n{}",
    "of HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
}


@both_ways
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_is_read(way: dict[str, str], answer: bytes, http: Http, raw_server: Any) -> None:
    server = await raw_server(answer)
    response = await ask(http, server.url, way)
    assert (response.status, response.body) == (200, b"{}")


@pytest.mark.covers("setting", "http.max_header_bytes")
@both_ways
@pytest.mark.parametrize(("bytes_", "is_read"), [(20_000, True), (40_000, False)])
async def test_long_headers_are_read_up_to_the_setting(
    bytes_: int, is_read: bool, way: dict[str, str], raw_server: Any, reply: Any
) -> None:
    server = await raw_server(reply(200, b"{}", f"X-Long: {'x' * bytes_}"))
    async with Http(HttpSettings(max_header_bytes=32_000)) as http:
        if is_read:
            assert len((await ask(http, server.url, way)).headers["x-long"]) == bytes_
        else:
            with pytest.raises(Failure, match="headers are too large"):
                await ask(http, server.url, way)


@both_ways
async def test_an_answer_may_have_no_body(way: dict[str, str], http: Http, raw_server: Any) -> None:
    server = await raw_server(b"HTTP/1.1 204 No Content\r\n\r\n", close=False)
    response = await ask(http, server.url, way)
    assert (response.status, response.body) == (204, b"")


@both_ways
async def test_a_switch_of_protocols_is_an_answer_and_ends_the_link(
    way: dict[str, str], http: Http, raw_server: Any
) -> None:
    server = await raw_server(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", close=False
    )
    response = await ask(http, server.url, way, timeout=Timeout(total_s=5, read_s=0.1))
    assert (response.status, response.body) == (101, b"")
    async with asyncio.timeout(1):
        await server.disconnected.wait()


@both_ways
async def test_an_answer_in_pieces_is_put_together(way: dict[str, str]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(CHAT)
        for piece in (b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 6\r\n\r\nab", b"cd", b"ef"):
            await asyncio.sleep(0.02)
            writer.write(piece)
            await writer.drain()

    async with serving(answer) as url, Http(HttpSettings()) as http:
        assert (await ask(http, url, way)).body == b"abcdef"


@pytest.mark.promise(18)
@both_ways
async def test_a_silence_in_an_answer_is_named_and_closes_the_link(
    way: dict[str, str], http: Http, raw_server: Any
) -> None:
    server = await raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", close=False)
    with pytest.raises(Failure, match="read time-out") as caught:
        await ask(http, server.url, way, timeout=Timeout(total_s=5, read_s=0.1))
    assert (caught.value.code, caught.value.retryable, caught.value.suspected_payment) == ("timeout", True, True)
    async with asyncio.timeout(1):
        await server.disconnected.wait()


@pytest.mark.promise(26)
@both_ways
async def test_before_the_first_byte_only_the_whole_calls_time_counts(
    way: dict[str, str], http: Http, raw_server: Any, reply: Any
) -> None:
    server = await raw_server()
    with pytest.raises(Failure, match="within the model's time-out") as caught:
        await ask(http, server.url, way, timeout=Timeout(total_s=0.4, read_s=0.1))
    assert (caught.value.code, caught.value.suspected_payment, caught.value.unreachable) == ("timeout", True, False)


@pytest.fixture
def deaf_url() -> Iterator[str]:
    """Of a listener whose queue is full: it answers no handshake."""
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            caller = waiting.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@both_ways
async def test_an_interim_answer_ends_a_silence(way: dict[str, str]) -> None:
    async def think(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(CHAT)
        for piece in [b"HTTP/1.1 102 Processing\r\n\r\n"] * 5 + [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"]:
            await asyncio.sleep(0.1)
            writer.write(piece)
            await writer.drain()

    async with serving(think) as url, Http(HttpSettings()) as http:
        assert (await ask(http, url, way, timeout=Timeout(total_s=5, read_s=0.4))).body == b"{}"


async def test_what_comes_unasked_is_nobodys_answer(wait_until: Any) -> None:
    """A gateway that answers twice: the second answer must not become that of the next prompt."""
    served: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(len(served))
        await reader.readuntil(CHAT)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nSTALE")
        await reader.read()

    async with serving(answer) as url, Http(HttpSettings()) as http:
        connector = http._lanes["default"].session.connector
        assert connector is not None
        for turn in range(1, 4):
            assert (await ask(http, url, DIRECTLY)).body == b"{}"
            assert len(served) == turn
            await wait_until(
                lambda: any(protocol.should_close for pool in connector._conns.values() for protocol, _ in pool),
                description="the second answer has come",
            )


@pytest.mark.covers("catalog", "timeout.connect_s")
@both_ways
async def test_no_connection_in_time_is_called_so(way: dict[str, str], http: Http, deaf_url: str) -> None:
    for timeout in (Timeout(total_s=60, connect_s=0.1), Timeout(total_s=0.4, connect_s=10)):
        with pytest.raises(Failure, match="connect time-out") as caught:
            async with asyncio.timeout(5):
                await ask(http, deaf_url, way, timeout=timeout)
        assert (caught.value.suspected_payment, caught.value.unreachable) == (False, True)


@pytest.mark.promise(18)
@both_ways
async def test_a_provider_that_hangs_up_is_named(way: dict[str, str]) -> None:
    async def hang_up(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(CHAT)

    async with serving(hang_up) as url, Http(HttpSettings()) as http:
        with pytest.raises(Failure, match="closed the connection without an answer"):
            await ask(http, url, way)


@both_ways
async def test_a_connection_that_is_to_be_closed_is_not_used_again(
    way: dict[str, str], http: Http, raw_server: Any
) -> None:
    server = await raw_server(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", close=False)
    for _ in range(2):
        await ask(http, server.url, way)
    assert server.connections == 2


# -- connections that were idle, and peers that are gone


def closing_server(
    *, reset: bool = False, after_s: float = 0.0, says: bytes = b""
) -> tuple[list[int], Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]]:
    """A server that answers once on its first connection, and ends that one in the moment of the next request.

    On further connections it answers. The list counts the requests that were answered on each.
    """
    answered: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_first = not answered
        answered.append(0)
        number = len(answered) - 1
        while await reader.read(2**20):
            if is_first and answered[number]:
                await asyncio.sleep(after_s)
                writer.write(says)
                await writer.drain()
                if reset:
                    writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            answered[number] += 1

    return answered, answer


@pytest.mark.promise(27)
@both_ways
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_row_27_an_idle_connection_that_is_closed_is_replaced(way: dict[str, str], reset: bool) -> None:
    answered, answer = closing_server(reset=reset)
    async with serving(answer) as url, Http(HttpSettings()) as http:
        await ask(http, url, way)
        assert (await ask(http, url, way)).body == b"{}"
        assert answered == [1, 1]


@pytest.mark.promise(27)
async def test_row_27_the_other_idle_connections_are_not_tried(wait_until: Any) -> None:
    """A server that was restarted has closed them all."""
    requests: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(requests)
        requests.append(0)
        while await reader.read(2**20):
            requests[number] += 1
            if number < 3 and requests[number] == 2:
                return
            await asyncio.sleep(0.05)  # so that three calls at a time need three connections
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with serving(answer) as url, Http(HttpSettings()) as http:
        await asyncio.gather(*(ask(http, url, DIRECTLY) for _ in range(3)))
        assert (await ask(http, url, DIRECTLY)).body == b"{}"
        assert sorted(requests) == [1, 1, 1, 2]


@pytest.mark.promise(27)
@both_ways
@pytest.mark.parametrize(
    "ending", [{"after_s": 1.1}, {"says": b"HTTP/1.1 200 OK\r\nContent-"}], ids=["later", "after a byte"]
)
async def test_row_27_what_the_server_may_have_read_is_not_sent_again(
    way: dict[str, str], ending: dict[str, Any]
) -> None:
    answered, answer = closing_server(**ending)
    async with serving(answer) as url, Http(HttpSettings()) as http:
        await ask(http, url, way)
        with pytest.raises(Failure) as caught:
            await ask(http, url, way)
    assert (caught.value.code, caught.value.suspected_payment, answered) == ("connection", True, [1])


@pytest.mark.promise(27)
@both_ways
async def test_row_27_a_new_connection_is_not_replaced(way: dict[str, str], http: Http, raw_server: Any) -> None:
    connections = []

    async def hang_up(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await reader.readuntil(CHAT)

    async with serving(hang_up) as url:
        with pytest.raises(Failure) as caught:
            await ask(http, url, way)
    assert (caught.value.suspected_payment, len(connections)) == (True, 1)


async def test_a_large_prompt_that_was_not_sent_whole_is_not_paid_for(http: Http) -> None:
    async def stop_reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1_000)
        writer.transport.abort()

    async with serving(stop_reading) as url:
        with pytest.raises(Failure) as caught:
            await ask(http, url, DIRECTLY, body=b"x" * 50_000_000)
    assert (caught.value.code, caught.value.suspected_payment, caught.value.unreachable) == ("connection", False, False)


@both_ways
async def test_a_dead_peer_is_noticed_within_a_minute(way: dict[str, str], http: Http, simulate: Any) -> None:
    simulator = await simulate()
    await ask(http, simulator.url, way)
    connector = http._lanes["default"].session.connector
    assert connector is not None
    ((protocol, _),) = next(iter(connector._conns.values()))
    assert protocol.transport is not None
    sock = protocol.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    tcp = {name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}")) for name in KEEPALIVE}
    assert tcp["KEEPIDLE"] + tcp["KEEPINTVL"] * tcp["KEEPCNT"] <= 60
    assert 0 < tcp["USER_TIMEOUT"] <= 60_000


KEEPALIVE = ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")


async def test_an_address_that_does_not_answer_is_asked_for_again(
    raw_server: Any, reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider moves: its old address refuses, and DNS knows the new one already."""
    server = await raw_server(reply(200, b"{}"))
    port = int(server.url.split(":")[2].removesuffix("/v1"))
    addresses = iter(["127.0.0.2", "127.0.0.1"])
    asked: list[str] = []

    async def getaddrinfo(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(addresses), port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    async with Http(HttpSettings()) as http:
        url = server.url.replace("127.0.0.1", "provider.test")
        with pytest.raises(Failure) as caught:
            await ask(http, url, DIRECTLY)
        assert caught.value.unreachable
        assert (await ask(http, url, DIRECTLY)).status == 200
    assert asked == ["provider.test"] * 2


# -- no header can become two


@given(st.dictionaries(st.sampled_from(["A", "B"]), st.text()), st.binary(max_size=20))
async def test_what_goes_directly_has_one_line_for_each_header(headers: dict[str, str], body: bytes) -> None:
    async with aiohttp.ClientSession() as session:
        destination = Exchanges(session, max_header_bytes=8_190)._direct("http://host/path", headers, body)
        if destination is None:
            assert not all(map(str.isprintable, headers.values()))
            return
        head, _, sent = destination.message(headers, body).partition(b"\r\n\r\n")
        assert sent == body
        lines = head.split(b"\r\n")
        assert b"\n" not in b"".join(lines) and b"\r" not in b"".join(lines)
        assert [f"{name}: {value}".encode() for name, value in headers.items()] == lines[-1 - len(headers) : -1]
