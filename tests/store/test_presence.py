"""Presence in Redis: entries that count for a while, and who is told of those that do not."""

from __future__ import annotations

import asyncio

import pytest

from sessiond.errors import StoreDamaged, StoreUnavailable, TooLarge
from sessiond.store.connection import connect
from sessiond.store.keys import Keys
from sessiond.store.leases import LeaseStore
from sessiond.store.presence import About, PresenceState, PresenceStore
from tests.store.support import Services, creating, deleting
from tests.store.travel import later

LIFE_MS = 20_000
ANN = About("laptop", "editor", ("a.py", "b.py"))
BOB = About("desktop", "")


@pytest.fixture
async def presence(core: Services) -> PresenceStore:
    """Presence, and a session `s` to be at."""
    await core.commit("s", creating("s", workspace="w"))
    return PresenceStore(core.redis, core.keys, LIFE_MS)


def names(state: PresenceState | None) -> list[str]:
    assert state
    return [who.instance for who in state.present]


def changes(state: PresenceState | None) -> list[tuple[str, str]]:
    assert state
    return [(each.change, each.who.instance) for each in state.changes]


async def test_who_is_there_is_told_with_machine_program_files_and_times(
    core: Services, presence: PresenceStore
) -> None:
    seconds, micros = await core.redis.time()
    before = int(seconds) * 1000 + int(micros) // 1000
    state = await presence.announce("s", "ann", ANN)
    assert state
    assert state.workspace == "w"
    (who,) = state.present
    assert (who.instance, who.machine, who.client) == ("ann", "laptop", "editor")
    assert who.active_files == ["a.py", "b.py"]
    assert who.since_ms == who.seen_ms >= before
    assert who.until_ms == who.seen_ms + LIFE_MS
    assert not who.has_turn
    assert (await presence.look("s")) == PresenceState("w", [who], [])


async def test_nothing_open_stays_an_empty_list(presence: PresenceStore) -> None:
    """On a real Redis, cjson would make an object of it."""
    await presence.announce("s", "bob", BOB)
    state = await presence.announce("s", "ann", ANN)
    assert state
    assert [who.active_files for who in state.present if who.instance == "bob"] == [[]]


async def test_coming_changing_and_leaving_are_changes_and_repeating_is_none(
    presence: PresenceStore,
) -> None:
    assert changes(await presence.announce("s", "ann", ANN)) == [("came", "ann")]
    assert changes(await presence.announce("s", "ann", ANN)) == []
    assert changes(await presence.announce("s", "ann", BOB)) == [("changed", "ann")]
    assert changes(await presence.announce("s", "bob", BOB)) == [("came", "bob")]
    left = await presence.leave("s", "ann")
    assert (changes(left), names(left)) == ([("left", "ann")], ["bob"])
    assert left
    assert left.changes[0].who.machine == "desktop"
    assert changes(await presence.leave("s", "ann")) == []
    assert changes(await presence.leave("s", "nobody")) == []


async def test_repeating_prolongs_it_and_keeps_since(
    core: Services, presence: PresenceStore
) -> None:
    first = await presence.announce("s", "ann", ANN)
    await later(core, LIFE_MS - 1_000, "s")
    again = await presence.announce("s", "ann", ANN)
    assert first
    assert again
    assert changes(again) == []
    (was,), (now,) = first.present, again.present
    assert now.since_ms == was.since_ms - (LIFE_MS - 1_000)
    assert now.until_ms == now.seen_ms + LIFE_MS >= was.until_ms


