"""Repairing a damaged session: first a plan, then, if somebody says so, all of it at once.

The log is mended from what is left of it and from this machine's copy; all else is made anew from
the log. A mended log is a stream again, whatever of it was in blocks. Nothing is deleted: what is
replaced is moved to a quarantine key. A repair is refused where the session was written since it
was planned, so that it never stands above a newer write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from msgspec import Struct, field

from sessiond.errors import Contended, NotFound, StoreDamaged
from sessiond.model import DOCUMENTS
from sessiond.service.clock import Clock, milliseconds
from sessiond.service.health.looking import Looked
from sessiond.service.health.scanning import Scanner
from sessiond.store.blocks import NewerBlock
from sessiond.store.content import Hash, stream_of
from sessiond.store.keys import PASSING_KINDS, SESSION_KINDS, TABLE
from sessiond.store.keyspace import Keyspace
from sessiond.store.repairs import RepairStore, Replacement, Standing
from sessiond.store.sessions import SessionStore
from sessiond.sync.audit import FORGETTING, applied_faults, conflict_faults, entry_of, form_faults
from sessiond.sync.derived import Derived
from sessiond.sync.entry import Entry
from sessiond.sync.mending import Mended, Remains, mend
from sessiond.sync.position import Position

_TRIES = 4
_AGAIN = "operation {offset} is in this machine's journal, which writes it again"

Copies = Callable[[str], Awaitable[list[Entry]]]
Journaled = Callable[[str], Awaitable[set[int]]]


class RepairRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether to do what is planned."""

    apply: bool = False


class RepairStep(Struct, kw_only=True):
    """What a repair does with one key."""

    key: str
    action: str


class RepairPlan(Struct, kw_only=True):
    """What a repair does, or did if `applied`.

    Attributes:
        lost: what cannot be restored here.
        quarantine: how the names of the keys begin that hold what was replaced.
        again: what cannot be restored in its place, and is written again, at the end of the log,
            from this machine's journal, as soon as the repair is done.
    """

    session_id: str
    steps: list[RepairStep]
    lost: list[str]
    quarantine: str
    again: list[str] = []
    applied: bool = False


class _Draft(Struct):
    """A plan with all that is needed to do it. `mended`: None where no log can be made whole."""

    standing: Standing
    steps: list[RepairStep] = field(default_factory=list)
    replacements: list[Replacement] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    again: set[int] = field(default_factory=set)
    mended: Mended | None = None


class _Held(Struct):
    """What Redis has of a log. `is_broken`: some of its blocks cannot be read."""

    entries: list[Any] = field(default_factory=list)
    is_broken: bool = False


