"""Bytes that are hardly HTTP: each is refused with a problem document, and harms nobody else."""

from __future__ import annotations

import contextlib
import gzip

import pytest

from tests.api.client import Client
from tests.api.watching import open_files, peak_bytes
from tests.api.wire import (
    HOST,
    JSON,
    Closed,
    assert_problem,
    connected,
    exchange,
    request_bytes,
)
from tests.daemons import RunningDaemon, wait_for

pytestmark = pytest.mark.usefixtures("_quiet")

LIMIT = 1_048_576
GET = b"GET /v1/health HTTP/1.1\r\n" + HOST
SMUGGLED = request_bytes("POST", "/v1/sessions", b'{"session_id":"smuggled"}')
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(190))


def create(headers: bytes, body: bytes = b"{}") -> bytes:
    """A request that would create a session, with headers about its body."""
    return b"POST /v1/sessions HTTP/1.1\r\n" + HOST + JSON + headers + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked\r\n"

REFUSED = {
    "garbage": b"\x00\xff\x01 garbage\r\n\r\n",
    "a TLS hello": TLS_HELLO,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a redis command": b"*1\r\n$4\r\nPING\r\n",
    "an unknown method": b"FROB /v1/health HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method in lower case": b"get /v1/health HTTP/1.1\r\n" + HOST + b"\r\n",
    "an unknown version": b"GET /v1/health HTTP/9.9\r\n" + HOST + b"\r\n",
    "no version": b"GET /v1/health\r\n\r\n",
    "no host": b"GET /v1/health HTTP/1.1\r\n\r\n",
    "two hosts, the right one first": GET + b"Host: evil.example\r\n\r\n",
    "two hosts, the right one last": b"GET / HTTP/1.1\r\nHost: evil.example\r\n" + HOST + b"\r\n",
    "an empty target": b"GET  HTTP/1.1\r\n" + HOST + b"\r\n",
    "a query without a path": b"GET ? HTTP/1.1\r\n" + HOST + b"\r\n",
    "the authority form": b"GET localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "the asterisk form": b"GET * HTTP/1.1\r\n" + HOST + b"\r\n",
    "the absolute form, broken": b"GET http://[::1/v1/health HTTP/1.1\r\n" + HOST + b"\r\n",
    "the absolute form, no port": b"GET http://localhost:99999/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "two slashes": b"GET //v1/health HTTP/1.1\r\n" + HOST + b"\r\n",
    "a lone bracket": b"GET //[ HTTP/1.1\r\n" + HOST + b"\r\n",
    "a broken escape": b"GET /v1/%zz HTTP/1.1\r\n" + HOST + b"\r\n",
    "line feeds alone": b"GET /v1/health HTTP/1.1\nHost: localhost\n\n",
    "a carriage return alone": GET + b"X: a\rY: b\r\n\r\n",
    "a blank before the colon": GET + b"X : a\r\n\r\n",
    "a header without a colon": GET + b"X\r\n\r\n",
    "a header without a name": GET + b": a\r\n\r\n",
    "a NUL in a header": GET + b"X: a\x00b\r\n\r\n",
    "a folded header": GET + b"X: a\r\n b\r\n\r\n",
    "a target of 20 kB": b"GET /v1/health?" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header of 20 kB": GET + b"X: " + b"a" * 20_000 + b"\r\n\r\n",
    "5,000 headers": GET + b"X: y\r\n" * 5_000 + b"\r\n",
    "two content types": create(b"Content-Type: text/plain\r\nContent-Length: 2\r\n"),
    "length and chunks": create(b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n" + SMUGGLED),
    "chunks and length": create(CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n" + SMUGGLED),
    "two lengths": create(b"Content-Length: 2\r\nContent-Length: 3\r\n", b"{}" + SMUGGLED),
    "the same length twice": create(b"Content-Length: 2\r\nContent-Length: 2\r\n"),
    "a list of lengths": create(b"Content-Length: 2, 2\r\n"),
    "a length with a sign": create(b"Content-Length: +2\r\n"),
    "a negative length": create(b"Content-Length: -2\r\n"),
    "a length of 26 digits": create(b"Content-Length: 99999999999999999999999999\r\n"),
    "a hexadecimal length": create(b"Content-Length: 0x2\r\n"),
    "a folded length": create(b"Content-Length:\r\n 2\r\n"),
    "an encoding like chunked": create(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    "chunked, but not last": create(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "chunked twice": create(CHUNKED + CHUNKED, b"2\r\n{}\r\n0\r\n\r\n"),
    "no size of a chunk": create(CHUNKED, b"\r\n{}\r\n0\r\n\r\n"),
    "a size that is none": create(CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n"),
    "a negative size": create(CHUNKED, b"-2\r\n{}\r\n0\r\n\r\n"),
    "a size of 80 bits": create(CHUNKED, b"f" * 20 + b"\r\n{}\r\n0\r\n\r\n"),
    "a chunk that is too long": create(CHUNKED, b"2\r\n{}xx0\r\n\r\n" + SMUGGLED),
    "a chunk ended by line feed": create(CHUNKED, b"2\n{}\n0\n\n" + SMUGGLED),
    "a quote in an extension": create(CHUNKED, b'2;a="b\nc"\r\n{}\r\n0\r\n\r\n'),
    "a length in the trailer": create(CHUNKED, b"2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n"),
}


def smuggled(client: Client) -> bool:
    """Tell whether a request inside another's body was ever carried out."""
    return client.call("GET", "/v1/sessions/smuggled").status != 404


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_broken_requests_get_one_problem_and_the_connection_ends(
    client: Client, data: bytes
) -> None:
    with connected(client.socket) as wire:
        wire.send(data)
        assert_problem(wire.answer())
        wire.send(GET + b"Connection: close\r\n\r\n")  # nothing more is understood, or this is
        with contextlib.suppress(Closed):
            assert wire.answer().status == 200
        assert wire.ended()
    assert not smuggled(client)


@pytest.mark.parametrize("data", [b"2\r\n{\n\r\nzz\r\n", b"1\r\n{xx0\r\n\r\n"])
def test_chunks_that_break_while_the_body_is_read_get_one_problem(
    client: Client, data: bytes
) -> None:
    with connected(client.socket, seconds=5) as wire:
        wire.send(create(CHUNKED + b"Expect: 100-continue\r\n", b""))
        assert wire.answer().status == 100  # the handler waits for the body now
        wire.send(data)
        assert_problem(wire.answer(), 400)
        assert wire.ended()


def test_trailers_are_no_headers(client: Client, session: str) -> None:
    head = f"POST {session}/messages HTTP/1.1\r\n".encode() + HOST + JSON + CHUNKED + b"\r\n"
    trailer = b"Sessiond-Client: forged\r\nIdempotency-Key: forged\r\n"
    for _ in range(2):
        data = head + b'f\r\n{"role":"user"}\r\n0\r\n' + trailer + b"\r\n"
        assert exchange(client.socket, data).status == 201
    last = client.get(f"{session}/operations?after=0")["operations"][-1]
    assert "forged" not in last["origin"]
    assert client.position(session).endswith(":4"), "the key in the trailer made them one"


def test_pipelined_requests_are_answered_in_their_order(client: Client) -> None:
    paths = [f"/v1/sessions/p{number}" for number in range(200)]
    with connected(client.socket) as wire:
        wire.send(b"".join(request_bytes("GET", path) for path in paths))
        for path in paths:
            name = path.rpartition("/")[2]
            assert f"'{name}'" in assert_problem(wire.answer(), 404).detail


def test_a_broken_request_in_a_pipeline_ends_it_there(client: Client) -> None:
    """Those before it may be answered, or not be carried out at all."""
    with connected(client.socket) as wire:
        wire.send(request_bytes("GET", "/v1/health") * 2 + b"\x00broken\r\n\r\n" + SMUGGLED)
        while (answer := wire.answer()).status == 200:
            pass
        assert_problem(answer, 400)
        assert wire.ended()
    assert not smuggled(client)


def test_half_requests_keep_nobody_else_waiting(client: Client) -> None:
    halves = (
        b"GET /v1/hea",
        GET,
        create(b"Content-Length: 20\r\n", b"{"),
        create(CHUNKED, b"2\r\n{"),
        TLS_HELLO[:5],
        b"",
    )
    with connected(client.socket, seconds=2) as other:
        wires = [connected(client.socket) for _ in range(30) for _ in halves]
        opened = [wire.__enter__() for wire in wires]
        for number, wire in enumerate(opened):
            wire.send(halves[number % len(halves)])
        other.send(GET + b"\r\n")
        assert other.answer().status == 200
        for wire in opened:
            wire.close()
    assert client.get("/v1/health")["ready"]


def test_a_body_that_comes_byte_by_byte_is_read(client: Client) -> None:
    head, _, body = request_bytes("POST", "/v1/sessions", b'{"title":"slow"}').partition(
        b"\r\n\r\n"
    )
    with connected(client.socket) as wire:
        for byte in head + b"\r\n\r\n" + body:
            wire.send(bytes([byte]))
        assert wire.answer().json["metadata"]["title"] == "slow"


@pytest.mark.parametrize("length", [b"Content-Length: 99\r\n", CHUNKED], ids=["length", "chunks"])
def test_a_client_that_leaves_in_mid_body_has_written_nothing(
    client: Client, session: str, length: bytes
) -> None:
    before = client.position(session)
    body = b'{"role":"user","content":"half"}'
    piece = b"%x\r\n%b\r\n" % (len(body), body) if length == CHUNKED else body
    with connected(client.socket) as wire:
        head = f"POST {session}/messages HTTP/1.1\r\n".encode() + HOST + JSON + length
        wire.send(head + b"Expect: 100-continue\r\n\r\n")
        assert wire.answer().status == 100
        wire.send(piece)
    assert client.append(session, "next").endswith(":3"), "the half body took an offset"
    assert before.endswith(":2")


def test_expect_continue_is_answered_before_the_body_comes(client: Client) -> None:
    with connected(client.socket) as wire:
        wire.send(create(b"Expect: 100-continue\r\nContent-Length: 2\r\n", b""))
        assert wire.answer().status == 100
        wire.send(b"{}")
        assert wire.answer().status == 201


def test_other_expectations_are_refused(client: Client) -> None:
    data = create(b"Expect: a-teapot\r\nContent-Length: 2\r\n")
    assert_problem(exchange(client.socket, data))


def test_the_absolute_form_names_the_host_that_counts(client: Client) -> None:
    """RFC 9112, 3.2.2: the target's authority counts, whatever the Host header says."""
    for host in ("localhost", "sessiond"):
        data = f"GET http://{host}/v1/health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        assert exchange(client.socket, data).status == 200
    data = b"GET http://evil.example/v1/health HTTP/1.1\r\n" + HOST + b"\r\n"
    assert_problem(exchange(client.socket, data), 403)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "PUT"])
@pytest.mark.parametrize("path", ["/v1/health", "/v1/sessions", "/openapi.json", "*", "/"])
def test_other_methods_are_refused_and_echo_nothing(client: Client, method: str, path: str) -> None:
    data = request_bytes(method, path, None, {"X-Canary": "canary"})
    answer = exchange(client.socket, data, method=method)
    assert 400 <= answer.status < 500
    assert b"canary" not in answer.body
    assert not [name for name, _ in answer.headers if name.startswith("access-control-")]


def test_method_not_allowed_names_the_methods_that_are(client: Client) -> None:
    """RFC 9110, 15.5.6: a 405 answer must carry Allow."""
    answer = client.call("PUT", "/v1/sessions")
    told = assert_problem(answer, 405, "method-not-allowed")
    assert set(answer.header("allow").replace(" ", "").split(",")) == {"GET", "POST"}, told


def test_an_answer_to_head_has_no_body_that_the_next_request_would_trip_over(
    client: Client,
) -> None:
    with connected(client.socket) as wire:
        wire.send(request_bytes("HEAD", "/v1/health") + GET + b"\r\n")
        wire.answer("HEAD")
        assert wire.answer().status == 200


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.3"])
def test_no_other_protocol_is_switched_to(client: Client, protocol: str) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": protocol, "Sec-WebSocket-Version": "13"}
    with connected(client.socket) as wire:
        wire.send(request_bytes("GET", "/v1/health", None, upgrade))
        assert wire.answer().status == 200
        wire.send(request_bytes("POST", "/v1/sessions", b"{}", upgrade))
        assert wire.answer().status == 201


def test_http_1_0_is_answered_and_closed(client: Client) -> None:
    with connected(client.socket) as wire:
        wire.send(b"GET /v1/health HTTP/1.0\r\n" + HOST + b"\r\n")
        assert wire.answer().status == 200
        assert wire.ended()


def encoded(encoding: str, body: bytes) -> bytes:
    return request_bytes("POST", "/v1/sessions", body, {"Content-Encoding": encoding})


ENCODED = {
    "gzip, but it is none": encoded("gzip", b"{}"),
    "gzip, cut short": encoded("gzip", gzip.compress(b'{"title":"long enough"}')[:20]),
    "gzip, with rubbish behind": encoded("gzip", gzip.compress(b"{}") + b"rubbish"),
    "deflate, but it is none": encoded("deflate", b"{}"),
    "br": encoded("br", b"\x0b\x01\x80{}\x03"),
    "zstd": encoded("zstd", bytes.fromhex("28b52ffd2002110000") + b"{}"),
    "gzip twice": encoded("gzip, gzip", gzip.compress(gzip.compress(b"{}"))),
    "unknown": encoded("rot13", b'{"gvgyr":1}'),
    "as transfer encoding": create(
        b"Transfer-Encoding: gzip, chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n" + SMUGGLED
    ),
}


@pytest.mark.parametrize("data", ENCODED.values(), ids=ENCODED.keys())
def test_encodings_that_cannot_be_read_are_refused(client: Client, data: bytes) -> None:
    assert_problem(exchange(client.socket, data))


def test_a_body_that_unfolds_to_150_megabytes_is_refused_without_unfolding_it(
    daemon: RunningDaemon, client: Client
) -> None:
    bomb = gzip.compress(b'"' + b"a" * 150_000_000 + b'"', compresslevel=1)
    assert_problem(exchange(client.socket, encoded("gzip", bomb)))
    assert peak_bytes(daemon) < 150 * 1024 * 1024


def stated(size: int) -> bytes:
    return create(b"Content-Length: %d\r\n" % size, b'"')


def test_a_body_of_exactly_the_limit_is_read(client: Client, session: str) -> None:
    body = b'"' + b"a" * (LIMIT - 2) + b'"'
    assert client.call("POST", f"{session}/live", body).status == 202
    assert_problem(client.call("POST", f"{session}/live", body + b" "), 413, "too-large")


@pytest.mark.parametrize("size", [LIMIT + 1, 1 << 30, 1 << 60])
def test_a_stated_length_beyond_the_limit_is_refused(client: Client, size: int) -> None:
    with connected(client.socket) as wire:
        wire.send(stated(size), b"a" * (LIMIT + 1))
        told = assert_problem(wire.answer(), 413, "too-large")
        assert str(LIMIT) in told.detail
        assert "api.max_body_bytes" in str(told.hint)


def test_chunks_beyond_the_limit_are_refused_before_their_end(
    daemon: RunningDaemon, client: Client
) -> None:
    with connected(client.socket) as wire:
        wire.send(create(CHUNKED, b""), (b"10000\r\n" + b"a" * 65_536 + b"\r\n") * 17)
        assert_problem(wire.answer(), 413, "too-large")
    assert peak_bytes(daemon) < 150 * 1024 * 1024


def test_everything_above_holds_on_the_loopback_port_too(daemon: RunningDaemon) -> None:
    address = tcp_address(daemon)
    for name, data in REFUSED.items():
        assert assert_problem(exchange(address, data)).status < 500, name


def tcp_address(daemon: RunningDaemon) -> tuple[str, int]:
    """Where a daemon's loopback port is."""
    status = exchange(daemon.socket, request_bytes("GET", "/v1/status")).json
    host, _, port = str(status["address"]).rpartition("://")[2].rpartition(":")
    return host, int(port)


def test_connections_that_ended_leave_no_file_open(daemon: RunningDaemon, client: Client) -> None:
    client.get("/v1/status")
    most = open_files(daemon) + 4
    for data in [*REFUSED.values(), b"GET /v1/hea"]:
        with connected(client.socket) as wire:
            wire.send(data)
    wait_for(lambda: open_files(daemon) <= most)
    assert open_files(daemon) <= most
