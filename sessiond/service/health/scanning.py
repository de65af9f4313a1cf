"""Looking for damage: every key of every session in Redis is compared with the session's log.

A session may be written meanwhile. What is compared is of one moment, or leaves out what was
written since; and where anything is found while the session moved on, it is looked at again.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated

from msgspec import Meta, Struct

from sessiond.errors import InvalidInput, NotFound, StoreDamaged, StoreRefusesUser
from sessiond.service.clock import Clock
from sessiond.service.health.looking import Look, Looked
from sessiond.store.keys import TABLE
from sessiond.store.keyspace import Found, Keyspace
from sessiond.sync.audit import Fault, Severity

_TRIES = 4
_SETTLED_MS = 60_000
"""A creation is listed before it is written: an entry this old without a session is odd."""
_KEYS_PHASE, _INDEX_PHASE, _INSTEAD_PHASE = "keys:", "listed:", "instead:"
_CURSOR = re.compile(r"(keys:|listed:|instead:)(\d{0,20})", re.ASCII)

_REPAIR = "sessiond repair {session_id} says what can be restored; --apply does it"
_FOREIGN = "something other than sessiond wrote it; `sessiond repair {session_id}` moves it aside"


class Damage(Struct, kw_only=True):
    """What is wrong with one key in Redis, or with one file of a session.

    Attributes:
        session_id: whose it is; empty for the keys of no session.
        key: of Redis; or the path of the file.
        severity: `damaged`: something cannot be read, or is not what was written; `warning`: works.
        remedy: what to do about it.
    """

    session_id: str
    key: str
    finding: str
    severity: Severity
    remedy: str
    is_file: bool = False


class ScanRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which sessions to scan: these, or a stretch of all, from a cursor on."""

    session_ids: list[str] = []
    cursor: str = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class ScanPage(Struct, kw_only=True):
    """What a scan found. `cursor` continues it; empty when nothing follows."""

    sessions: int
    damage: list[Damage]
    cursor: str = ""


