"""Who is at which session, in Redis: entries that count for a while unless they are repeated."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from sessiond.errors import StoreDamaged, TooLarge
from sessiond.model import Presence, PresenceChange
from sessiond.store.connection import answered
from sessiond.store.keys import Keys
from sessiond.store.scripts import PRESENCE

Verb = Literal["announce", "leave", "look"]

_LARGEST_ENTRY = 16 * 1024
"""Bytes of an entry's JSON: 256 of them, the most at a session, make an answer of a few MB."""

_ENTRY = re.compile(rb"(\d{1,15}) (\d{1,15}) (\d{1,15}) (\{.*\})", re.DOTALL)
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class About(Struct, frozen=True):
    """What an instance says of itself; the JSON of its entry."""

    machine: str
    client: str
    active_files: tuple[str, ...] = ()


class PresenceState(Struct, frozen=True):
    """Who is at a session of a workspace, the longest there first; what was changed by asking."""

    workspace: str
    present: list[Presence]
    changes: list[PresenceChange]


_ABOUT = msgspec.json.Decoder(About)
_encode = msgspec.json.Encoder().encode


class PresenceStore:
    """Presence in one Redis. Every method may raise StoreUnavailable.

    Args:
        redis: client for commands.
        keys: names of the keys.
        life_ms: how long an announcement counts that is not repeated.
    """

    def __init__(self, redis: Redis, keys: Keys, life_ms: int) -> None:
        self._redis = redis
        self._keys = keys
        self.life_ms = life_ms

    async def announce(self, session_id: str, instance: str, about: About) -> PresenceState | None:
        """Enter an instance, or say again that it is there; None when there is no such session.

        Raises:
            TooLarge: what it says of itself is more than 16 KiB of JSON, or 256 others are there
                already.
            StoreDamaged: a key of the session is none of ours.
        """
        state = await self._ask("announce", session_id, instance, _entry(about))
        if state:
            until_ms = max(who.until_ms for who in state.present)
            index = {session_id: until_ms}
            await answered(self._redis.zadd(self._keys.present, index, gt=True))
        return state

    async def leave(self, session_id: str, instance: str) -> PresenceState | None:
        """Take an instance out; None when there is no such session."""
        return await self._ask("leave", session_id, instance)

    async def look(self, session_id: str) -> PresenceState | None:
        """Take out who is there no more; None when there is no such session."""
        return await self._ask("look", session_id)

    async def sessions(self, limit: int) -> list[str]:
        """Return sessions where somebody may be, those first where somebody is the longest."""
        members = await answered(self._redis.zrevrange(self._keys.present, 0, limit - 1))
        return _ids(members)

    async def silent(self, limit: int) -> tuple[list[str], int]:
        """Return sessions where nobody is any more, and until when somebody was at the last one."""
        seconds, micros = await answered(self._redis.time())
        now = int(seconds) * 1000 + int(micros) // 1000
        index = self._keys.present
        oldest = await answered(self._redis.zrange(index, 0, limit - 1, withscores=True))
        silent = [(member, score) for member, score in oldest if score <= now]
        return _ids([member for member, _ in silent]), int(silent[-1][1]) if silent else 0

    async def forget(self, until_ms: int) -> None:
        """Take sessions out of the index where nobody is since then."""
        await answered(self._redis.zremrangebyscore(self._keys.present, "-inf", until_ms))

    async def _ask(
        self, verb: Verb, session_id: str, instance: str = "", entry: bytes = b""
    ) -> PresenceState | None:
        keys = self._keys
        reply = await answered(
            PRESENCE.run(
                self._redis.execute_command,
                [keys.presence(session_id), keys.metadata(session_id), keys.lease(session_id)],
                [verb, instance, self.life_ms, entry],
            )
        )
        if reply[0] == b"full":
            raise TooLarge(
                f"256 instances are at session {session_id!r} already",
                hint="one that is not repeated ends by itself",
            )
        if reply[0] != b"ok":
            return None
        try:
            return _state(*reply[1:])
        except UnicodeDecodeError as error:
            raise StoreDamaged(f"the lease of session {session_id!r} is damaged") from error


def _entry(about: About) -> bytes:
    entry = _encode(about)
    if len(entry) > _LARGEST_ENTRY:
        raise TooLarge(
            f"the {len(about.active_files)} active files make {len(entry):,} bytes of JSON, "
            f"{_LARGEST_ENTRY:,} is the most",
            hint="name fewer files, or shorter: relative to the project's folder",
        )
    return entry


def _state(workspace: bytes, turn: bytes, changes: list[Any], entries: list[Any]) -> PresenceState:
    holder = turn.decode()
    present = [
        who
        for name, value in zip(entries[::2], entries[1::2], strict=True)
        if (who := _presence(name, value, holder))
    ]
    changed = [
        PresenceChange(change=how.decode(), who=who)
        for how, name, value in zip(changes[::3], changes[1::3], changes[2::3], strict=True)
        if (who := _presence(name, value, holder))
    ]
    present.sort(key=lambda who: (who.since_ms, who.instance))
    return PresenceState(workspace.decode(), present, changed)


def _presence(name: bytes, value: bytes, holder: str) -> Presence | None:
    """Return what an entry says; None for one that is none of ours: it must not hide the others."""
    match = _ENTRY.fullmatch(value)
    if match is None:
        return None
    try:
        instance, about = name.decode(), _ABOUT.decode(match[4])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return Presence(
        instance=instance,
        machine=about.machine,
        client=about.client,
        active_files=list(about.active_files),
        since_ms=int(match[1]),
        seen_ms=int(match[2]),
        until_ms=int(match[3]),
        has_turn=instance == holder,
    )


def _ids(members: list[bytes]) -> list[str]:
    names = [member.decode("ascii", "replace") for member in members]
    return [name for name in names if _SESSION_ID.fullmatch(name)]
