"""Looking for damage: every key of every session in Redis is compared with the session's log.

A session may be written meanwhile. What is compared is of one moment, or leaves out what was
written since; and where anything is found while the session moved on, it is looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from sessiond.errors import InvalidInput, NotFound, StoreDamaged, StoreRefusesUser
from sessiond.model import DOCUMENTS
from sessiond.service.clock import Clock
from sessiond.store.keys import SESSION_KINDS, TABLE
from sessiond.store.keyspace import Found, Hash, Keyspace
from sessiond.sync.audit import (
    Fault,
    LogAudit,
    Severity,
    applied_faults,
    conflict_faults,
    document_faults,
    form_faults,
    index_faults,
    is_conflict,
    tombstone_faults,
)
from sessiond.sync.derived import Derived

_TRIES = 4
_SETTLED_MS = 60_000
"""A creation is listed before it is written: an entry this old without a session is odd."""
_KEYS_PHASE, _INDEX_PHASE, _INSTEAD_PHASE = "keys:", "listed:", "instead:"
_CURSOR = re.compile(r"(keys:|listed:|instead:)(\d{0,20})", re.ASCII)
_REQUIRED = (b"status", b"epoch", b"version", b"workspace", b"session_id", b"created_at")
_KEPT_OF_DELETED = (
    *("metadata", "conversation", "applied", "conflicts"),
    *("lease", "presence", "trace"),
)

_REPAIR = "sessiond repair {session_id} says what can be restored; --apply does it"
_FOREIGN = "something other than sessiond wrote it; `sessiond repair {session_id}` moves it aside"


class Damage(Struct, kw_only=True):
    """What is wrong with one key in Redis.

    Attributes:
        session_id: whose key it is; empty for those of no session.
        severity: `damaged`: something cannot be read, or is not what was written; `warning`: works.
        remedy: what to do about it.
    """

    session_id: str
    key: str
    finding: str
    severity: Severity
    remedy: str


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


class Looked(Struct):
    """What one look at a session found. `derived`: what its log makes of it, if that is whole."""

    faults: list[Fault] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    derived: Derived | None = None


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
            looked = await _Look(self._keyspace, session_id, types).run()
            types = await self._keyspace.types(session_id)
            if not looked.faults or before == await self._position(session_id, types):
                break
        return looked

    async def _position(self, session_id: str, types: dict[str, str]) -> object:
        is_hash = types.get("metadata") == "hash"
        return await self._keyspace.position(session_id) if is_hash else types

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


class _Look:
    """One look at a session; what is compared with what stands in sync/audit.py."""

    def __init__(self, keyspace: Keyspace, session_id: str, types: dict[str, str]) -> None:
        self._keyspace = keyspace
        self._session_id = session_id
        self._types = types
        self._wrong = {kind for kind, found in types.items() if found != TABLE[kind].type}
        self._log = LogAudit()
        self._looked = Looked(types=types)

    async def run(self) -> Looked:
        """Return what is found."""
        faults = self._looked.faults
        faults += (
            Fault(kind, f"is of type {self._types[kind]}, not {TABLE[kind].type}")
            for kind in SESSION_KINDS
            if kind in self._wrong
        )
        if "metadata" not in self._types:
            faults.append(Fault("metadata", "is missing"))
        try:
            await self._compare()
        except StoreDamaged as error:  # became so meanwhile
            faults.append(Fault("metadata", error.detail))
        return self._looked

    async def _compare(self) -> None:
        documents = await self._documents()
        metadata = documents.get("metadata", {})
        if metadata.get(b"status") == b"deleted":
            await self._follow()
            self._looked.faults += [*self._log.faults, *tombstone_faults(metadata, self._log)]
            self._looked.faults += (
                Fault(kind, "is there although the session is deleted", "warning")
                for kind in await self._keyspace.types(self._session_id)
                if kind not in _KEPT_OF_DELETED
            )
            return
        self._looked.faults += _metadata_faults(metadata) if "metadata" in self._types else ()
        until = _number(metadata.get(b"version"))
        await self._follow(until)
        whole = not self._log.faults and self._log.deletion is None and self._log.last > 0
        if whole and until is not None and self._log.last == until:
            for name in DOCUMENTS:
                if name not in self._wrong:
                    found = document_faults(name, documents.get(name, {}), self._log.derived)
                    self._looked.faults += found
        elif whole:
            self._looked.faults.append(
                Fault("metadata", f"its version is {until}; the log ends at {self._log.last}")
            )
        await self._compare_with_indexes(whole=whole)

    async def _compare_with_indexes(self, *, whole: bool) -> None:
        derived, faults = self._log.derived, self._looked.faults
        held = {kind: await self._hash(kind) for kind in ("messages", "parts", "applied")}
        conflicts = await self._conflicts()
        for kind in ("messages", "parts"):
            faults += form_faults(kind, held[kind])
        faults += form_faults("presence", await self._hash("presence"))
        if not whole:
            self._looked.faults += self._log.faults or [Fault("conversation", "is empty")]
            faults += (
                Fault("conflicts", f"entry {raw[0].decode()} is not one of sessiond's")
                for raw in conflicts
                if not is_conflict(raw[1])
            )
            return
        self._looked.derived = derived
        self._log.ids = set()  # what is written from here on is left aside, and proven itself
        async for page in self._keyspace.entries(self._session_id, after=f"({derived.offset}-0"):
            for raw in page:
                self._log.take(raw)
        later, end = self._log.ids, self._log.last
        faults += self._log.faults
        for kind in ("messages", "parts"):
            if kind not in self._wrong:
                faults += index_faults(kind, held[kind], derived, later)
        if "applied" not in self._wrong:
            faults += applied_faults(held["applied"], derived, later, end)
        faults += conflict_faults(conflicts, derived, end)
        faults += await self._listing_faults(derived)
        status, _, version = await self._keyspace.position(self._session_id)
        if status != b"deleted" and (_number(version) or 0) < end:
            faults.append(Fault("metadata", f"its version is before {end}, the log's end"))

    async def _follow(self, until: int | None = None) -> None:
        """Read the log, up to an offset."""
        if self._types.get("conversation") != "stream":
            return
        async for page in self._keyspace.entries(self._session_id):
            for raw in page:
                if until is not None and self._log.last >= until:
                    return
                self._log.take(raw)

    async def _documents(self) -> dict[str, Hash]:
        if not self._wrong.intersection(DOCUMENTS):
            return await self._keyspace.documents(self._session_id)
        return {name: await self._hash(name) for name in DOCUMENTS}

    async def _hash(self, kind: str) -> Hash:
        if self._types.get(kind) != "hash":
            return {}
        return await self._keyspace.hash(self._session_id, kind)

    async def _conflicts(self) -> list[Any]:
        if self._types.get("conflicts") != "stream":
            return []
        pages = self._keyspace.entries(self._session_id, "conflicts")
        return [raw async for page in pages for raw in page]

    async def _listing_faults(self, derived: Derived) -> list[Fault]:
        scores = await self._keyspace.listed_at(self._session_id, derived.workspace)
        of_all, of_workspace = (score is None for score in scores)
        faults = []
        if of_all:
            faults.append(Fault("sessions", "does not list this session"))
        if of_workspace:
            faults.append(
                Fault("sessions", f"the list of {derived.workspace!r} lacks this session")
            )
        return faults


def _parsed(cursor: str) -> tuple[str, str]:
    match = _CURSOR.fullmatch(cursor or _KEYS_PHASE)
    if match is None:
        raise InvalidInput(
            f"{cursor[:80]!r} is not a cursor", hint="use `cursor` of the page before, unchanged"
        )
    return match[1], match[2]


def _metadata_faults(metadata: Hash) -> Iterator[Fault]:
    missing = [name.decode() for name in _REQUIRED if not metadata.get(name)]
    if missing:
        yield Fault("metadata", f"lacks {', '.join(missing)}")


def _number(value: bytes | None) -> int | None:
    return int(value) if value and value.isdigit() else None