class Scanner:
    """Scans sessions.

    Args:
        keyspace: what Redis holds.
        clock: milliseconds since 1970.
    """

    def __init__(self, keyspace: Keyspace, clock: Clock) -> None:
        self._keyspace = keyspace
        self._clock = clock

    async def sessions(self, session_ids: list[str]) -> ScanPage:
        """Scan these sessions.

        Raises:
            NotFound: Redis has nothing of one of them.
        """
        damage: list[Damage] = []
        for session_id in session_ids:
            if not await self._keyspace.types(session_id):
                raise NotFound(
                    f"Redis has nothing of session {session_id!r}",
                    hint="`sessiond sessions` lists them",
                )
            damage += await self.damage(session_id)
        return ScanPage(sessions=len(session_ids), damage=damage)

    async def page(self, cursor: str, limit: int) -> ScanPage:
        """Scan a stretch of all sessions, `limit` of them at least if so many follow.

        All keys are looked through first, then the index, for what is listed and is not there.
        Where Redis does not let this user look through its keys, the index has to do.

        Raises:
            InvalidInput: the cursor is not one that a scan gave.
        """
        phase, place = _parsed(cursor)
        page = ScanPage(sessions=0, damage=[] if cursor else await self._index_damage())
        try:
            if phase == _KEYS_PHASE:
                await self._scan_keys(page, place, limit)
                return page
        except StoreRefusesUser:
            page.damage.append(self._unseen())
            phase, place = _INSTEAD_PHASE, ""
        await self._scan_index(page, phase, place)
        return page

    async def damage(self, session_id: str) -> list[Damage]:
        """Return what is wrong with a session."""
        looked = await self.look(session_id)
        damage = [self._damage(session_id, fault) for fault in looked.faults]
        return damage + [self._foreign(key) for key in await self.foreign_keys(session_id)]

    async def foreign_keys(self, session_id: str) -> list[str]:
        """Return the keys within a session's that none of sessiond's are named like."""
        with suppress(StoreRefusesUser):  # told by a scan of all
            return await self._keyspace.foreign_keys(session_id)
        return []

    async def look(self, session_id: str) -> Looked:
        """Look at a session until it stands still, or nothing is wrong with it."""
        looked = Looked()
        for _ in range(_TRIES):
            types = await self._keyspace.types(session_id)
            before = await self._position(session_id, types)
            looked = await Look(self._keyspace, session_id, types).run()
            types = await self._keyspace.types(session_id)
            if not looked.faults or before == await self._position(session_id, types):
                break
        return looked

    async def _position(self, session_id: str, types: dict[str, str]) -> object:
        """Return what is another after each write, and after the first compression."""
        if types.get("metadata") != "hash":
            return types
        return await self._keyspace.position(session_id), types.get("blocks")

    async def _scan_keys(self, page: ScanPage, place: str, limit: int) -> None:
        """Look through keys from a place on, until `limit` sessions were scanned."""
        while page.sessions < limit:
            found = await self._keyspace.step(place)
            await self._add(page, found)
            place = found.cursor
            if not place:
                page.cursor = _INDEX_PHASE
                return
        page.cursor = f"{_KEYS_PHASE}{place}"

    async def _scan_index(self, page: ScanPage, phase: str, place: str) -> None:
        """Look at a stretch of the index; `instead` of looking through keys, scan what it lists."""
        try:
            listed, place = await self._keyspace.listed(place)
        except StoreDamaged:  # told by its type
            return
        for session_id, score in listed.items():
            if not await self._keyspace.types(session_id):
                page.damage += self._lost(session_id, score)
            elif phase == _INSTEAD_PHASE:
                await self._add(page, Found([session_id], [], ""))
        page.cursor = f"{phase}{place}" if place else ""

    def _unseen(self) -> Damage:
        keys = self._keyspace.keys
        return Damage(
            session_id="",
            key=keys.all_of_sessions(),
            finding="Redis does not let this user look through its keys: sessions that no index "
            "lists, and keys of others among sessiond's, are not found",
            severity="warning",
            remedy="give the user +scan to have them found, too; it then sees the names of all "
            "keys on that server",
        )

    async def _add(self, page: ScanPage, found: Found) -> None:
        for session_id in found.sessions:
            looked = await self.look(session_id)
            page.damage += [self._damage(session_id, fault) for fault in looked.faults]
        page.damage += [self._foreign(key) for key in found.foreign]
        page.sessions += len(found.sessions)

    async def _index_damage(self) -> list[Damage]:
        return [
            Damage(
                session_id="",
                key=getattr(self._keyspace.keys, kind),
                finding=f"is of type {found}, not {TABLE[kind].type}",
                severity="damaged",
                remedy="move it aside with redis-cli RENAME; sessions enter it with their next "
                "activity, or by `sessiond repair --all --apply`",
            )
            for kind, found in (await self._keyspace.index_types()).items()
            if found != TABLE[kind].type
        ]

    def _lost(self, session_id: str, score: float) -> list[Damage]:
        """Return what is to be said of a session that is listed, and is not there."""
        if self._clock() - score <= _SETTLED_MS:
            return []
        damage = Damage(
            session_id=session_id,
            key=self._keyspace.keys.sessions,
            finding=f"lists {session_id!r}, of which Redis has nothing",
            severity="warning",
            remedy="it was lost, or never written: a machine that wrote to it writes it again "
            "from its journal; listings pass over it",
        )
        return [damage]

    def _damage(self, session_id: str, fault: Fault) -> Damage:
        keys = self._keyspace.keys
        is_index = fault.kind == "sessions"
        return Damage(
            session_id=session_id,
            key=keys.sessions if is_index else keys.of_session(fault.kind, session_id),
            finding=fault.finding,
            severity=fault.severity,
            remedy=_REPAIR.format(session_id=session_id),
        )

    def _foreign(self, key: str) -> Damage:
        session_id = key.partition("{")[2].partition("}")[0]
        return Damage(
            session_id=session_id,
            key=key,
            finding="no key of sessiond has this name",
            severity="warning",
            remedy=_FOREIGN.format(session_id=session_id),
        )


def _parsed(cursor: str) -> tuple[str, str]:
    match = _CURSOR.fullmatch(cursor or _KEYS_PHASE)
    if match is None:
        raise InvalidInput(
            f"{cursor[:80]!r} is not a cursor", hint="use `cursor` of the page before, unchanged"
        )
    return match[1], match[2]
