"""One look at a session: each of its keys is compared with its log, or with what its state allows.

Nothing is changed, and an archived session is not brought back for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Any

from msgspec import Struct, field

from sessiond.errors import StoreDamaged
from sessiond.model import DOCUMENTS
from sessiond.store.archives import IN_REDIS
from sessiond.store.content import Hash
from sessiond.store.keys import ARCHIVED_KINDS, PASSING_KINDS, SESSION_KINDS, TABLE
from sessiond.store.keyspace import Keyspace
from sessiond.sync.audit import (
    Fault,
    LogAudit,
    applied_faults,
    conflict_faults,
    document_faults,
    form_faults,
    index_faults,
    is_conflict,
    metadata_faults,
    stub_faults,
    tombstone_faults,
)
from sessiond.sync.derived import Derived

_KEPT_OF_DELETED = ("metadata", "conversation", "applied", "conflicts", *PASSING_KINDS)


class Looked(Struct):
    """What one look at a session found. `derived`: what its log makes of it, if that is whole."""

    faults: list[Fault] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    derived: Derived | None = None
    is_archived: bool = False


class Look:
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
            await self._find_left(_KEPT_OF_DELETED, "deleted")
            return
        self._looked.faults += metadata_faults(metadata) if "metadata" in self._types else ()
        if b"archive" in metadata:
            await self._compare_stub(metadata)
            return
        await self._find_left([*ARCHIVED_KINDS, *PASSING_KINDS], "not archived")
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

    async def _compare_stub(self, metadata: Hash) -> None:
        """Look at what Redis keeps of an archived session. The archive itself is not read.

        Its conflicts are there where some are open; they are checked for their form.
        """
        self._looked.is_archived = True
        self._looked.faults += stub_faults(metadata)
        is_here = metadata[b"archive"].decode("utf-8", "replace") == IN_REDIS
        is_sought = is_here and "archive" not in self._wrong
        if is_sought and not await self._keyspace.has_field(self._session_id, "archive", "packed"):
            self._looked.faults.append(Fault("archive", "the session's archive is gone"))
        self._looked.faults += _foreign(await self._conflicts())
        kept = ["metadata", "conflicts", *PASSING_KINDS, *(["archive"] if is_here else [])]
        await self._find_left(kept, "archived")

    async def _find_left(self, kept: Collection[str], state: str) -> None:
        """Note the keys that a session in this state does not have."""
        self._looked.faults += (
            Fault(kind, f"is there although the session is {state}", "warning")
            for kind in await self._keyspace.types(self._session_id)
            if kind not in kept and kind not in self._wrong
        )

    async def _compare_with_indexes(self, *, whole: bool) -> None:
        derived, faults = self._log.derived, self._looked.faults
        held = {kind: await self._hash(kind) for kind in ("messages", "parts", "applied")}
        conflicts = await self._conflicts()
        for kind in ("messages", "parts"):
            faults += form_faults(kind, held[kind])
        faults += form_faults("presence", await self._hash("presence"))
        if not whole:
            self._looked.faults += self._log.faults or [Fault("conversation", "is empty")]
            faults += _foreign(conflicts)
            return
        self._looked.derived = derived
        self._log.ids = set()  # what is written from here on is left aside, and proven itself
        async for page in self._entries(after=derived.offset):
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
        async for page in self._entries():
            for raw in page:
                if until is not None and self._log.last >= until:
                    return
                self._log.take(raw)

    def _entries(self, after: int = 0) -> AsyncIterator[list[Any]]:
        """Return the log behind an offset, page after page; damaged blocks are noted."""

        def note(error: StoreDamaged) -> None:
            self._looked.faults.append(Fault("blocks", error.detail))

        return self._keyspace.log(self._session_id, self._types, note, after)

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


def _foreign(conflicts: list[Any]) -> list[Fault]:
    return [
        Fault("conflicts", f"entry {raw[0].decode()} is not one of sessiond's")
        for raw in conflicts
        if not is_conflict(raw[1])
    ]


def _number(value: bytes | None) -> int | None:
    return int(value) if value and value.isdigit() else None
