"""What others left in Redis: the session it belongs to says so, no other session feels it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from tests.api.client import Client
from tests.api.streams import EventStream
from tests.api.wire import Closed, assert_problem
from tests.daemons import RunningDaemon

Key = Callable[[str], str]
Plant = Callable[["Redis", Key], object]

pytestmark = pytest.mark.usefixtures("_quiet")

_victims = itertools.count(1)
_workspaces = itertools.count(1)

FOREIGN: dict[Any, Any] = {"foo": "bar"}
SHAPED: dict[Any, Any] = {
    "op": b"\xff",
    "at": "x",
    "origin": "x",
    "id": "x",
    "epoch": "x",
    "json": "{",
}


def instead(kind: str) -> Plant:
    """Put a plain string where a key of the session should be."""

    def plant(redis: Redis, key: Callable[[str], str]) -> None:
        redis.delete(key(kind))
        redis.set(key(kind), "not ours")

    return plant


DAMAGE: dict[str, Plant] = {
    "metadata of another type": instead("metadata"),
    "a log of another type": instead("conversation"),
    "a context of another type": instead("context"),
    "preferences of another type": instead("preferences"),
    "an index of another type": instead("messages"),
    "parts of another type": instead("parts"),
    "a dedupe window of another type": instead("applied"),
    "a foreign entry": lambda redis, key: redis.xadd(key("conversation"), FOREIGN),
    "a foreign entry at the next offset": lambda redis, key: redis.xadd(
        key("conversation"), FOREIGN, id="4-0"
    ),
    "an entry of the right shape, with rubbish": lambda redis, key: redis.xadd(
        key("conversation"), SHAPED, id="4-0"
    ),
    "metadata without a position": lambda redis, key: redis.hdel(key("metadata"), "epoch"),
    "metadata without a workspace": lambda redis, key: redis.hdel(key("metadata"), "workspace"),
    "a version that is no number": lambda redis, key: redis.hset(key("metadata"), "version", "x"),
    "an amount that is no number": lambda redis, key: redis.hset(
        key("metadata"), "amendments", "x"
    ),
    "a status that is none": lambda redis, key: redis.hset(key("metadata"), "status", "x"),
    "a title that is no text": lambda redis, key: redis.hset(key("metadata"), "title", b"\xff"),
    "a creation at no time": lambda redis, key: redis.hset(key("metadata"), "created_at", "x"),
    "preferences that are no JSON": lambda redis, key: redis.hset(key("preferences"), "a", "{"),
    "preferences that are deep": lambda redis, key: redis.hset(
        key("preferences"), "a", "[" * 5_000 + "]" * 5_000
    ),
    "a context that is none": lambda redis, key: redis.hset(key("context"), "state", "[]"),
    "an index that is no number": lambda redis, key: redis.hset(key("messages"), "m1", "x"),
    "an index to nowhere": lambda redis, key: redis.hset(key("messages"), "m1", "99"),
    "an index to another operation": lambda redis, key: redis.hset(key("messages"), "m1", "1"),
    "parts that are no number": lambda redis, key: redis.hset(key("parts"), "m1/p1", "x"),
    "a key that is no offset": lambda redis, key: redis.hset(key("applied"), "key:k", "x"),
}

CALLS: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("GET", "/messages", None),
    ("GET", "/messages/m1", None),
    ("GET", "/operations", None),
    ("GET", "/position", None),
    ("GET", "/metadata", None),
    ("GET", "/context", None),
    ("GET", "/preferences", None),
    ("POST", "/messages", {"role": "user"}),
    ("PATCH", "/messages/m1", {"content": "edited"}),
    ("PUT", "/messages/m1/parts/p1", {"type": "text"}),
    ("DELETE", "/messages/m1/parts/p1", None),
    ("PATCH", "/preferences", {"theme": "dark"}),
    ("PATCH", "/context", {"working_directory": "/x"}),
    ("PATCH", "/metadata", {"title": "x"}),
    ("DELETE", "/messages/m1", None),
    ("POST", "/live", {}),
]


@pytest.fixture
def redis(daemon: RunningDaemon) -> Iterator[Redis]:
    redis = Redis(unix_socket_path=str(daemon.redis_socket))
    yield redis
    redis.close()


@pytest.fixture
def victim() -> str:
    """A session of the test's own: what another test lost would come back."""
    return f"ses_victim-{next(_victims)}"


@pytest.fixture
def key(victim: str) -> Key:
    return lambda kind: f"sessiond:{{{victim}}}:{kind}"


@pytest.fixture
def workspace() -> str:
    """A workspace of the test's own."""
    return f"work-{next(_workspaces)}"


@pytest.fixture
def damaged(client: Client, redis: Redis, workspace: str, victim: str, key: Key) -> Iterator[str]:
    """The path of a session with a message and a part; nothing of it stays."""
    path = client.create(victim, workspace=workspace)
    client.append(path, "m1")
    client.call("PUT", f"{path}/messages/m1/parts/p1", {"type": "text", "text": "x"})
    yield path
    redis.delete(*stored(redis, key))
    redis.zrem("sessiond:sessions", victim)


