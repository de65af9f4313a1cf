"""What others, or damage, left in Redis: told as damage of that session, and of no other."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from sessiond.errors import SessiondError, StoreDamaged
from sessiond.service.content.sessions import Filter
from tests.store.support import (
    AT,
    Services,
    appending,
    changing,
    contents,
    creating,
    deleting,
    editing,
    keys_of,
    putting_part,
)

KINDS = ["metadata", "context", "preferences", "messages", "parts", "conversation", "applied"]


@pytest.fixture
async def sessions(core: Services) -> Services:
    """Two sessions, ses_bad and ses_good, of the same workspace."""
    for name in ("ses_bad", "ses_good"):
        await core.store.announce_creation(name, "default", 1_000)
        for draft in (
            creating(name),
            appending("m1", b'{"id":"m1","timestamp":"2026-01-13T10:30:00Z","role":"user"}'),
            changing("preferences", {"theme": '"dark"'}),
            putting_part("m1/p1"),
        ):
            await core.commit(name, draft)
    return core


async def put_in_the_way(core: Services, kind: str) -> None:
    """A plain string where a session's key should be."""
    name = core.keys._name(kind, "ses_bad")
    await core.redis.delete(name)
    await core.redis.set(name, "not ours")


async def assert_good_session_works(core: Services) -> None:
    await core.commit("ses_good", appending("m2", b'{"id":"m2"}'))
    assert len(await core.entries("ses_good")) == 5
    assert (await core.store.snapshot("ses_good")).total_messages == 2
    assert "ses_good" in await core.store.positions("default")
    page = await core.sessions.list_page(Filter(workspace="default"))
    assert "ses_good" in [summary.metadata.session_id for summary in page.sessions]


@pytest.mark.parametrize("key", KINDS)
async def test_a_key_of_another_type_is_damage_and_nothing_is_written_in_part(
    sessions: Services, key: str
) -> None:
    core = sessions
    await put_in_the_way(core, key)
    before = await contents(core)
    refused = 0
    for draft in (
        appending("m9"),
        editing("m1"),
        putting_part("m1/p2"),
        changing("preferences", {"theme": '"light"'}),
        changing("context", {"state": "{}"}),
    ):
        try:
            await core.commit("ses_bad", draft)
        except StoreDamaged:
            refused += 1
            assert await contents(core) == before, draft.op
        before = await contents(core)
    assert refused > 0
    await assert_good_session_works(core)


@pytest.mark.parametrize("key", KINDS)
async def test_a_creation_that_meets_something_foreign_creates_nothing(
    core: Services, key: str
) -> None:
    await put_in_the_way(core, key)
    before = await contents(core)
    try:
        await core.commit("ses_bad", creating("ses_bad"))
    except StoreDamaged:
        assert await contents(core) == before
    else:
        assert len(await core.entries("ses_bad")) == 1


@pytest.mark.parametrize("key", KINDS)
async def test_a_session_with_a_foreign_key_can_be_deleted_or_is_damage(
    sessions: Services, key: str
) -> None:
    core = sessions
    await put_in_the_way(core, key)
    try:
        await core.commit("ses_bad", deleting("ses_bad"))
    except StoreDamaged:
        pass
    else:
        assert set(await keys_of(core, "ses_bad")) == {"metadata", "conversation", "applied"}
    await assert_good_session_works(core)


@pytest.mark.parametrize("question", ["snapshot", "end", "workspace_of"])
async def test_metadata_of_another_type_is_damage_to_who_asks_for_it(
    sessions: Services, question: str
) -> None:
    await put_in_the_way(sessions, "metadata")
    with pytest.raises(StoreDamaged):
        await getattr(sessions.store, question)("ses_bad")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", None),
        ("version", None),
        ("amendments", None),
        ("workspace", None),
        ("version", "x"),
        ("amendments", ""),
        ("epoch", b"\xff"),
        ("workspace", b"\xff"),
    ],
)
@pytest.mark.parametrize("question", ["snapshot", "end", "workspace_of"])
async def test_incomplete_metadata_is_damage_never_another_error(
    sessions: Services, question: str, field: str, value: str | bytes | None
) -> None:
    key = sessions.keys.metadata("ses_bad")
    if value is None:
        await sessions.redis.hdel(key, field)
    else:
        await sessions.redis.hset(key, field, value)
    try:
        await getattr(sessions.store, question)("ses_bad")
    except SessiondError as error:
        assert isinstance(error, StoreDamaged)  # noqa: PT017 - it may also not need the field
    await assert_good_session_works(sessions)


