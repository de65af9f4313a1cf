"""How a session is used: facts of one moment, and deletions that are refused while it is."""

from __future__ import annotations

import pytest
from msgspec import structs

from sessiond.errors import StoreDamaged, VersionMismatch
from sessiond.model import NewMessage, NewSession
from sessiond.service.clock import milliseconds
from sessiond.store.draft import Draft, FieldChange
from sessiond.store.janitor import JanitorStore
from sessiond.store.leases import LeaseStore
from sessiond.store.outcome import InUse, JanitorLate, OfOpencode
from sessiond.store.presence import About, PresenceStore
from sessiond.store.use import Use, UseStore
from tests.store.support import AT, Services, keys_of, until_awaited

LONG_MS = 60_000


@pytest.fixture
def use(core: Services) -> UseStore:
    return UseStore(core.redis, core.keys)


async def seen(use: UseStore, session_id: str = "s") -> Use:
    found = await use.of(session_id)
    assert found is not None
    return found


async def delete_idle(core: Services, found: Use, *, life_ms: int = LONG_MS) -> None:
    """Delete session `s` as a janitor does that saw it like this."""
    state = await JanitorStore(core.redis, core.keys, life_ms).look()
    idle = FieldChange(
        "idle",
        str(state.now_ms + life_ms),
        str(max(milliseconds(found.last_activity), found.read_ms or 0)),
    )
    draft = Draft("session.delete", "s", AT, b"{}", expected=str(found.position), changes=(idle,))
    await core.commit("s", draft)


async def read_now(core: Services, use: UseStore, at_ms: int) -> None:
    use.note_read("s", at_ms)
    await use.settle()


@pytest.fixture
async def session(core: Services) -> None:
    await core.sessions.create(NewSession(session_id="s", workspace="w"))
    await core.messages.append("s", [NewMessage(role="user", content="x")])


@pytest.mark.usefixtures("session")
async def test_a_session_that_nobody_uses(core: Services, use: UseStore) -> None:
    found = await seen(use)
    assert found.position == await core.sessions.position("s")
    assert milliseconds(found.last_activity) == core.clock.ms
    assert structs.replace(found, last_activity="") == Use(
        status="active",
        workspace="w",
        position=found.position,
        last_activity="",
        archived_at="",
        read_ms=None,
        is_present=False,
        has_turn=False,
        is_opencodes=False,
    )


async def test_there_is_no_use_of_what_is_not_there(core: Services, use: UseStore) -> None:
    assert await use.of("s") is None
    await core.sessions.create(NewSession(session_id="s"))
    await core.sessions.delete("s")
    assert await use.of("s") is None


@pytest.mark.usefixtures("session")
async def test_somebody_is_present_until_that_is_over(core: Services, use: UseStore) -> None:
    await PresenceStore(core.redis, core.keys, LONG_MS).announce("s", "oc-1", About("here", ""))
    assert (await seen(use)).is_present
    await PresenceStore(core.redis, core.keys, 20).announce("s", "oc-1", About("here", ""))

    async def is_over() -> bool:
        return not (await seen(use)).is_present

    await until_awaited(is_over)


@pytest.mark.usefixtures("session")
async def test_somebody_runs_a_turn_until_it_is_given_back(core: Services, use: UseStore) -> None:
    leases = LeaseStore(core.redis, core.keys, LONG_MS)
    state = await leases.ask("acquire", "s", "oc-1", "here")
    assert (await seen(use)).has_turn
    await leases.ask("release", "s", "oc-1", "here", state.token)
    assert not (await seen(use)).has_turn


@pytest.mark.usefixtures("session")
async def test_an_opencode_has_it(core: Services, use: UseStore) -> None:
    await core.documents.change("s", "context", {"opencode": {"id": "s"}})
    assert (await seen(use)).is_opencodes


@pytest.mark.usefixtures("session")
async def test_readings_are_noted_once_in_five_minutes(core: Services, use: UseStore) -> None:
    for at_ms in (1_000_000, 1_000_000 + 299_999):
        await read_now(core, use, at_ms)
        assert (await seen(use)).read_ms == 1_000_000
    await read_now(core, use, 1_300_000)
    assert (await seen(use)).read_ms == 1_300_000


async def test_readings_of_what_is_deleted_leave_nothing(core: Services, use: UseStore) -> None:
    await core.sessions.create(NewSession(session_id="s"))
    await read_now(core, use, 1_000_000)
    assert "reads" in await keys_of(core, "s")
    await core.sessions.delete("s")
    await read_now(core, use, 9_000_000)
    assert "reads" not in await keys_of(core, "s")


@pytest.mark.usefixtures("session")
async def test_closing_writes_what_was_noted(core: Services, use: UseStore) -> None:
    use.note_read("s", 1_000_000)
    await use.close()
    assert (await seen(use)).read_ms == 1_000_000


@pytest.mark.usefixtures("session")
async def test_something_foreign_is_damage(core: Services, use: UseStore) -> None:
    await core.redis.hset(core.keys.metadata("s"), "version", "x")
    with pytest.raises(StoreDamaged):
        await use.of("s")
    await core.redis.delete(core.keys.metadata("s"))
    await core.redis.zadd(core.keys.metadata("s"), {"x": 1})
    with pytest.raises(StoreDamaged):
        await use.of("s")


@pytest.mark.usefixtures("session")
async def test_what_nobody_used_since_it_was_seen_is_deleted(core: Services, use: UseStore) -> None:
    await read_now(core, use, 1_000_000)
    await delete_idle(core, await seen(use))
    assert await use.of("s") is None
    assert set(await keys_of(core, "s")) == {"metadata", "conversation", "applied"}


@pytest.mark.usefixtures("session")
async def test_what_was_read_since_it_was_seen_is_not_deleted(
    core: Services, use: UseStore
) -> None:
    for later_ms in (1_000, 1_000_000):  # after it was written, and after it was read
        found = await seen(use)
        await read_now(core, use, core.clock.ms + later_ms)
        with pytest.raises(InUse):
            await delete_idle(core, found)


@pytest.mark.usefixtures("session")
async def test_what_was_written_since_it_was_seen_is_not_deleted(
    core: Services, use: UseStore
) -> None:
    found = await seen(use)
    await core.messages.append("s", [NewMessage(role="user", content="y")])
    with pytest.raises(VersionMismatch):
        await delete_idle(core, found)


@pytest.mark.usefixtures("session")
async def test_what_somebody_is_at_or_runs_a_turn_in_is_not_deleted(
    core: Services, use: UseStore
) -> None:
    found = await seen(use)
    presence = PresenceStore(core.redis, core.keys, LONG_MS)
    await presence.announce("s", "oc-1", About("here", ""))
    with pytest.raises(InUse):
        await delete_idle(core, found)
    await presence.leave("s", "oc-1")
    await LeaseStore(core.redis, core.keys, LONG_MS).ask("acquire", "s", "oc-1", "here")
    with pytest.raises(InUse):
        await delete_idle(core, found)


@pytest.mark.usefixtures("session")
async def test_what_an_opencode_has_is_not_deleted_as_idle(core: Services, use: UseStore) -> None:
    await core.documents.change("s", "context", {"opencode": {"id": "s"}})
    with pytest.raises(OfOpencode):
        await delete_idle(core, await seen(use))


@pytest.mark.usefixtures("session")
async def test_who_is_not_the_janitor_any_more_deletes_nothing(
    core: Services, use: UseStore
) -> None:
    with pytest.raises(JanitorLate):
        await delete_idle(core, await seen(use), life_ms=0)
    assert await use.of("s") is not None