class Repairer:
    """Repairs sessions.

    Args:
        scanner: finds what is damaged.
        keyspace: what Redis holds.
        repairs: replaces keys.
        store: announces what changed.
        copies: returns what this machine has copied of a session's log.
        journaled: returns the offsets of what this machine's journal can write again.
        changed: is told of a session whose log became another one: who wrote to it looks whether
            its writes are there still.
        clock: milliseconds since 1970.
    """

    def __init__(
        self,
        scanner: Scanner,
        keyspace: Keyspace,
        repairs: RepairStore,
        store: SessionStore,
        *,
        copies: Copies,
        journaled: Journaled,
        changed: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._scanner = scanner
        self._keyspace = keyspace
        self._repairs = repairs
        self._store = store
        self._copies = copies
        self._journaled = journaled
        self._changed = changed
        self._clock = clock

    async def plan(self, session_id: str) -> RepairPlan:
        """Return what a repair would do; a healthy session needs no steps.

        Raises:
            NotFound: Redis has nothing of the session.
            StoreDamaged: it is archived, or a newer sessiond wrote some of it: this one leaves it.
        """
        return self._told(session_id, await self._draft(session_id), str(self._clock()))

    async def apply(self, session_id: str) -> RepairPlan:
        """Repair a session, and return what was done.

        Raises:
            NotFound, StoreDamaged: see `plan`.
            Contended: it was written each time before the repair came to its end.
        """
        for tries in range(_TRIES):
            draft, time = await self._draft(session_id), str(self._clock() + tries)
            if not draft.steps:
                return self._told(session_id, draft, time)
            if await self._repairs.replace(session_id, draft.standing, draft.replacements, time):
                await self._announce(session_id, draft)
                plan = self._told(session_id, draft, time)
                plan.applied = True
                return plan
        raise Contended(
            f"session {session_id!r} was written while it was repaired", hint="try again"
        )

    def _told(self, session_id: str, draft: _Draft, time: str) -> RepairPlan:
        return RepairPlan(
            session_id=session_id,
            steps=draft.steps,
            lost=draft.lost,
            again=[_AGAIN.format(offset=offset) for offset in sorted(draft.again)],
            quarantine=self._keyspace.keys.quarantine(session_id, time, ""),
        )

    async def _announce(self, session_id: str, draft: _Draft) -> None:
        """List the session, and have readers, and who wrote to it, look at it anew."""
        if draft.mended is None:
            return
        derived = draft.mended.derived
        active_ms = milliseconds(derived.last_activity)
        await self._repairs.list(session_id, derived.workspace, active_ms)
        await self._store.announce_end(session_id, derived.workspace, derived.position)
        self._changed(session_id)

    async def _draft(self, session_id: str) -> _Draft:
        types = await self._keyspace.types(session_id)
        foreign = await self._scanner.foreign_keys(session_id)
        if not (types or foreign):
            raise NotFound(
                f"Redis has nothing of session {session_id!r}",
                hint="a machine that wrote to it writes it again from its journal",
            )
        draft = _Draft(await self._repairs.standing(session_id, types))
        if types:
            looked = await self._scanner.look(session_id)
            if looked.faults and looked.is_archived:
                raise _archived(session_id, looked)
            if looked.faults:
                await self._plan_session(session_id, draft, looked)
        for number, key in enumerate(foreign):
            self._move(draft, key, f"foreign{number}", "move aside: no key of sessiond is named so")
        return draft

    async def _plan_session(self, session_id: str, draft: _Draft, looked: Looked) -> None:
        keys, types = self._keyspace.keys, draft.standing.types
        wrong = [
            kind for kind in SESSION_KINDS if types.get(kind, TABLE[kind].type) != TABLE[kind].type
        ]
        for kind in (*PASSING_KINDS, "archive"):
            if kind in wrong:
                self._move(draft, keys.of_session(kind, session_id), kind, "move aside")
        if await self._is_deleted(session_id, types):
            for fault in looked.faults:
                if fault.kind in wrong and fault.kind in (*PASSING_KINDS, "archive"):
                    continue
                if fault.severity == "warning" or fault.kind in wrong:
                    key = keys.of_session(fault.kind, session_id)
                    self._move(draft, key, fault.kind, "move aside: the session is deleted")
                else:
                    draft.lost.append(f"{fault.kind}: {fault.finding}")
            return
        if "archive" not in wrong and any(fault.kind == "archive" for fault in looked.faults):
            action = "move aside: the session is not archived"
            self._move(draft, keys.archive(session_id), "archive", action)
        await self._drop_lines(session_id, draft, "presence")
        held = await self._held(session_id, types)
        draft.mended = mended = await self._mended(session_id, types, held.entries)
        if mended is None:
            draft.lost.append(
                "the beginning of its log is neither in Redis nor among this machine's copies: "
                "nothing of the session is touched; repair it on a machine that has a copy"
            )
            return
        await self._tell_lost(session_id, draft, mended)
        self._plan_log(session_id, draft, mended, held)
        await self._plan_rest(session_id, draft, mended.derived)
        if any(fault.kind == "sessions" for fault in looked.faults):
            draft.steps.append(RepairStep(key=keys.sessions, action="list the session again"))

    async def _tell_lost(self, session_id: str, draft: _Draft, mended: Mended) -> None:
        if mended.lost:
            draft.again = mended.lost.keys() & await self._journaled(session_id)
        draft.lost += (why for at, why in mended.lost.items() if at not in draft.again)
        draft.lost += (
            f"operation {at} is not proven: what was before it is lost" for at in mended.unproven
        )

    def _plan_log(self, session_id: str, draft: _Draft, mended: Mended, held: _Held) -> None:
        types, wanted = draft.standing.types, stream_of(mended.entries)
        are_blocks = types.get("blocks", "stream") == "stream"
        if are_blocks and not held.is_broken and _plain(held.entries) == _plain(wanted):
            return
        if "blocks" in types:
            key = self._keyspace.keys.blocks(session_id)
            self._move(draft, key, "blocks", "move aside: the log is a stream again")
        sources = [f"{place} from {source}" for place, source in mended.restored.items()]
        parts = [
            f"restored: {', '.join(sources)}" if sources else "",
            _listed("written again at the end", draft.again),
            _listed("lost", mended.lost.keys() - draft.again),
        ]
        action = "; ".join(filter(None, ["write the log anew", *parts]))
        self._put(session_id, draft, "conversation", wanted, action)

    async def _plan_rest(self, session_id: str, draft: _Draft, derived: Derived) -> None:
        types, lost = draft.standing.types, set(draft.mended.lost if draft.mended else ())
        wanted: dict[str, Hash] = {name: derived.hash_of(name) for name in DOCUMENTS}
        wanted |= {kind: derived.index_of(kind) for kind in ("messages", "parts")}
        for kind, content in wanted.items():
            held = await self._hash(session_id, kind, types)
            if types.get(kind, "hash") != "hash" or held != content:
                self._put(session_id, draft, kind, content, "make it anew from the log")
        held = await self._hash(session_id, "applied", types)
        applied = _applied(held, derived, lost)
        if types.get("applied", "hash") != "hash" or held != applied:
            self._put(session_id, draft, "applied", applied, "make it anew from the log")
        await self._plan_conflicts(session_id, draft, derived)

    async def _plan_conflicts(self, session_id: str, draft: _Draft, derived: Derived) -> None:
        types = draft.standing.types
        raw = await self._conflicts(session_id, types)
        kept = [each for each in raw if not [*conflict_faults([each], derived, derived.offset)]]
        if len(kept) == len(raw) and types.get("conflicts", "stream") == "stream":
            return
        content = [(stream_id.decode(), flat) for stream_id, flat in kept]
        self._put(session_id, draft, "conflicts", content, "keep what agrees with the log")
        numbers = {int(stream_id.partition(b"-")[0]) for stream_id, _ in kept}
        gone = sorted(derived.conflicts.keys() - numbers) if kept != raw or not raw else []
        draft.lost += (f"what conflict {number} kept of both sides" for number in gone)

    async def _drop_lines(self, session_id: str, draft: _Draft, kind: str) -> None:
        held = await self._hash(session_id, kind, draft.standing.types)
        kept = {name: line for name, line in held.items() if not [*form_faults(kind, {name: line})]}
        if kept != held:
            self._put(session_id, draft, kind, kept, "keep its lines that are whole")

    async def _held(self, session_id: str, types: Any) -> _Held:
        held = _Held()

        def note(error: StoreDamaged) -> None:
            if isinstance(error, NewerBlock):
                raise error
            held.is_broken = True

        async for page in self._keyspace.log(session_id, types, note):
            held.entries += page
        return held

    async def _mended(self, session_id: str, types: Any, raw: list[Any]) -> Mended | None:
        held = {entry.offset: entry for entry in map(entry_of, raw) if entry}
        copy = {entry.offset: entry for entry in await self._copies(session_id)}
        known = None
        if types.get("metadata") == "hash":
            _, epoch, version = await self._keyspace.position(session_id)
            if epoch and version and version.isdigit():
                known = Position(epoch.decode("ascii", "replace"), int(version))
        return mend(Remains(held, copy, known), f"{self._store.writer}:0")

    async def _is_deleted(self, session_id: str, types: Any) -> bool:
        if types.get("metadata") != "hash":
            return False
        return (await self._keyspace.position(session_id))[0] == b"deleted"

    async def _hash(self, session_id: str, kind: str, types: Any) -> Hash:
        return await self._keyspace.hash(session_id, kind) if types.get(kind) == "hash" else {}

    async def _conflicts(self, session_id: str, types: Any) -> list[Any]:
        if types.get("conflicts") != "stream":
            return []
        pages = self._keyspace.entries(session_id, "conflicts")
        return [raw async for page in pages for raw in page]

    def _put(self, session_id: str, draft: _Draft, kind: str, content: Any, action: str) -> None:
        key = self._keyspace.keys.of_session(kind, session_id)
        draft.steps.append(RepairStep(key=key, action=action))
        draft.replacements.append(Replacement(key, kind, content))

    def _move(self, draft: _Draft, key: str, kind: str, action: str) -> None:
        draft.steps.append(RepairStep(key=key, action=action))
        draft.replacements.append(Replacement(key, kind, None))


def _listed(what: str, offsets: Iterable[int]) -> str:
    shown = ", ".join(map(str, sorted(offsets)))
    return f"{what}: {shown}" if shown else ""


def _archived(session_id: str, looked: Looked) -> StoreDamaged:
    findings = "; ".join(f"{fault.kind}: {fault.finding}" for fault in looked.faults)
    return StoreDamaged(
        f"session {session_id!r} is archived, and a repair does not read archives ({findings})",
        hint=f"`sessiond restore {session_id}` brings it back; repair it then, or restore its "
        "archive from a backup",
    )


def _applied(held: Hash, derived: Derived, lost: set[int]) -> Hash:
    """Return the list of writers and keys: what agrees with the log, and what the log says.

    The key of a lost operation goes, so that whoever wrote it can write it again.
    """
    end = derived.offset
    kept = {
        name: value
        for name, value in held.items()
        if name.startswith((b"key:", b"outbox:"))
        and not [*applied_faults({name: value}, Derived(), set(), end)]
        and not (name.startswith(b"key:") and int(value.split()[-1]) in lost)
    }
    is_whole = len(held) < FORGETTING
    return kept | {
        writer.encode(): b"%d %d" % line
        for writer, line in derived.writers.items()
        if is_whole or writer.encode() in held
    }


def _plain(entries: Any) -> list[tuple[bytes, list[bytes]]]:
    """Return the entries of a stream in one form, whoever made them."""
    return [
        (_bytes(stream_id), [_bytes(value) for value in fields or ()])
        for stream_id, fields in entries
    ]


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
