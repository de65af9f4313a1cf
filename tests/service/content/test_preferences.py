"""Users' preferences: kept per user, and what their new sessions begin with."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from sessiond.errors import AlreadyExists, InvalidInput, StoreDamaged, TooLarge
from sessiond.model import NewSession, Session
from sessiond.service.content.preferences import UserPreferences
from sessiond.service.writing import Request
from sessiond.store.preferences import PreferenceStore
from tests.store.support import Services


@pytest.fixture
def users(core: Services) -> UserPreferences:
    return UserPreferences(PreferenceStore(core.redis, core.keys))


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


async def test_too_much_is_refused(users: UserPreferences) -> None:
    with pytest.raises(TooLarge, match="64 KiB"):
        await users.change("ann", {"large": "x" * 65_536})


async def test_damage_is_told(core: Services, users: UserPreferences) -> None:
    await core.redis.hset(core.keys.user_preferences("ann"), "theme", b"{")
    with pytest.raises(StoreDamaged, match="preferences of 'ann'"):
        await users.read("ann")
