"""Copies of users' preferences on disk: those that were seen last, beside the sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from sessiond.replica import Replica
from sessiond.service.clock import system_clock
from sessiond.sync.preferences import changes_of, mark_of, stamp_of


async def opened(folder: Path) -> Replica:
    return await Replica.open(folder, limit_bytes=2**20, clock=system_clock)


async def test_what_was_kept_is_there_in_the_next_life(tmp_path: Path) -> None:
    changes = changes_of({"theme": "dark"}).with_patch({"n": {"a": None}}, stamp_of(7, "k"))
    applied = changes.with_write(mark_of("k"), "digest")
    replica = await opened(tmp_path)
    assert await replica.user("ann") is None
    await replica.keep_user("ann", changes_of({}), 1)
    await replica.keep_user("ann", applied, 2)
    await replica.close()
    replica = await opened(tmp_path)
    assert await replica.user("ann") == (applied, 2)
    await replica.close()


async def test_of_many_users_those_that_were_seen_last_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessiond.replica.file._MOST_USERS", 2)
    replica = await opened(tmp_path)
    for user_id, read_ms in (("ann", 1), ("ben", 2), ("ann", 3), ("cem", 4)):
        await replica.keep_user(user_id, changes_of({}), read_ms)
    assert await replica.user("ben") is None
    assert await replica.user("ann")
    assert await replica.user("cem")
    await replica.close()
