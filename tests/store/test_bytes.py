"""What is written comes back byte for byte: Lua and the wire change nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sessiond.model import NewMessage, NewSession, Session
from tests.store.support import (
    Services,
    appending,
    changing,
    creating,
    editing,
    putting_part,
    removing_part,
)

MIB = 1024 * 1024

BODIES = [
    pytest.param(b"[]", id="empty list"),
    pytest.param(b"{}", id="empty object"),
    pytest.param(b'{"a":[],"b":{},"c":[[]],"d":[{}]}', id="empty inside"),
    pytest.param(b"null", id="null"),
    pytest.param(b'{"a":null,"b":[null,null]}', id="nulls inside"),
    pytest.param(b'{"a":true,"b":false}', id="truth"),
    pytest.param(b"[1,1.0,1e0,-0,0.1,9007199254740993,18446744073709551616]", id="numbers"),
    pytest.param(b'{ "a" :\t1 ,\n"b":2}', id="white space"),
    pytest.param(b'{"b":1,"a":2,"b":3}', id="order and doubles"),
    pytest.param('"é — 漢字 — 🏳️‍🌈 — \u2028"'.encode(), id="unicode"),
    pytest.param(rb'"\u00e9 \ud83d\ude00 \u0000 \/ \n"', id="escapes"),
    pytest.param(b'"a\x00b"', id="a zero byte"),
    pytest.param(bytes(range(256)), id="every byte"),
    pytest.param(b"%s %d %% %", id="formats"),
    pytest.param(b"'; redis.call('FLUSHALL') --", id="Lua"),
    pytest.param(b'"' + b"x" * MIB + b'"', id="1 MiB"),
]


@pytest.mark.parametrize("body", BODIES)
async def test_the_log_keeps_every_body_byte_for_byte(core: Services, body: bytes) -> None:
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m1", body))
    await core.commit("ses_1", appending("m2", body), appending("m3", body))
    await core.commit("ses_1", editing("m1", body))
    await core.commit("ses_1", putting_part("m1/p1", body))
    await core.commit("ses_1", removing_part("m1/p1"))
    entries = await core.entries("ses_1")
    assert [entry.json == body for entry in entries[1:6]] == [True] * 5


@pytest.mark.parametrize("body", BODIES)
async def test_documents_keep_every_field_byte_for_byte(core: Services, body: bytes) -> None:
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", changing("context", {"state": body}))
    await core.commit("ses_1", changing("preferences", {"é %s 'x'": body}))
    snapshot = await core.store.snapshot("ses_1")
    assert snapshot.context == {"state": body}
    assert snapshot.preferences == {"é %s 'x'": body}


VALUE: dict[str, Any] = {
    "empty": [[], {}, [[]], [{}], ""],
    "nothing": None,
    "numbers": [0, -1, 1.5, 2**53 + 1, 2**64, -(2**70), 10**30],
    "truth": [True, False],
    "texts": ["é", "漢字", "🏳️‍🌈", "\u2028", '"', "\\", "\n\t\x00", "%s"],
    "": "a name without letters",
    "%s": {"\x00": "a name that is a zero byte"},
}


async def test_values_of_every_shape_survive_the_way_through_the_services(
    core: Services,
) -> None:
    await core.sessions.create(NewSession(session_id="ses_1", preferences=VALUE, title="é %s 漢"))
    await core.documents.change("ses_1", "context", {"state": VALUE | {"nothing": []}})
    part = {"id": "p1", "type": "x", "value": VALUE}
    given = NewMessage(role="user", id="m1", metadata=VALUE, tool_calls=[VALUE], content="é\n%d")
    await core.messages.append("ses_1", [given, NewMessage(role="tool", id="m2", parts=[part])])
    session = msgspec.json.decode(await core.sessions.load("ses_1"), type=Session)
    first, second = session.conversation.messages
    assert session.metadata.title == "é %s 漢"
    assert session.preferences == VALUE
    assert session.context.state == VALUE | {"nothing": []}
    assert (first.metadata, first.tool_calls, first.content) == (VALUE, [VALUE], "é\n%d")
    assert second.parts == [part]
