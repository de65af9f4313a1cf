"""Hostile ids, bodies, queries and headers: refused with a problem, or kept as they are.

Whatever is refused has written nothing.
"""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from sessiond.api.routes import Route
from sessiond.codec.json import MAX_DEPTH
from tests.api.client import ROUTES, Client, filled, name_of
from tests.api.wire import Closed, assert_problem, exchange, request_bytes
from tests.daemons import RunningDaemon

pytestmark = pytest.mark.usefixtures("_quiet")

CANARY = "canary-5f1d"
WITH_BODY = [route for route in ROUTES if route.body is not None]
NAMES = ("session_id", "message_id", "part_id", "document", "workspace", "number")
WITH_NAMES = [route for route in ROUTES if "{" in route.path]
WITH_QUERY = [route for route in ROUTES if route.query]

IDS = [
    "%2F", "a%2Fb", "..%2F..%2Fetc", "..", ".", "%2e%2e", "a%00", "%00", "a%0A", "a%0D%0AX:%20y",
    "-a", "_a", ".a", "a b", "a%20b", "%C3%A9", "%D9%A3", "%F0%9F%98%80", "%FF", "%ED%A0%80",
    "%zz", "%", "a%", "a{b}", "{a}", "a*", "a?b"[:1] + "%3Fb", "a%23b", "a;b", "a:b", "a@b", "a,b",
    "a" * 129, "a" * 1_000, "a" * 10_000, "%61%2f", "~a", "'", "%22", "$(id)", "a%25",
]  # fmt: skip
"""Names as they stand in an address, of which none can be an id or a document."""

NO_JSON = {
    "nothing": b"",
    "blanks": b" \r\n\t ",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "UTF-16 without a mark": "{}".encode("utf-16-le"),
    "UTF-32": "{}".encode("utf-32"),
    "UTF-7": b"{+ACI-a+ACI-:1}",
    "a byte that is not UTF-8": b'{"role":"user","content":"\xff"}',
    "an overlong slash": b'{"role":"user","content":"\xc0\xaf"}',
    "half a character, encoded": b'{"role":"user","content":"\xed\xa0\x80"}',
    "half a character, escaped": b'{"role":"user","content":"\\ud800"}',
    "the other half": b'{"role":"user","content":"\\udc00 "}',
    "halves in the wrong order": b'{"role":"user","content":"\\udc00\\ud800"}',
    "half a character as a name": b'{"\\ud800":1}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "a number beyond a double": b'{"a":1e400}',
    "5,000 digits": b'{"a":' + b"1" * 5_000 + b"}",
    "a leading zero": b'{"a":01}',
    "a hexadecimal number": b'{"a":0x1}',
    "rubbish behind": b"{}x",
    "two documents": b"{}{}",
    "a NUL behind": b"{}\x00",
    "a comma too many": b'{"a":1,}',
    "no end": b'{"a":[1',
    "a text without an end": b'{"a":"',
    "an escape without an end": b'{"a":"\\u00',
    "an unknown escape": b'{"a":"\\x41"}',
    "a raw line break in a text": b'{"a":"\n"}',
    "a raw NUL in a text": b'{"a":"\x00"}',
    "single quotes": b"{'a':1}",
    "a comment": b"{}//",
    "YAML": b"a: 1",
    "XML": b"<a/>",
    "a form": b"a=1&b=2",
    "deep arrays": b"[" * 100_000,
    "deep objects": b'{"a":' * 10_000,
    "deep, with an end": b'{"a":' * 100 + b"1" + b"}" * 100,
    "one level too deep": b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    "deep behind a quote": b'{"a":"\\"' + b"[" * 200 + b'","b":' + b"[" * 200,
}

