"""A look into Redis for people."""

from __future__ import annotations

import pytest

from sessiond.errors import NotFound
from sessiond.model import NewSession
from sessiond.store.blocks import BlockStore, pack
from sessiond.store.inspection import read_key
from sessiond.store.presence import About, PresenceStore
from tests.store.support import AT, Services, appending, creating


async def test_a_hash_is_shown_with_its_json_decoded(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    name = core.keys.document("ses_1", "context")
    kind, items, content = await read_key(core.redis, core.keys, name, 10)
    assert (kind, items) == ("hash", 2)
    assert content["state"] == {"a": []}
    assert content["_version"].endswith(":1")


async def test_of_a_stream_the_newest_entries_are_shown_in_their_order(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    for number in range(5):
        await core.commit("ses_1", appending(f"m{number}", b'{"n":[%d]}' % number))
    name = core.keys.conversation("ses_1")
    kind, items, content = await read_key(core.redis, core.keys, name, 2)
    assert (kind, items) == ("stream", 6)
    assert [(entry["entry"], entry["id"], entry["json"]) for entry in content] == [
        ("5-0", "m3", {"n": [3]}),
        ("6-0", "m4", {"n": [4]}),
    ]
    assert content[0]["at"] == AT


async def test_what_is_compressed_is_shown_as_the_entries_that_it_is(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    for number in range(3):
        await core.commit("ses_1", appending(f"m{number}", b'{"n":[%d]}' % number))
    log = await read_key(core.redis, core.keys, core.keys.conversation("ses_1"), 10)
    blocks = BlockStore(core.redis, core.keys)
    assert await blocks.put("ses_1", pack(await blocks.oldest("ses_1", 3)))
    shown = await read_key(core.redis, core.keys, core.keys.blocks("ses_1"), 10)
    assert shown == ("stream", 1, [{"entry": "3-0", "codec": "zstd-1", "entries": log[2][:3]}])


async def test_a_damaged_block_is_shown_as_it_lies_there(core: Services) -> None:
    name = core.keys.blocks("ses_1")
    await core.redis.xadd(name, {"codec": "zstd-1", "data": b"\xff"}, id="3-0")
    shown = await read_key(core.redis, core.keys, name, 10)
    assert shown == ("stream", 1, [{"entry": "3-0", "codec": "zstd-1", "data": "\\xff"}])


async def test_of_an_archive_its_form_and_size_are_shown(core: Services) -> None:
    await core.sessions.create(NewSession(session_id="ses_1"))
    archived = await core.archiving.archive("ses_1", idle_seconds=0)
    shown = await read_key(core.redis, core.keys, core.keys.archive("ses_1"), 10)
    assert shown == ("hash", 1, {"packed": f"sessiond-archive-1, {archived.bytes} bytes"})


async def test_of_an_index_the_most_recent_are_shown(core: Services) -> None:
    for number in range(4):
        await core.store.announce_creation(f"ses_{number}", "w", 1_000 + number)
    kind, items, content = await read_key(core.redis, core.keys, core.keys.sessions, 2)
    assert (kind, items, content) == ("zset", 4, {"ses_3": 1_003, "ses_2": 1_002})


async def test_bytes_that_are_no_text_and_json_that_is_none_are_shown_all_the_same(
    core: Services,
) -> None:
    name = core.keys.document("ses_1", "context")
    deep = b"[" * 100_000
    values = {"a": b"\xff", "b": b"{broken", "c": deep, "d": b"12", "e": b'"\xff"'}
    await core.redis.hset(name, mapping=values)
    _, _, content = await read_key(core.redis, core.keys, name, 10)
    assert content == {
        "a": "\\xff",
        "b": "{broken",
        "c": deep.decode(),
        "d": "12",
        "e": '"\\xff"',
    }


async def test_a_plain_string_is_shown(core: Services) -> None:
    name = f"{core.keys.namespace}:note"
    await core.redis.set(name, '{"a":1}')
    assert await read_key(core.redis, core.keys, name, 10) == ("string", 1, {"a": 1})


async def test_who_is_at_a_session_is_shown_with_times_and_json_decoded(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    about = About("laptop", "editor", ("a.py",))
    state = await PresenceStore(core.redis, core.keys, 20_000).announce("ses_1", "ann", about)
    assert state
    (who,) = state.present
    said = {"machine": "laptop", "client": "editor", "active_files": ["a.py"]}
    shown = await read_key(core.redis, core.keys, core.keys.presence("ses_1"), 10)
    assert shown == ("hash", 1, {"ann": [who.since_ms, who.seen_ms, who.until_ms, said]})


@pytest.mark.parametrize("name", ["other:key", "", "sessiond", "{ns}", "{ns}x:sessions"])
async def test_keys_of_others_are_not_shown(core: Services, name: str) -> None:
    key = name.format(ns=core.keys.namespace)
    if key:
        await core.redis.set(key, "secret", nx=True, ex=60)
    with pytest.raises(NotFound, match="not a key of sessiond"):
        await read_key(core.redis, core.keys, key, 10)


async def test_a_key_that_is_not_there_is_not_found(core: Services) -> None:
    with pytest.raises(NotFound, match="no key"):
        await read_key(core.redis, core.keys, core.keys.sessions, 10)
