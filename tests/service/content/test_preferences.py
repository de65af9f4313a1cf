"""Users' preferences: kept per user, and what their new sessions begin with."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from sessiond.errors import AlreadyExists, InvalidInput, StoreDamaged, TooLarge
from sessiond.model import NewSession, Session
from sessiond.service.content.preferences import UserPreferences
from sessiond.service.writing import PLAIN, Request
from sessiond.sync.position import Position
from tests.store.support import Services, StartServices


@pytest.fixture
def users(core: Services) -> UserPreferences:
    return core.preferences


async def created(core: Services, key: str = "", **given: Any) -> dict[str, Any]:
    """Create a session and return its preferences."""
    made = await core.sessions.create(NewSession(**given), Request(key=key))
    return msgspec.json.decode(made.json, type=Session).preferences


async def test_a_merge_patch_changes_what_it_names(users: UserPreferences) -> None:
    assert await users.read("ann") == {}
    await users.change("ann", {"theme": "dark", "editor": {"tab": 4, "wrap": True}})
    changed = await users.change("ann", {"theme": None, "editor": {"tab": 2}, "n": 1.5})
    assert changed == {"editor": {"tab": 2, "wrap": True}, "n": 1.5}
    assert await users.read("ann") == changed
    assert await users.read("ben") == {}


async def test_changes_of_different_fields_at_once_all_stand(users: UserPreferences) -> None:
    names = [f"p{number}" for number in range(20)]
    await asyncio.gather(*(users.change("ann", {name: True}) for name in names))
    assert await users.read("ann") == dict.fromkeys(names, True)


async def test_a_new_session_has_what_is_given_before_the_users_own(
    core: Services, users: UserPreferences
) -> None:
    await users.change("ann", {"theme": "dark", "language": "de"})
    assert await created(core) == {}
    assert await created(core, user_id="ann") == {"theme": "dark", "language": "de"}
    given = {"language": "en", "own": 1}
    assert await created(core, user_id="ann", preferences=given) == {"theme": "dark", **given}
    assert await created(core, user_id="ben", preferences=given) == given
    assert await created(core, user_id="no key: {}") == {}


async def test_a_session_keeps_what_it_began_with(core: Services, users: UserPreferences) -> None:
    await users.change("ann", {"theme": "dark"})
    await created(core, session_id="ses_1", user_id="ann")
    await users.change("ann", {"theme": "light"})
    loaded = msgspec.json.decode(await core.sessions.load("ses_1"), type=Session)
    assert loaded.preferences == {"theme": "dark"}


async def test_a_creation_that_is_repeated_is_found_also_after_they_changed(
    core: Services, users: UserPreferences
) -> None:
    await users.change("ann", {"theme": "dark"})
    given = {"user_id": "ann", "preferences": {"n": 1}}
    first = await created(core, key="k", **given)
    await users.change("ann", {"theme": "light", "more": True})
    assert await created(core, key="k", **given) == first == {"theme": "dark", "n": 1}
    with pytest.raises(AlreadyExists):
        await created(core, key="k", user_id="ann", preferences={"n": 2})
    with pytest.raises(AlreadyExists):
        await created(core, key="k", user_id="ann", title="other")


@pytest.mark.parametrize("patch", [None, [], "dark", 1, {"_version": 1}])
async def test_what_are_no_preferences_is_refused(users: UserPreferences, patch: Any) -> None:
    with pytest.raises(InvalidInput):
        await users.change("ann", patch)
    assert await users.read("ann") == {}


@pytest.mark.parametrize("user", ["", "a b", "-a", "a" * 129, "{a}", "a/b"])
async def test_what_is_no_users_id_is_refused(users: UserPreferences, user: str) -> None:
    with pytest.raises(InvalidInput, match="user_id"):
        await users.read(user)


async def test_a_change_that_comes_late_gives_way_to_what_was_asked_for_after_it(
    users: UserPreferences,
) -> None:
    await users.perform("ann", {"theme": "light", "n": 1}, Request(key="k2", at_ms=2000))
    late = Request(key="k1", at_ms=1000)
    changed = await users.perform("ann", {"theme": "dark", "n": None, "font": "mono"}, late)
    assert changed.preferences == {"theme": "light", "n": 1, "font": "mono"}
    assert await users.read("ann") == changed.preferences


async def test_a_change_that_comes_once_more_changes_nothing(users: UserPreferences) -> None:
    first = await users.perform("ann", {"theme": "dark"}, Request(key="k"))
    await users.change("ann", {"theme": "light"})
    again = await users.perform("ann", {"theme": "dark"}, Request(key="k"))
    assert (again.preferences, again.position) == ({"theme": "light"}, first.position)
    assert await users.have("ann", [first.position]) == [True]
    with pytest.raises(AlreadyExists, match="Idempotency-Key"):
        await users.perform("ann", {"theme": "other"}, Request(key="k"))


async def test_a_change_that_redis_lost_is_missed_and_done_again(
    core: Services, users: UserPreferences
) -> None:
    first = await users.perform("ann", {"theme": "dark"}, Request(key="k1"))
    keys = core.keys.user_preferences("ann"), core.keys.user_changes("ann")
    before = [await core.redis.hgetall(key) for key in keys]
    lost = await users.perform("ann", {"theme": "light"}, Request(key="k2", at_ms=core.clock.ms))
    for key, fields in zip(keys, before, strict=True):
        await core.redis.delete(key)
        await core.redis.hset(key, mapping=fields)
    assert await users.have("ann", [first.position, lost.position]) == [True, False]
    again = await users.perform("ann", {"theme": "light"}, Request(key="k2", at_ms=core.clock.ms))
    assert again.position == lost.position
    assert await users.read("ann") == {"theme": "light"}


async def test_preferences_without_a_history_are_gone_on_from(
    core: Services, users: UserPreferences
) -> None:
    await core.redis.hset(core.keys.user_preferences("ann"), "theme", b'"dark"')
    assert await users.change("ann", {"n": 1}) == {"theme": "dark", "n": 1}
    assert await users.change("ann", {"theme": None}) == {"n": 1}


async def test_two_processes_at_once_lose_nothing_of_one_another(
    start: StartServices,
) -> None:
    ana, ben = await start(), await start()
    changes = [
        who.preferences.change("ann", {"shared": {name: number}})
        for who, name in ((ana, "ana"), (ben, "ben"))
        for number in range(5)
    ]
    await asyncio.gather(*changes)
    found = await ana.preferences.read("ann")
    assert found == await ben.preferences.read("ann")
    assert found["shared"].keys() == {"ana", "ben"}


async def test_too_much_is_refused(users: UserPreferences) -> None:
    with pytest.raises(TooLarge, match="64 KiB"):
        await users.change("ann", {"large": "x" * 65_536})
    for name in ("mine", "yours"):  # as two daemons that were both without Redis
        await users.perform("ann", {name: "x" * 60_000, f"more-{name}": "x" * 5_000}, PLAIN)
    with pytest.raises(TooLarge, match="64 KiB"):
        await users.change("ann", {"n": 1})
    assert len(await users.change("ann", {"more-mine": None})) == 3


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        b"[]",
        b'{"settings": [[]]}',
        b'{"settings": [[[], "000000000000001 k", 1]]}',
        b'{"settings": [[["a"], "yesterday", 1]]}',
        b'{"writes": {"0000000000000a": [0, "digest"]}}',
        b'{"writes": {"a mark": [1, "digest"]}}',
    ],
)
async def test_damage_of_what_they_are_made_of_is_told(
    core: Services, users: UserPreferences, damage: bytes
) -> None:
    await core.redis.hset(core.keys.user_changes("ann"), "changes", damage)
    with pytest.raises(StoreDamaged, match="preferences of 'ann'"):
        await users.change("ann", {"theme": "dark"})
    assert await users.have("ann", [Position("0" * 14, 1)]) == [True]


async def test_damage_is_told(core: Services, users: UserPreferences) -> None:
    await core.redis.hset(core.keys.user_preferences("ann"), "theme", b"{")
    with pytest.raises(StoreDamaged, match="preferences of 'ann'"):
        await users.read("ann")