ODD_JSON = {
    "NUL": {"a": "\x00", "\x00": 1},
    "control characters": {"a": "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029\ufeff\ufffe"},
    "no name": {"": {"": ""}},
    "names with meaning elsewhere": {
        "proto": {"__proto__": 1},
        "$ref": "#",
        "a.b": 1,
        "a/b": 1,
        "*": 1,
    },
    "names that sessiond uses in Redis": {"version": "1", "epoch": "x", "status": "deleted"},
    "all planes": {"a": "\U0001f600\U0010ffff\ue000é"},
    "2**53 + 1": {"a": 2**53 + 1},
    "2**64": {"a": [2**63, 2**64 - 1, 2**64, -(2**63) - 1]},
    "400 digits": {"a": 10**400},
    "zeros": {"a": [0, 0.0, -0.0, 1.0, 1]},
    "small and large": {"a": [5e-324, 1.7976931348623157e308]},
    "1, true and 1.0": {"a": [1, True, 1.0, "1", [1]]},
    "almost as deep as can be": {"a": json.loads("[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2))},
    "brackets in a text": {"a": '"[[[{{{' * 1_000},
    "a name of 100 kB": {"a" * 100_000: 1},
    "a text of 900 kB": {"a": "é" * 450_000},
    "20,000 names": {f"n{number}": number for number in range(20_000)},
}


@pytest.mark.parametrize("route", WITH_NAMES, ids=name_of)
def test_names_in_an_address_that_are_none_are_refused(client: Client, route: Route) -> None:
    names = [part for part in NAMES if f"{{{part}}}" in route.path]
    body = b"{}" if route.body else None
    for name in names:
        for hostile in IDS:
            data = request_bytes(route.method, filled(route, **{name: hostile}), body)
            assert_problem(exchange(client.socket, data))


@pytest.mark.parametrize("route", WITH_BODY, ids=name_of)
def test_bodies_that_are_no_json_are_refused_and_write_nothing(
    client: Client, session: str, route: Route
) -> None:
    before = client.get(session)
    path = filled(route, session_id=session.rpartition("/")[2], message_id="first")
    for name, body in NO_JSON.items():
        answer = client.call(route.method, path, body)
        assert assert_problem(answer, 400, "invalid-input").detail, name
    assert client.get(session) == before


@pytest.mark.parametrize("route", WITH_BODY, ids=name_of)
@pytest.mark.parametrize("body", [b"null", b"true", b"1", b'"a"', b"[]", b"[{}]", b"1.5"])
def test_bodies_of_a_wrong_type_are_refused(
    client: Client, session: str, route: Route, body: bytes
) -> None:
    path = filled(route, session_id=session.rpartition("/")[2], message_id="first")
    answer = client.call(route.method, path, body)
    if route.path.endswith("/live"):  # takes whatever is JSON
        assert answer.status == 202
    else:
        assert_problem(answer, 400, "invalid-input")


@pytest.mark.parametrize("value", ODD_JSON.values(), ids=ODD_JSON.keys())
def test_odd_but_valid_json_is_kept_as_it_is(
    client: Client, session: str, value: dict[str, Any]
) -> None:
    began = time.monotonic()
    answer = client.call("PUT", f"{session}/preferences", value)
    assert answer.status == 200, answer.body[:300]
    assert repr(answer.json) == repr(value)
    assert time.monotonic() - began < 5
    for found in (
        client.get(f"{session}/preferences"),
        client.get(session)["preferences"],
        client.get(f"{session}/operations?after=2")["operations"][0]["body"]["set"],
    ):
        assert sorted(found) == sorted(value)
        assert repr(dict(sorted(found.items()))) == repr(dict(sorted(value.items())))
    message = {"role": "user", "id": "odd", "metadata": value}
    assert client.call("POST", f"{session}/messages", message).status == 201
    assert repr(client.get(f"{session}/messages/odd")["metadata"]) == repr(value)


def test_64_levels_are_read_and_65_are_not(client: Client, session: str) -> None:
    def nested(levels: int) -> bytes:
        return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    assert client.call("PATCH", f"{session}/preferences", nested(64)).status == 200
    client.assert_refused("PATCH", f"{session}/preferences", nested(65), status=400)


def test_preferences_cannot_take_the_names_that_sessiond_uses_beside_them(
    client: Client, session: str
) -> None:
    before = client.get(session)
    for patch in ({"_version": "mine"}, {"a": 1, "_": None, "_x": 2}):
        said = client.assert_refused("PATCH", f"{session}/preferences", patch, status=400)
        assert "underscore" in said
        client.assert_refused("PUT", f"{session}/preferences", patch, status=400)
        client.assert_refused("POST", "/v1/sessions", {"preferences": patch}, status=400)
    assert client.get(session) == before


def test_the_last_of_duplicate_names_counts(client: Client, session: str) -> None:
    answer = client.call("PUT", f"{session}/preferences", b'{"a":1,"a":{"b":1,"b":2}}')
    assert answer.json == client.get(f"{session}/preferences") == {"a": {"b": 2}}


CONTENT_TYPES = {
    "application/json": True,
    "APPLICATION/JSON": True,
    "application/json; charset=utf-8": True,
    'application/json;charset="UTF-8"': True,
    "application/json ; a=b": True,
    "": False,
    "json": False,
    "text/json": False,
    "text/plain": False,
    "text/plain; application/json": False,
    "application/json, text/plain": False,
    "application/jsonp": False,
    "application/json\udcff": False,
    "application/octet-stream": False,
    "application/x-www-form-urlencoded": False,
    "multipart/form-data; boundary=x": False,
    ";": False,
    "a" * 5_000: False,
}


@pytest.mark.parametrize(("content_type", "known"), CONTENT_TYPES.items())
def test_only_bodies_declared_as_json_are_read(
    client: Client,
    session: str,
    content_type: str,
    known: bool,  # noqa: FBT001
) -> None:
    data = request_bytes("POST", f"{session}/live", b"{}", {"Content-Type": content_type})
    answer = exchange(client.socket, data)
    if known:
        assert answer.status == 202
    else:
        assert "application/json" in str(assert_problem(answer, 415, "unsupported-media-type").hint)


def test_a_body_without_a_content_type_is_refused(client: Client, session: str) -> None:
    data = request_bytes("POST", f"{session}/live", b"{}").replace(b"Content-Type", b"X-Type")
    assert_problem(exchange(client.socket, data), 415, "unsupported-media-type")


NUMBERS = ["-1", "+1", "1.0", "1e2", "0x1", "", "a", "1%00", "%201", "9" * 16, "9" * 5_000]
LIMITS = {
    "/v1/sessions": 500,
    "/v1/presence": 500,
    "conflicts": 10_000,
    "messages": 10_000,
    "operations": 1_000,
    "/trace": 10_000,
    "/v1/redis": 10_000,
}


@pytest.mark.parametrize("route", WITH_QUERY, ids=name_of)
def test_numbers_in_a_query_are_whole_and_bounded(
    client: Client, session: str, route: Route
) -> None:
    path = filled(route, session_id=session.rpartition("/")[2]) + "?"
    path += "key=sessiond:sessions&" if "key" in route.query else ""
    if "limit" in route.query:
        highest = next(LIMITS[end] for end in LIMITS if route.path.endswith(end))
        for text in [*NUMBERS, "%D9%A3", "0", str(highest + 1)]:
            client.assert_refused("GET", f"{path}limit={text}", status=400)
        assert client.call("GET", f"{path}limit={highest}").status == 200
    if "after" in route.query:
        for text in filter(None, NUMBERS):
            client.assert_refused("GET", f"{path}after={text}", status=400)


def test_digits_of_other_scripts_are_no_position_and_no_version(
    client: Client, session: str
) -> None:
    client.assert_refused("GET", f"{session}/messages?after=%D9%A3", status=400)
    client.assert_refused("PATCH", f"{session}/preferences", {}, If_Match='"٣"', status=400)
    client.assert_refused("GET", f"{session}/operations?after=%D9%A3", status=400)
    client.assert_refused("GET", f"{session}/events?after=%D9%A3", status=400)
    client.assert_refused("GET", f"{session}/events", Last_Event_ID="0" * 14 + ":٣", status=400)


def queried(route: Route, session: str, query: str) -> bytes:
    path = filled(route, session_id=session.rpartition("/")[2], message_id="first")
    return request_bytes(route.method, f"{path}?{query}", b"{}" if route.body else None)


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_unknown_query_parameters_are_refused(client: Client, session: str, route: Route) -> None:
    """They would be ignored, and whoever sent them would not learn of it."""
    for query in ("unknown=1", f"{CANARY}=", "=", "%00=1", "a" * 5_000, "Limit=1", "token=x"):
        answer = exchange(client.socket, queried(route, session, query))
        assert "query" in assert_problem(answer, 400, "invalid-input").detail


@pytest.mark.parametrize("route", WITH_QUERY, ids=name_of)
def test_repeated_query_parameters_are_refused(client: Client, session: str, route: Route) -> None:
    """All but one would be ignored."""
    for name in route.query:
        answer = exchange(client.socket, queried(route, session, f"{name}=1&{name}=2"))
        assert name in assert_problem(answer, 400, "invalid-input").detail


@pytest.mark.parametrize(
    "cursor",
    ["", "x", ".", "1", "1.", ".ses", "-1.ses", "1e3.ses", "%D9%A3.ses", "9" * 16 + ".s", "inf.ses",
     "%2Binf.ses", "1." + "a" * 5_000, "1.%00", "1.%FF", "(1.ses", "1.a/b"],
)  # fmt: skip
def test_a_cursor_that_no_listing_gave_is_refused_or_finds_nothing_wrong(
    client: Client, session: str, cursor: str
) -> None:
    answer = client.call("GET", f"/v1/sessions?cursor={cursor}")
    if answer.status != 200:
        assert_problem(answer, 400, "invalid-input")
    else:
        assert answer.json["sessions"] == []


@pytest.mark.parametrize("value", ["%00", "%FF", "a" * 5_000, "*", "a:events", "}", "%0A", "[a-z]"])
@pytest.mark.parametrize("name", ["workspace", "user_id", "environment", "status"])
def test_a_filter_that_no_session_has_finds_none(
    client: Client, session: str, name: str, value: str
) -> None:
    answer = client.call("GET", f"/v1/sessions?{name}={value}")
    if answer.status != 200:
        assert_problem(answer, 400, "invalid-input")
    else:
        assert answer.json == {"sessions": [], "cursor": None}


WRITES = [
    ("POST", "/v1/sessions", {}),
    ("DELETE", "{}", None),
    ("POST", "{}/messages", {"role": "user"}),
    ("PATCH", "{}/messages/first", {"content": "x"}),
    ("DELETE", "{}/messages/first", None),
    ("PUT", "{}/messages/first/parts/p", {"type": "text"}),
    ("DELETE", "{}/messages/first/parts/p", None),
    ("PATCH", "{}/preferences", {"a": 1}),
    ("PUT", "{}/context", {}),
    ("POST", "{}/live", {}),
]
BAD_HEADERS = {
    "Idempotency-Key": ["", "a b", "a\tb", "é", "\udcff", "a" * 129],
    "Sessiond-Client": ["", "a b", "-a", "a@b", "a:b", "a/b", "é", "\udcff", "a" * 65, "a\tb"],
    "If-Match": [
        "", "x", '"x"', 'W/"1"', "-1", '"1", "2"', "9" * 16, "0" * 13 + ":1", "0" * 14 + ":",
        "G" * 14 + ":1", "\udcff", "**",
    ],
}  # fmt: skip


@pytest.mark.parametrize("write", WRITES, ids=lambda write: f"{write[0]} {write[1]}")
@pytest.mark.parametrize("header", BAD_HEADERS)
def test_headers_about_a_write_are_checked_before_it(
    client: Client, session: str, write: tuple[str, str, Any], header: str
) -> None:
    method, path, body = write
    before = client.get(session)
    data = None if body is None else msgspec.json.encode(body)
    for value in BAD_HEADERS[header]:
        target = path.format(session)
        answer = exchange(client.socket, request_bytes(method, target, data, {header: value}))
        assert_problem(answer, 400, "invalid-input")
    assert client.get(session) == before


@pytest.mark.parametrize(
    "key",
    ["", "foreign", "other:key", "*", "sessiond", "sessiond*", "sessiond:*", "s*:sessions",
     "sessiond:sess?ons", "sessiond:[s]essions", "SESSIOND:sessions", "sessiond%00:sessions",
     "sessiond:%00", "sessiond:%FF", "sessiond:" + "a" * 5_000, "%20sessiond:sessions",
     "sessiond2:sessions", "sessiond:sessions%0A", "sessiond:sessions%20sessiond:instances"],
)  # fmt: skip
def test_only_keys_of_our_own_are_shown_and_patterns_are_names(
    daemon: RunningDaemon, client: Client, key: str
) -> None:
    redis_command(daemon, "SET", "foreign", CANARY)
    redis_command(daemon, "SET", "sessiond2:sessions", CANARY)
    answer = client.call("GET", f"/v1/redis?key={key}")
    assert_problem(answer, 404 if key else 400)
    assert CANARY not in answer.body.decode()


def redis_command(daemon: RunningDaemon, *words: str) -> None:
    """Send a command to the daemon's embedded server."""
    command = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    from tests.api.wire import connected  # noqa: PLC0415 - not HTTP, for once

    with connected(daemon.redis_socket) as wire:
        wire.send(f"*{len(words)}\r\n{command}".encode())
        assert wire.socket.recv(5) == b"+OK\r\n"


BAD_OPTIONS: list[Any] = [
    {"nope": "1"},
    {"": "1"},
    {"debug": "1"},
    {"debug.nope": "1"},
    {"debug.sessions": "perhaps"},
    {"debug.sessions": 1},
    {"debug.sessions": ""},
    {"debug.log_level": "loud"},
    {"debug.log_level": "DEBUG"},
    {"debug.log_level": 10**400},
    {"debug.log_level": 1.5},
    {"debug.log_format": "json"},
    {"redis.url": f"redis://user:{CANARY}@127.0.0.1"},
    {"redis.url": CANARY},
    {"api.host": "0.0.0.0"},  # noqa: S104 - it must be refused
    {"api.allowed_origins": "*"},
    {"api.max_body_bytes": "16777216"},
    {"security.encrypt_sessions": "true"},
    {"debug.sessions": "true", "redis.timeout_seconds": "1"},
    {"debug.sessions": "true", "nope": "1"},
    {"debug.sessions": None},
    {"debug.sessions": ["true"]},
    {"debug.sessions\x00": "true"},
    {"a" * 10_000: "true"},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=lambda options: quote(str(options))[:40])
def test_options_that_cannot_change_are_refused_and_none_of_the_others_changes(
    client: Client, options: Any
) -> None:
    before = client.get("/v1/config")
    answer = client.call("PATCH", "/v1/config", options)
    assert_problem(answer)
    assert CANARY not in answer.body.decode()
    assert client.get("/v1/config") == before


def test_bodies_and_names_are_never_logged(daemon: RunningDaemon, client: Client) -> None:
    path = client.create("ses_canary")
    for method, target, body in (
        ("POST", f"{path}/messages", {"role": "user", "content": CANARY}),
        ("POST", f"{path}/messages", {"role": CANARY}),
        ("POST", f"{path}/messages", {CANARY: 1}),
        ("PATCH", f"{path}/preferences", f'{{"{CANARY}'.encode()),
        ("PATCH", f"{path}/metadata", {"status": CANARY}),
        ("PATCH", "/v1/config", {"redis.url": f"redis://u:{CANARY}@h"}),
        ("PATCH", "/v1/config", {"debug.sessions": True}),
        ("POST", f"{path}/messages", {"role": "user", "content": CANARY}),
        ("PATCH", f"{path}/context", {"state": {CANARY: CANARY}}),
        ("PATCH", "/v1/config", {"debug.sessions": False}),
    ):
        try:
            client.call(method, target, body)
        except Closed:
            pytest.fail(f"no answer to {method} {target}")
    assert "session.message_append" in daemon.log
    assert CANARY not in daemon.log
