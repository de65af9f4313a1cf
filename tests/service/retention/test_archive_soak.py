"""Ten thousand sessions are used, age, leave Redis and come back: nothing grows with them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from sessiond.model import NewMessage, NewSession, Session
from tests.store.support import Services, StartServices, real_servers

SESSIONS = 10_000
AT_ONCE = 20
DAY_MS = 24 * 3600 * 1000
STUB_BYTES = 1_500
"""What Redis may hold of a session that is archived in a folder, indexes included."""
CONNECTIONS = 64
GROWTH_KIB = 48 * 1024

_SESSION = msgspec.json.Decoder(Session)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@real_servers
async def test_ten_thousand_sessions_come_and_go(start: StartServices, tmp_path: Path) -> None:
    core = await start(archive=f"file://{tmp_path}/archive")
    await _live(core, range(AT_ONCE))
    resident, handles, used = _resident_kib(), _handles(), await _used(core)
    for first in range(AT_ONCE, SESSIONS, AT_ONCE):
        await _live(core, range(first, first + AT_ONCE))
    assert _handles() - handles < CONNECTIONS
    assert _resident_kib() - resident < GROWTH_KIB
    assert (await _used(core) - used) / SESSIONS < STUB_BYTES

    core.clock.ms += 2 * DAY_MS
    await core.archiving.sweep()
    core.clock.ms += 2 * DAY_MS
    await core.archiving.sweep()
    assert sum(1 for _ in (tmp_path / "archive").iterdir()) == SESSIONS


async def _live(core: Services, numbers: range) -> None:
    """Have sessions used, archived, loaded a day later, and archived again."""
    await asyncio.gather(*(_use(core, number) for number in numbers))
    await _archive(core, numbers)
    await asyncio.gather(*(_check(core, number) for number in numbers))
    await _archive(core, numbers)


async def _archive(core: Services, numbers: range) -> None:
    core.clock.ms += DAY_MS
    await asyncio.gather(*(core.archiving.archive(_name(number)) for number in numbers))


async def _use(core: Services, number: int) -> None:
    await core.sessions.create(NewSession(session_id=_name(number), title=f"title {number}"))
    for text in ("one", "two", "three"):
        new = NewMessage(role="user", content=f"{text} {number}")
        await core.messages.append(_name(number), [new])


async def _check(core: Services, number: int) -> None:
    session = _SESSION.decode(await core.sessions.load(_name(number)))
    contents = [message.content for message in session.conversation.messages]
    assert contents == [f"{text} {number}" for text in ("one", "two", "three")]


def _name(number: int) -> str:
    return f"ses_{number}"


def _resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def _handles() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def _used(core: Services) -> int:
    return int((await core.redis.info("memory"))["used_memory"])