@pytest.mark.parametrize("value", ["", "x", "1 x", "1 2 3", b"\xff", "1 2 removed x"])
async def test_an_index_entry_that_is_not_ours_is_damage(
    sessions: Services, value: str | bytes
) -> None:
    core = sessions
    await core.redis.hset(core.keys.messages("ses_bad"), "m1", value)
    await core.redis.hset(core.keys.parts("ses_bad"), "m1/p1", value)
    await core.redis.hset(core.keys.applied("ses_bad"), "key:k", value)
    with pytest.raises(StoreDamaged):
        await core.store.message_versions("ses_bad", ["m1"])
    with pytest.raises(StoreDamaged):
        await core.store.part_versions("ses_bad", "m1")
    with pytest.raises(StoreDamaged):
        await core.store.used_key("ses_bad", "key:k")
    before = await contents(core)
    for draft in (editing("m1", expected="2"), putting_part("m1/p1", expected="3")):
        with pytest.raises(SessiondError):
            await core.commit("ses_bad", draft)
        assert await contents(core) == before


OURS = ["op", "o", "at", AT, "origin", "w", "id", "i", "epoch", "e", "json", "{}"]


@pytest.mark.parametrize(
    ("stream_id", "fields"),
    [
        ("4-1", ["hello", "world"]),
        ("4-1", OURS),
        ("4-1", [*OURS[:10], "json", "{}", "more", "1"]),
        ("4-1", OURS[:10]),
        ("5-0", ["hello", "world"]),
        ("5-0", [*OURS[2:], *OURS[:2]]),
        ("5-0", ["op", b"\xff", *OURS[2:]]),
        ("5-0", [*OURS[:9], b"\xff", *OURS[10:]]),
        ("1768300200000-0", ["hello", "world"]),
        ("1768300200000-7", OURS),
        ("7-0", OURS),
    ],
)
async def test_a_foreign_entry_of_the_stream_is_damage_to_its_readers_only(
    sessions: Services, stream_id: str, fields: list[str | bytes]
) -> None:
    core = sessions
    await core.redis.execute_command("XADD", core.keys.conversation("ses_bad"), stream_id, *fields)
    with pytest.raises(StoreDamaged):
        await core.entries("ses_bad")
    await assert_good_session_works(core)


@pytest.mark.parametrize("stream_id", ["5-0", "1768300200000-0"])
async def test_where_a_foreign_entry_took_the_place_of_the_next_nothing_is_written_in_part(
    sessions: Services, stream_id: str
) -> None:
    core = sessions
    await core.redis.execute_command(
        "XADD", core.keys.conversation("ses_bad"), stream_id, "hello", "world"
    )
    before = await contents(core)
    for _ in range(2):  # the second try must not meet traces of the first
        with pytest.raises(StoreDamaged):
            await core.commit("ses_bad", appending("m9"))
        assert await contents(core) == before


async def test_entries_removed_from_the_middle_of_a_log_are_damage_not_silence(
    sessions: Services,
) -> None:
    core = sessions
    await core.redis.xdel(core.keys.conversation("ses_bad"), "2-0")
    with pytest.raises(StoreDamaged):
        await core.entries("ses_bad")


async def test_an_index_of_another_type_is_damage_and_writing_goes_on(
    sessions: Services,
) -> None:
    core = sessions
    for name in (core.keys.sessions, core.keys.workspace("default")):
        await core.redis.delete(name)
        await core.redis.set(name, "not ours")
    with pytest.raises(StoreDamaged):
        await core.store.list_page(None, None, 10)
    with pytest.raises(StoreDamaged):
        await core.store.positions("default")
    await core.store.commit("ses_good", [appending("m2")], 1_000)
    await core.redis.delete(core.keys.sessions, core.keys.workspace("default"))


async def test_the_tests_put_what_they_mean_in_the_way(core: Services) -> None:
    await put_in_the_way(core, "metadata")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await core.redis.hgetall(core.keys.metadata("ses_bad"))
