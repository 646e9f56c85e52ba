"""The HTTP side against real servers: pooling, caps, time-outs, and what its failures may say."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import shutil
import ssl
import subprocess
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from aiohttp import client_exceptions, http_exceptions, web
from aiohttp.client_reqrep import ConnectionKey

from config.catalog import Timeout
from config.settings import Http as HttpSettings
from tasks.errors import ERROR_CODES
from workers.http.errors import _MEANINGS, FOREIGN, translate
from workers.http.session import Http
from workers.prompt.failure import Failure
from workers.providers import ProviderRequest, RawResponse

QUICK = Timeout(total_s=5, connect_s=2, read_s=2)
SECRET = "sk-canary-77aa"


def request_to(url: str, body: bytes = b"{}") -> ProviderRequest:
    return ProviderRequest(f"{url}/chat/completions", {"Authorization": f"Bearer {SECRET}"}, body)


async def post(url: str, *, timeout: Timeout = QUICK, body: bytes = b"{}", **settings: Any) -> RawResponse:
    async with Http(HttpSettings(**settings)) as http:
        return await http.post(request_to(url, body), timeout=timeout)


async def failed(url: str, **options: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        await post(url, **options)
    return caught.value


# -- the table


def exceptions_of(module: Any) -> set[type[BaseException]]:
    found = {value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, BaseException)}
    return {cls for cls in found if cls.__module__ == module.__name__}


# We follow no redirect, open no websocket and watch no upload. By name: not every version that we can use has them all.
NEVER_RAISED = {
    "TooManyRedirects",
    "RedirectClientError",
    "InvalidUrlRedirectClientError",
    "NonHttpUrlRedirectClientError",
    "WSServerHandshakeError",
    "WSMessageTypeError",
    "UploadAbortedError",
}


def test_each_exception_of_aiohttps_client_has_its_own_meaning() -> None:
    raised = {cls for cls in exceptions_of(client_exceptions) if cls.__name__ not in NEVER_RAISED}
    assert raised <= _MEANINGS.keys()


@pytest.mark.parametrize(
    "cls", [*sorted(exceptions_of(http_exceptions), key=str), ssl.SSLError, ConnectionResetError, TimeoutError]
)
def test_the_layers_below_are_caught_too(cls: type[BaseException]) -> None:
    assert issubclass(cls, FOREIGN)


# Their text names the peer, so they can't be made without one; the tests below meet them.
NAMES_THE_PEER = {cls for cls in _MEANINGS if issubclass(cls, client_exceptions.ClientConnectorError)}


@pytest.mark.parametrize("cls", [cls for cls in _MEANINGS if cls not in NAMES_THE_PEER])
def test_a_foreign_exceptions_own_text_is_not_repeated(cls: type[BaseException]) -> None:
    error = cls.__new__(cls)
    error.args = ("the canary prompt",)
    failure = translate(error)
    assert failure.code in ERROR_CODES
    assert "canary" not in repr(vars(failure)) + str(failure)


# -- connections


async def test_connections_are_pooled_and_closed(simulate: Any, wait_until: Any) -> None:
    simulator = await simulate(latency_ms=5)
    async with Http(HttpSettings()) as http:
        for _ in range(5):
            await asyncio.gather(*(http.post(request_to(simulator.url, CHAT), timeout=QUICK) for _ in range(8)))
        assert simulator.stats()["calls"] == 40
        assert simulator.stats()["connections"] == 8
    await wait_until(lambda: simulator.stats()["open_connections"] == 0, description="the pool is closed")


CHAT = b'{"model": "m", "messages": [{"role": "user", "content": "2 + 2"}]}'


async def test_the_fragile_profile_uses_few_connections_each_once(simulate: Any) -> None:
    simulator = await simulate(latency_ms=5)
    async with Http(HttpSettings()) as http:
        request = request_to(simulator.url, CHAT)
        await asyncio.gather(*(http.post(request, timeout=QUICK, profile="fragile") for _ in range(35)))
    assert simulator.stats()["connections"] == 35
    assert simulator.stats()["peak_in_flight"] == 10


@pytest.mark.covers("setting", "http.limit")
async def test_the_wait_for_a_connection_is_not_time_of_the_call(simulate: Any) -> None:
    simulator = await simulate(latency_ms=40, jitter=0.0)
    timeout = Timeout(total_s=0.3)
    async with Http(HttpSettings(limit=1)) as http:
        calls = (http.post(request_to(simulator.url, CHAT), timeout=timeout) for _ in range(10))
        assert [response.status for response in await asyncio.gather(*calls)] == [200] * 10
    assert simulator.stats()["peak_in_flight"] == 1


@pytest.mark.covers("setting", "http.force_close")
async def test_force_close_is_an_option(simulate: Any) -> None:
    simulator = await simulate()
    async with Http(HttpSettings(force_close=True)) as http:
        for _ in range(3):
            await http.post(request_to(simulator.url, CHAT), timeout=QUICK)
    assert simulator.stats()["connections"] == 3


@pytest.mark.covers("setting", "http.limit_per_host")
async def test_connections_to_one_host_are_limited(simulate: Any) -> None:
    simulator = await simulate(latency_ms=20)
    async with Http(HttpSettings(limit_per_host=2)) as http:
        await asyncio.gather(*(http.post(request_to(simulator.url, CHAT), timeout=QUICK) for _ in range(8)))
    assert simulator.stats()["peak_in_flight"] == 2


@pytest.mark.covers("setting", "http.keepalive_s")
async def test_an_idle_connection_is_closed_after_its_time(simulate: Any, wait_until: Any) -> None:
    simulator = await simulate()
    async with Http(HttpSettings(keepalive_s=0.1)) as http:
        await http.post(request_to(simulator.url, CHAT), timeout=QUICK)
        await wait_until(lambda: simulator.stats()["open_connections"] == 0, description="it is closed", timeout_s=10)


@pytest.mark.promise(48)
@pytest.mark.covers("setting", "http.ttl_dns_cache_s")
@pytest.mark.parametrize(("ttl_s", "lookups"), [(30, 1), (0, 3)])
async def test_an_address_is_remembered_as_long_as_the_setting_says(
    ttl_s: int, lookups: int, raw_server: Any, reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await raw_server(reply(200, b"{}"))
    loop, asked = asyncio.get_running_loop(), list[str]()
    look_up = loop.getaddrinfo

    async def counted(host: str, *args: Any, **options: Any) -> Any:
        asked.append(host)
        return await look_up(host, *args, **options)

    monkeypatch.setattr(loop, "getaddrinfo", counted)
    async with Http(HttpSettings(ttl_dns_cache_s=ttl_s, force_close=True)) as http:
        for _ in range(3):
            await http.post(request_to(server.url.replace("127.0.0.1", "localhost")), timeout=QUICK)
    assert asked == ["localhost"] * lookups


@pytest.mark.parametrize("sent", [(), (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",)], ids=["before", "in"])
async def test_a_cancelled_call_closes_its_connection(
    raw_server: Any, wait_until: Any, sent: tuple[bytes, ...]
) -> None:
    server = await raw_server(*sent, close=False)
    async with Http(HttpSettings()) as http:
        call = asyncio.create_task(http.post(request_to(server.url), timeout=Timeout(total_s=60)))
        await wait_until(lambda: server.requests, description="the request has arrived")
        call.cancel()
        async with asyncio.timeout(1):
            await server.disconnected.wait()
        with pytest.raises(asyncio.CancelledError):
            await call


# -- bodies


async def test_status_headers_and_body_arrive(raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, b'{"a": 1}', "X-Request-ID: req_1"))
    response = await post(server.url)
    assert (response.status, response.body, response.headers["x-request-id"]) == (200, b'{"a": 1}', "req_1")


async def test_a_compressed_body_is_opened(raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, gzip.compress(b"x" * 5_000), "Content-Encoding: gzip"))
    assert (await post(server.url)).body == b"x" * 5_000


@pytest.mark.promise(20)
@pytest.mark.parametrize("fault", ["huge", "gzip-bomb"])
async def test_200_mb_of_answer_stay_out_of_memory(simulate: Any, fault: str) -> None:
    simulator = await simulate(fault)
    async with Http(HttpSettings(max_response_bytes=1024 * 1024)) as http:
        tracemalloc.start()
        try:
            with pytest.raises(Failure) as caught:
                await http.post(request_to(simulator.url, CHAT), timeout=QUICK)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (caught.value.code, caught.value.retryable) == ("too_large", False)
    assert "PROMPTMILL_HTTP__MAX_RESPONSE_BYTES" in caught.value.message
    assert peak_bytes < 8 * 1024 * 1024


@pytest.mark.covers("setting", "http.max_response_bytes")
async def test_a_body_of_just_the_cap_is_taken(raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, b"x" * 1_000))
    assert len((await post(server.url, max_response_bytes=1_000)).body) == 1_000
    assert (await failed(server.url, max_response_bytes=999)).code == "too_large"


async def test_an_errors_huge_body_is_cut_and_does_not_hide_its_status(raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(500, b"x" * 1_000_000))
    response = await post(server.url, max_response_bytes=1_000)
    assert (response.status, len(response.body)) == (500, 64 * 1024)


async def test_an_errors_broken_body_does_not_hide_its_status(raw_server: Any) -> None:
    server = await raw_server(b"HTTP/1.1 429 X\r\nRetry-After: 3\r\nContent-Length: 100\r\n\r\nabc")
    response = await post(server.url)
    assert (response.status, response.headers["retry-after"]) == (429, "3")


async def test_a_prompt_of_megabytes_is_sent_whole(raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, b"{}"))
    await post(server.url, body=b"x" * 3_000_000)
    assert server.requests[0].endswith(b"x" * 3_000_000)


@pytest.mark.promise(21)
async def test_a_redirect_is_not_followed(simulate: Any) -> None:
    simulator = await simulate("redirect")
    async with Http(HttpSettings()) as http:
        response = await http.post(request_to(simulator.url, CHAT), timeout=QUICK)
    assert response.status == 302
    assert simulator.stats()["calls"] == 1


async def test_no_cookie_is_kept(raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(200, b"{}", "Set-Cookie: session=1; Path=/"))
    # A jar keeps none for a bare address, so the server goes by a name.
    url = server.url.replace("127.0.0.1", "localhost")
    async with Http(HttpSettings()) as http:
        for _ in range(2):
            await http.post(request_to(url), timeout=QUICK)
    assert b"cookie" not in server.requests[1].lower()


# -- failures


@pytest.mark.covers("catalog", "timeout.read_s")
async def test_each_time_out_says_which_it_was(raw_server: Any) -> None:
    server = await raw_server(b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", close=False)
    total = await failed(server.url, timeout=Timeout(total_s=0.1, read_s=5))
    read = await failed(server.url, timeout=Timeout(total_s=5, read_s=0.1))
    assert (total.code, read.code) == ("timeout", "timeout")
    assert "within the model's time-out" in total.message
    assert "read time-out" in read.message


@pytest.mark.promise(23)
async def test_refused_connection_unknown_host_and_tls_error(simulate: Any, unused_url: str) -> None:
    refused = await failed(unused_url)
    unknown = await failed("http://provider.invalid/v1")
    tls = await failed((await simulate()).url.replace("http:", "https:"))
    assert [(failure.code, failure.retryable) for failure in (refused, unknown, tls)] == [("connection", True)] * 3
    assert [failure.unreachable for failure in (refused, unknown, tls)] == [True, True, False]
    assert not any(failure.suspected_payment for failure in (refused, unknown, tls))
    assert "127.0.0.1" in refused.message
    assert "provider.invalid" in unknown.message
    assert "TLS" in tls.message


@pytest.fixture
async def unused_url() -> str:
    listener = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    return f"http://127.0.0.1:{port}/v1"


@pytest.mark.parametrize("url", ["http://", "http://host:99999/v1", "ftp://host/v1", "http://\ud800.example/v1"])
async def test_a_url_that_cant_be_used_is_named(url: str) -> None:
    assert not (await failed(url)).retryable


async def test_a_key_that_cant_be_a_header_is_not_shown() -> None:
    request = ProviderRequest("http://127.0.0.1:1/v1", {"Authorization": "Bearer sk-canary-77aa\r\nX: 1"}, b"")
    async with Http(HttpSettings()) as http:
        with pytest.raises(Failure) as caught:
            await http.post(request, timeout=QUICK)
    assert SECRET not in repr(caught.value)


async def test_no_failure_carries_the_request_along(raw_server: Any) -> None:
    for reply in (b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", b""):
        server = await raw_server(reply)
        failure = await failed(server.url, timeout=Timeout(total_s=0.3))
        chain = [failure, failure.__cause__, failure.__context__]
        assert chain[1:] == [None, None]
        assert SECRET not in repr(vars(failure))


# -- proxies and certificates


@pytest.mark.covers("setting", "http.proxy")
async def test_the_proxy_of_the_settings_is_used(raw_server: Any, reply: Any) -> None:
    proxy = await raw_server(reply(200, b"{}"))
    await post("http://provider.invalid/v1", proxy=proxy.url.removesuffix("/v1"))
    assert proxy.requests[0].startswith(b"POST http://provider.invalid/v1/chat/completions")


@pytest.mark.covers("setting", "http.trust_env")
async def test_the_environments_proxy_is_used_only_if_wanted(
    raw_server: Any, reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await raw_server(reply(200, b"{}"))
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
    monkeypatch.setenv("no_proxy", "spared.invalid")
    await post("http://proxied.invalid/v1", trust_env=True)
    await failed("http://spared.invalid/v1", trust_env=True)
    await failed("http://unasked.invalid/v1")
    assert len(proxy.requests) == 1


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject]
    subprocess.run([*command, "-keyout", key, "-out", cert, "-days", "2"], check=True, capture_output=True)
    return cert, key


@pytest.mark.covers("setting", "http.ca_file")
async def test_a_private_ca_is_trusted_when_it_is_named(certificate: tuple[Path, Path], wait_until: Any) -> None:
    cert, key = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.Response(body=b"{}")

    server = web.Server(answer)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    try:
        refused = await failed(url)
        trusted = await post(url, ca_file=cert)
    finally:
        listener.close()
        await server.shutdown()
        await listener.wait_closed()
    assert (refused.code, trusted.status) == ("connection", 200)
    assert "PROMPTMILL_HTTP__CA_FILE" in refused.message


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_ca_file_that_cant_be_read_is_refused_at_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"PROMPTMILL_HTTP__CA_FILE.*ca\.pem"):
        await post("http://127.0.0.1:1/v1", ca_file=path)


# -- encodings


PLAIN = b'{"answer": "' + b"fine " * 20_000 + b'"}'


def chunks(body: bytes, size: int = 7_000) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("padding", [b"", b" " * 60_000], ids=["direct", "by the session"])
@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(PLAIN)),
        ("x-gzip", gzip.compress(PLAIN)),
        ("gzip", gzip.compress(PLAIN[:500]) + gzip.compress(PLAIN[500:])),
        ("gzip", PLAIN),  # a gateway that has unpacked it and says it has not
        ("deflate", zlib.compress(PLAIN)),
        ("deflate", zlib.compress(PLAIN)[2:-4]),  # without its header, as old servers send it
        ("identity", PLAIN),
    ],
)
async def test_what_we_ask_for_is_decoded(
    raw_server: Any, reply: Any, encoding: str, body: bytes, padding: bytes
) -> None:
    server = await raw_server(reply(200, body, f"Content-Encoding: {encoding}"))
    found = await post(server.url, body=b"{}" + padding)
    assert found.body == PLAIN
    assert b"accept-encoding: gzip, deflate\r\n" in server.requests[0].lower()


@pytest.mark.parametrize("padding", [b"", b" " * 60_000], ids=["direct", "by the session"])
@pytest.mark.parametrize(
    ("encoding", "body", "says"),
    [
        ("br", b"\x8b\x02\x80{}\x03", "br"),
        ("zstd", b"(\xb5/\xfd", "zstd"),
        ("gzip, br", b"x", "gzip, br"),
        ("<script>", b"x", "?"),
        ("gzip", b"\x1f\x8b\x08" + b"broken" * 20, "gzip"),
    ],
)
async def test_an_encoding_that_was_not_asked_for_is_named(
    raw_server: Any, reply: Any, encoding: str, body: bytes, says: str, padding: bytes
) -> None:
    server = await raw_server(reply(200, body, f"Content-Encoding: {encoding}"))
    failure = await failed(server.url, body=b"{}" + padding)
    assert (failure.code, failure.retryable, failure.suspected_payment) == ("bad_response", False, True)
    assert f"encoded as {says}," in failure.message


async def test_an_error_keeps_its_status_whatever_its_encoding(raw_server: Any, reply: Any) -> None:
    server = await raw_server(reply(503, b"\x8b", "Content-Encoding: br"))
    assert (await post(server.url)).status == 503


async def test_an_encoded_answer_that_is_cut_off_is_no_answer(raw_server: Any) -> None:
    cut = gzip.compress(PLAIN)[:-10]
    server = await raw_server(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n" + chunks(cut)
    )
    failure = await failed(server.url)
    assert (failure.code, failure.retryable) == ("connection", True)


async def test_two_lengths_are_one_failure(raw_server: Any) -> None:
    server = await raw_server(
        b"HTTP/1.1 200 OK\r\nContent-Length: 407\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(b"{}")
    )
    failure = await failed(server.url)
    assert (failure.code, failure.retryable, failure.suspected_payment) == ("bad_response", False, True)


# -- proxies of the environment


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "https_proxy"])
async def test_a_socks_proxy_is_refused_at_start(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "socks5://user:secret@127.0.0.1:9")
    with pytest.raises(ValueError, match="SOCKS") as refused:
        await post("http://127.0.0.1:1/v1", trust_env=True)
    assert variable.upper() in str(refused.value)
    assert "secret" not in str(refused.value)
    assert (await failed("http://127.0.0.1:1/v1")).unreachable, "nobody asked to follow it"


def test_only_an_unknown_authority_is_advised_to_be_named() -> None:
    def refused(code: int, words: str) -> str:
        certificate = ssl.SSLCertVerificationError()
        certificate.verify_code, certificate.verify_message = code, words
        key = ConnectionKey("host", 443, True, True, None, None, None)
        return translate(client_exceptions.ClientConnectorCertificateError(key, certificate)).message

    assert "PROMPTMILL_HTTP__CA_FILE" in refused(20, "unable to get local issuer certificate")
    assert refused(85, "Missing Authority Key Identifier").endswith("(host:443: Missing Authority Key Identifier)")