@pytest.mark.parametrize("verb", ["announce", "leave", "look"])
async def test_who_does_not_repeat_it_is_gone_in_time_and_one_asker_is_told(
    core: Services, presence: PresenceStore, verb: str
) -> None:
    await presence.announce("s", "ann", ANN)
    await later(core, LIFE_MS // 2, "s")
    await presence.announce("s", "bob", BOB)
    assert names(await presence.look("s")) == ["ann", "bob"]
    await later(core, LIFE_MS // 2, "s")
    if verb == "announce":
        state = await presence.announce("s", "bob", BOB)
    elif verb == "leave":
        state = await presence.leave("s", "nobody")
    else:
        state = await presence.look("s")
    assert (names(state), changes(state)) == (["bob"], [("lost", "ann")])
    assert state
    assert state.changes[0].who.active_files == ["a.py", "b.py"]
    assert await core.redis.hkeys(core.keys.presence("s")) == [b"bob"]
    assert changes(await presence.look("s")) == []


async def test_of_many_who_look_at_once_one_is_told(
    core: Services, presence: PresenceStore
) -> None:
    await presence.announce("s", "ann", ANN)
    await later(core, LIFE_MS, "s")
    states = await asyncio.gather(*(presence.look("s") for _ in range(10)))
    assert sorted(map(changes, states), key=len)[-2:] == [[], [("lost", "ann")]]


async def test_who_comes_back_too_late_was_lost_and_came(
    core: Services, presence: PresenceStore
) -> None:
    first = await presence.announce("s", "ann", ANN)
    await later(core, LIFE_MS + 60_000, "s")
    again = await presence.announce("s", "ann", ANN)
    assert changes(again) == [("lost", "ann"), ("came", "ann")]
    assert first
    assert again
    assert again.present[0].since_ms >= first.present[0].since_ms


async def test_each_announcement_counts_as_long_as_its_own_daemon_says(
    core: Services, presence: PresenceStore
) -> None:
    patient = PresenceStore(core.redis, core.keys, 10 * LIFE_MS)
    await patient.announce("s", "ann", ANN)
    await presence.announce("s", "bob", BOB)
    await later(core, LIFE_MS, "s")
    assert names(await presence.look("s")) == ["ann"]


async def test_who_is_the_longest_there_comes_first(
    core: Services, presence: PresenceStore
) -> None:
    for name in ("zoe", "ann", "bob"):
        await presence.announce("s", name, BOB)
        await later(core, 1_000, "s")
    assert names(await presence.look("s")) == ["zoe", "ann", "bob"]


async def test_the_one_that_holds_the_lease_has_the_turn(
    core: Services, presence: PresenceStore
) -> None:
    leases = LeaseStore(core.redis, core.keys, 60_000)
    for name in ("ann", "bob"):
        await presence.announce("s", name, BOB)
    lease = await leases.ask("acquire", "s", "bob", "desktop")
    state = await presence.look("s")
    assert state
    assert [who.has_turn for who in state.present] == [False, True]
    await leases.ask("release", "s", "bob", "desktop", lease.token)
    state = await presence.look("s")
    assert state
    assert [who.has_turn for who in state.present] == [False, False]


async def test_a_lease_that_ran_out_gives_nobody_the_turn(
    core: Services, presence: PresenceStore
) -> None:
    await presence.announce("s", "ann", ANN)
    await core.redis.hset(core.keys.lease("s"), mapping={"instance": "ann", "until_ms": "1"})
    state = await presence.look("s")
    assert state
    assert not state.present[0].has_turn


async def test_sessions_do_not_mix(core: Services, presence: PresenceStore) -> None:
    await core.commit("t", creating("t"))
    await presence.announce("s", "ann", ANN)
    assert names(await presence.announce("t", "bob", BOB)) == ["bob"]
    assert names(await presence.look("s")) == ["ann"]


async def test_nobody_is_at_a_session_that_is_not_there(
    core: Services, presence: PresenceStore
) -> None:
    assert await presence.announce("none", "ann", ANN) is None
    assert await presence.leave("none", "ann") is None
    assert await presence.look("none") is None
    assert not await core.redis.exists(core.keys.presence("none"), core.keys.present)


async def test_a_deletion_ends_everybodys_presence(core: Services, presence: PresenceStore) -> None:
    await presence.announce("s", "ann", ANN)
    await core.store.commit("s", [deleting("s")], 1)
    assert not await core.redis.exists(core.keys.presence("s"), core.keys.present)
    assert await presence.announce("s", "ann", ANN) is None
    assert not await core.redis.exists(core.keys.presence("s"), core.keys.present)


async def test_what_a_crash_left_of_a_deleted_session_goes_when_somebody_looks(
    core: Services, presence: PresenceStore
) -> None:
    await presence.announce("s", "ann", ANN)
    await core.commit("s", deleting("s"))  # the script alone: nobody tidied up after it
    assert await presence.look("s") is None
    assert not await core.redis.exists(core.keys.presence("s"))


async def test_no_more_than_256_are_at_a_session(core: Services, presence: PresenceStore) -> None:
    for number in range(256):
        await presence.announce("s", f"i{number}", BOB)
    with pytest.raises(TooLarge):
        await presence.announce("s", "ann", ANN)
    assert len(names(await presence.announce("s", "i7", ANN))) == 256, "who is there may stay"
    await presence.leave("s", "i7")
    assert "ann" in names(await presence.announce("s", "ann", ANN))
    await later(core, LIFE_MS, "s")
    assert names(await presence.announce("s", "bob", BOB)) == ["bob"]


async def test_what_an_instance_says_of_itself_is_16_kib_at_most(presence: PresenceStore) -> None:
    frame = len('{"machine":"laptop","client":"","active_files":[""]}')
    largest = About("laptop", "", ("x" * (16 * 1024 - frame),))
    assert names(await presence.announce("s", "ann", largest)) == ["ann"]
    larger = About("laptop", "", (*largest.active_files, "y"))
    with pytest.raises(TooLarge, match="fewer files"):
        await presence.announce("s", "bob", larger)
    with pytest.raises(TooLarge):
        await presence.announce("s", "ann", larger)
    state = await presence.look("s")
    assert names(state) == ["ann"]
    assert state
    assert state.present[0].active_files == list(largest.active_files)


async def test_sessions_where_somebody_is_are_found(
    core: Services, presence: PresenceStore
) -> None:
    for name in ("t", "u"):
        await core.commit(name, creating(name))
        await presence.announce(name, "ann", ANN)
        await later(core, 1_000, "t", "u")
    assert await presence.sessions(10) == ["u", "t"]
    assert await presence.sessions(1) == ["u"]
    assert await presence.silent(10) == ([], 0)


async def test_sessions_where_nobody_is_any_more_are_told_and_forgotten(
    core: Services, presence: PresenceStore
) -> None:
    for name in ("t", "u"):
        await core.commit(name, creating(name))
        await presence.announce(name, "ann", ANN)
    await later(core, LIFE_MS, "t")
    silent, until_ms = await presence.silent(10)
    assert silent == ["t"]
    await presence.forget(until_ms)
    assert await presence.sessions(10) == ["u"]


async def test_a_shorter_life_does_not_hide_who_stays_longer(
    core: Services, presence: PresenceStore
) -> None:
    await PresenceStore(core.redis, core.keys, 10 * LIFE_MS).announce("s", "ann", ANN)
    await presence.announce("s", "bob", BOB)
    await later(core, LIFE_MS, "s")
    assert await presence.silent(10) == ([], 0)


async def test_what_is_left_goes_by_itself_after_a_day(
    core: Services, presence: PresenceStore
) -> None:
    await presence.announce("s", "ann", ANN)
    assert 86_000_000 < await core.redis.pttl(core.keys.presence("s")) <= 86_400_000


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"text",
        b"1 2 3 {}",
        b"1 2 99999999999999 {",
        b"9" * 400 + b' 2 99999999999999 {"machine":"m","client":""}',
        b"1 2 99999999999999 []",
        b'1 2 99999999999999 {"machine":1,"client":""}',
        b'1 2 99999999999999 {"machine":"\xff","client":""}',
        b"1 2 " + b"9" * 400 + b' {"machine":"m","client":""}',
    ],
)
async def test_a_foreign_entry_hides_nobody(
    core: Services, presence: PresenceStore, value: bytes
) -> None:
    await core.redis.hset(core.keys.presence("s"), "foreign", value)
    assert names(await presence.announce("s", "ann", ANN)) == ["ann"]
    assert names(await presence.look("s")) == ["ann"]
    assert sorted(names(await presence.announce("s", "foreign", BOB))) == ["ann", "foreign"]


async def test_foreign_members_of_the_index_are_passed_over_and_go(
    core: Services, presence: PresenceStore
) -> None:
    await core.redis.zadd(core.keys.present, {b"\xff": 1, "a b": 2, "s": 3})
    assert await presence.sessions(10) == ["s"]
    assert await presence.silent(10) == (["s"], 3)
    await presence.forget(3)
    assert not await core.redis.exists(core.keys.present)


@pytest.mark.parametrize("key", ["presence", "lease"])
async def test_a_key_of_another_type_is_called_damaged_and_nothing_is_written(
    core: Services, presence: PresenceStore, key: str
) -> None:
    name = core.keys._name(key, "s")
    await core.redis.set(name, "text")
    with pytest.raises(StoreDamaged):
        await presence.announce("s", "ann", ANN)
    assert await core.redis.get(name) == b"text"
    assert not await core.redis.exists(core.keys.present)


async def test_without_redis_the_caller_is_told() -> None:
    redis = connect("redis://127.0.0.1:1/0", timeout_seconds=1, max_connections=1)
    with pytest.raises(StoreUnavailable):
        await PresenceStore(redis, Keys("t"), 1000).look("s")
    await redis.aclose()