def stored(redis: Redis, key: Key) -> dict[bytes, Any]:
    """Everything of the session, as Redis dumps it."""
    return {name: redis.dump(name) for name in redis.scan_iter(match=key("*"))}


def written(redis: Redis, key: Key) -> dict[bytes, Any]:
    """All of that but when the session was read: this is noted behind a call's back."""
    reads = key("reads").encode()
    return {name: value for name, value in stored(redis, key).items() if name != reads}


@pytest.mark.parametrize("plant", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_session_says_so_by_name_and_refuses_writes_as_a_whole(
    client: Client, redis: Redis, damaged: str, plant: Plant, key: Key, victim: str
) -> None:
    plant(redis, key)
    wrong = []
    for method, path, body in CALLS:
        before = written(redis, key)
        answer = client.call(method, damaged + path, body, Idempotency_Key=f"{method}{path}")
        if answer.status < 400:
            continue
        if written(redis, key) != before:
            wrong.append(f"{method} {path}: written in part")
        if answer.status in (404, 409):  # what the damaged index says is missing or taken
            assert_problem(answer)
            continue
        told = assert_problem(answer, answer.status)
        if (told.status, told.code) != (502, "store-damaged") or victim not in told.detail:
            wrong.append(f"{method} {path}: {told.status} {told.detail}")
    assert wrong == []


@pytest.mark.parametrize("plant", DAMAGE.values(), ids=DAMAGE.keys())
def test_other_sessions_and_listings_do_not_feel_the_damage(
    client: Client, redis: Redis, damaged: str, workspace: str, plant: Plant, key: Key, victim: str
) -> None:
    name = f"healthy-in-{workspace}"
    healthy = client.create(name, workspace=workspace)
    plant(redis, key)
    with EventStream(client.socket, f"/v1/workspaces/{workspace}/events", seconds=5) as events:
        assert name in events.until("positions").json["sessions"]
        redis.publish(f"sessiond:workspace:{workspace}:events", notice(victim))
        client.call("POST", f"{damaged}/messages", {"role": "user"})
        version = client.append(healthy, "first")
        assert events.until("message.append", session_id=name).json["position"] == version
    assert len(client.get(healthy)["conversation"]["messages"]) == 1
    for query in ("limit=500", f"workspace={workspace}", "limit=1"):
        page = client.get(f"/v1/sessions?{query}")
        listed = [each["metadata"]["session_id"] for each in page["sessions"]]
        assert listed
        assert query == "limit=1" or name in listed
    client.get("/v1/status")


def notice(victim: str) -> str:
    return f'{{"session_id":"{victim}","position":"0123456789abcd:9","operations":1,"last":"x"}}'


@pytest.mark.parametrize("plant", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_stream_of_a_damaged_session_is_refused_or_ends_and_stays_well_formed(
    client: Client, redis: Redis, damaged: str, plant: Plant, key: Key, victim: str
) -> None:
    plant(redis, key)
    with EventStream(client.socket, f"{damaged}/events?after=0", seconds=5) as stream:
        if stream.head.status != 200:
            assert victim in assert_problem(stream.head, 502, "store-damaged").detail
            return
        try:  # what comes is whole events and nothing else, or the end
            names = [event.name for event in stream.take(3)]
        except Closed:
            return
        assert names == ["session.create", "message.append", "part.put"]


@pytest.mark.parametrize("how", ["emptied", "cut"])
def test_a_log_that_lacks_what_was_written_is_damage_that_the_doctor_is_named_for(
    client: Client, redis: Redis, damaged: str, key: Key, victim: str, how: str
) -> None:
    if how == "emptied":
        redis.delete(key("conversation"))
    else:
        redis.xdel(key("conversation"), "4-0", "3-0")
    told = assert_problem(client.call("GET", damaged), 502, "store-damaged")
    assert victim in told.detail
    assert "sessiond doctor" in str(told.hint)
    if how == "emptied":
        told = assert_problem(client.call("GET", f"{damaged}/operations"), 502, "store-damaged")
        assert "does not hold the" in told.detail


FOREIGN_WORDS: list[bytes] = [
    b"",
    b"x",
    b"\xff",
    b"{}",
    b"[]",
    b"[" * 100_000,
    b'{"session_id":1}',
    b'{"session_id":"%s"}',
    b'{"session_id":"%s","position":"x"}',
    b'{"session_id":"%s","position":""}',
    b'{"session_id":"%s","position":"9"}',
    b'{"session_id":"%s","position":"0:9"}',
    b'{"session_id":"%s","position":"0123456789abcd:1"}',
    b'{"session_id":"%s","position":"0123456789abcd:99"}',
    b'{"session_id":"%s","position":"0123456789abcd:%s"}',
    b'{"session_id":"","position":"0123456789abcd:1"}',
    b'{"session_id":"a\\u0000b","position":"0123456789abcd:1"}',
    b'{"session_id":"never-was","position":"0123456789abcd:1"}',
    b'{"live":1}',
    b'{"live":{}}',
    b'{"live":{"session_id":"%s"},"position":"x"}',
    b'{"live":{"session_id":"%s","origin":"x",\n\n"body":{}}}',
    b'{"live":{"session_id":"%s","origin":"x","body":"\\n\\nevent: forged\\n"}}',
]


@pytest.mark.parametrize("words", FOREIGN_WORDS, ids=repr)
def test_foreign_words_on_our_channels_stop_no_stream(
    client: Client, redis: Redis, workspace: str, words: bytes
) -> None:
    name = f"healthy-in-{workspace}"
    path = client.create(name, workspace=workspace)
    words = words.replace(b"%s", name.encode())
    with (
        EventStream(client.socket, f"{path}/events?after=0", seconds=5) as events,
        EventStream(client.socket, f"/v1/workspaces/{workspace}/events", seconds=5) as all_events,
    ):
        assert events.next().name == "session.create"
        all_events.until("positions")
        redis.publish(f"sessiond:{{{name}}}:events", words)
        redis.publish(f"sessiond:workspace:{workspace}:events", words)
        client.append(path, "after")
        for stream in (events, all_events):
            while (event := stream.next()).name != "message.append":
                assert event.name in ("live", "reset", "session.create"), event
            assert event.json["id"] == "after"


def test_a_session_is_not_created_in_part_where_something_foreign_lies(
    client: Client, redis: Redis
) -> None:
    for kind in ("conversation", "messages", "parts", "applied", "context", "preferences"):
        redis.set(f"sessiond:{{new-{kind}}}:{kind}", "not ours")
        answer = client.call("POST", "/v1/sessions", {"session_id": f"new-{kind}"})
        if answer.status == 201:
            client.get(f"/v1/sessions/new-{kind}")
            continue
        told = assert_problem(answer, 502, "store-damaged")
        assert f"new-{kind}" in told.detail
        assert redis.exists(f"sessiond:{{new-{kind}}}:metadata") == 0
        redis.delete(f"sessiond:{{new-{kind}}}:{kind}")
        assert client.call("POST", "/v1/sessions", {"session_id": f"new-{kind}"}).status == 201


@pytest.mark.parametrize(
    ("member", "score"),
    [(b"nobody", score) for score in ("inf", "-inf", "1.5", "-1", "1e300")]
    + [(member, "1") for member in (b"\xff", b"", b"a/b", b"\n", b"nobody" * 100)],
)
def test_foreign_members_of_an_index_hide_no_session(
    client: Client, redis: Redis, workspace: str, member: bytes, score: str
) -> None:
    name = f"healthy-in-{workspace}"
    client.create(name, workspace=workspace)
    indexes = ("sessiond:sessions", f"sessiond:workspace:{workspace}")
    for index in indexes:
        redis.execute_command("ZADD", index, score, member)
    try:
        for query in ("limit=500", f"workspace={workspace}"):
            found = client.get(f"/v1/sessions?{query}")["sessions"]
            assert name in [each["metadata"]["session_id"] for each in found]
        found, cursor = [], ""
        while True:
            page = client.get(f"/v1/sessions?limit=1{cursor}")
            found += [each["metadata"]["session_id"] for each in page["sessions"]]
            if page["cursor"] is None:
                break
            cursor = f"&cursor={page['cursor']}"
        assert found.count(name) == 1
        with EventStream(client.socket, f"/v1/workspaces/{workspace}/events") as events:
            assert name in events.until("positions").json["sessions"]
        for index in indexes:
            client.get(f"/v1/redis?key={index}")
    finally:
        for index in indexes:
            redis.zrem(index, member)


@pytest.mark.parametrize("command", [
    ("SET", "[" * 900 + "]" * 900),
    ("SET", "[" * 50_000),
    ("SET", '"\xff'),
    ("SET", '{"a":1e999}'),
    ("SET", f"[{10**400}]"),
    ("RPUSH", "x"),
    ("SADD", "x"),
    ("HSET", "f", "{"),
    ("HSET", "\xff", "\xff"),
    ("XADD", "1-1", "f", "v"),
    ("XADD", "*", "json", "{"),
    ("PFADD", "x"),
], ids=lambda command: " ".join(command)[:20])  # fmt: skip
def test_a_look_at_a_key_shows_whatever_is_there(
    client: Client, redis: Redis, command: tuple[str, ...]
) -> None:
    verb, *values = command
    redis.delete("sessiond:look")
    redis.execute_command(verb, "sessiond:look", *[value.encode("latin-1") for value in values])
    answer = client.call("GET", "/v1/redis?key=sessiond:look")
    if answer.status != 200:
        assert_problem(answer)
    else:
        assert answer.json["items"] == 1
