"""The documents of a session: metadata, context and preferences, read and changed by version."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs

from sessiond.codec import json
from sessiond.errors import AlreadyExists, InvalidInput, SessionDeleted, VersionMismatch
from sessiond.model import Document, DocumentName, Metadata
from sessiond.service.clock import moment_of, timestamp
from sessiond.service.content.deletion import kept
from sessiond.service.content.history import Remembered, catch_up, history_since, written
from sessiond.service.content.merging import (
    NOT_IN_THE_LOG,
    Outcomes,
    Subject,
    commit_with_conflicts,
    conflict_drafts,
    own_origin,
    own_side,
    recorded_behind,
    told_of,
)
from sessiond.service.content.shapes import (
    checked_document,
    decoded_document,
    document_change,
    document_value,
    typed,
)
from sessiond.service.writing import (
    PLAIN,
    Request,
    Surroundings,
    asked_at,
    attempt,
    check_expected,
    idempotency_key,
    seen,
    written_before,
)
from sessiond.store.draft import Draft, IdempotencyKey
from sessiond.store.outcome import KeyUsed
from sessiond.sync.documents import merge_patch
from sessiond.sync.position import Position, parse_position
from sessiond.sync.rebase import Writing, rebased
from sessiond.sync.recent import History, Recent
from sessiond.sync.rules import LAST_WRITER
from sessiond.sync.sides import Side

_TOGETHER = 16
_GROUP_BYTES = 512 * 1024
_OPERATION_BYTES = 4096
"""What an operation counts for beside its JSON, so that a group has not too many either."""


class _Change(Struct, frozen=True):
    """A change that somebody asked for, and when; `patch` is the document if it replaces that."""

    subject: Subject
    name: DocumentName
    patch: dict[str, Any]
    replace: bool
    request: Request
    key: IdempotencyKey | None
    at_ms: int

    def fields(self, document: dict[str, Any]) -> AbstractSet[str]:
        """Return the fields of a document that it may change."""
        return document.keys() | self.patch.keys() if self.replace else self.patch.keys()

    def made_of(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return what it makes of a document."""
        return dict(self.patch) if self.replace else dict(merge_patch(document, self.patch))


class _Waiting(Struct, eq=False):
    """Somebody who waits for what becomes of a change; done when they went away.

    `found`: a version of the document, and what was found in the log from the change's base up to
    there: when others are faster, the next try reads only what they wrote.
    """

    change: _Change
    answer: asyncio.Future[Document]
    found: tuple[str, History] | None = None

    def settle(self, document: Document) -> None:
        """Answer, if somebody still waits."""
        if not self.answer.done():
            self.answer.set_result(document)

    def refuse(self, error: Exception) -> None:
        """Tell why not, if somebody still waits."""
        if not self.answer.done():
            self.answer.set_exception(error)


class _Step(Struct, frozen=True):
    """What one change of a group makes of the document; without a writing it makes no difference.

    `drafts` are its operation and the conflicts that it came with.
    """

    waiting: _Waiting
    value: Any
    writing: Writing | None = None
    drafts: list[Draft] = []

    @property
    def size(self) -> int:
        """Bytes of JSON, about."""
        return sum(draft.size + _OPERATION_BYTES for draft in self.drafts)


class _Lane(Struct):
    """The changes of one document that wait, and what writes them."""

    queue: deque[_Waiting]
    worker: asyncio.Task[None] | None = None


class _Unsure(Exception):
    """What is remembered does not tell: the document is to be read."""


class Documents:
    """Reads and changes documents."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._remembered = Remembered()
        self._lanes: dict[tuple[str, DocumentName], _Lane] = {}

    async def read(self, session_id: str, name: DocumentName) -> Document:
        """Return a document and its version.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
        """
        snapshot = await self._around.store.snapshot(session_id)
        return Document(
            name=name, value=document_value(snapshot, name), version=snapshot.versions[name]
        )

    async def change(
        self,
        session_id: str,
        name: DocumentName,
        patch: Any,
        request: Request = PLAIN,
        *,
        replace: bool = False,
    ) -> Document:
        """Apply a JSON Merge Patch (RFC 7396) to a document, or replace it.

        With a base, what others changed since is merged with it by the rules, and what the merge
        leaves out becomes a conflict. With neither a base nor an expected version, the patch is
        applied to whatever is current.

        Raises:
            InvalidInput: the result would not be such a document.
            VersionMismatch: the expected version is not the current one.
            Contended, NotFound, SessionDeleted, AlreadyExists (the key): see `writing`.
        """
        if not isinstance(patch, dict):
            raise InvalidInput("a document is a JSON object")
        around, subject = self._around, Subject(session_id, name)
        key = idempotency_key(request, json.encode([name, replace, patch]))
        change = _Change(subject, name, patch, replace, request, key, asked_at(around, request))
        waiting = _Waiting(change, asyncio.get_running_loop().create_future())
        try:
            if name == "metadata" or request.expected:
                await self._settle([waiting], request)
            else:
                self._join(waiting)
            return await waiting.answer
        except SessionDeleted as error:
            raise await kept(around, request, error, [(subject, patch)]) from error

    # Who waits for the same document is written together: one merged upon the other, in one group.

    def _join(self, waiting: _Waiting) -> None:
        place = waiting.change.subject.session_id, waiting.change.name
        if place in self._lanes:
            self._lanes[place].queue.append(waiting)
        else:
            lane = self._lanes[place] = _Lane(deque([waiting]))
            lane.worker = asyncio.create_task(self._work(place, lane))

    async def _work(self, place: tuple[str, DocumentName], lane: _Lane) -> None:
        while lane.queue:
            await self._settle(_next_batch(lane.queue))
        del self._lanes[place]

    async def _settle(self, batch: list[_Waiting], request: Request = PLAIN) -> None:
        """Write changes of one document and answer them, or tell why not."""
        subject, name = batch[0].change.subject, batch[0].change.name
        may_trust = name != "metadata" and not request.expected  # what is remembered, once

        async def once() -> None:
            nonlocal may_trust
            known = self._remembered.get(subject.session_id, name) if may_trust else None
            may_trust = False
            if known and not known.others_write:
                with suppress(VersionMismatch, KeyUsed, InvalidInput, _Unsure):
                    return await self._write(_open(batch), known, is_read=False)
            before = [(waiting, await self._written_before(waiting)) for waiting in _open(batch)]
            known = await self._read(subject.session_id, name)  # has what was written before
            for waiting, position in before:
                if position:
                    conflicts = await recorded_behind(self._around, subject.session_id, position)
                    waiting.settle(_document(name, known, conflicts))
            check_expected(request.expected, known.version)
            return await self._write(_open(batch), known, is_read=True)

        try:
            while _open(batch):
                await attempt(self._around, subject.session_id, name, request, once)
        except Exception as error:  # noqa: BLE001 - whatever happens, the callers must hear of it
            for waiting in batch:
                waiting.refuse(error)

    async def _written_before(self, waiting: _Waiting) -> Position | None:
        change = waiting.change
        try:
            return await written_before(self._around, change.subject.session_id, change.key)
        except AlreadyExists as error:
            waiting.refuse(error)
            return None

    async def _read(self, session_id: str, name: DocumentName) -> Recent:
        """Return a document as Redis has it, and what is known of its way there."""
        log, known = self._around.store.log, self._remembered.get(session_id, name)
        before = known.version if known else ""
        if known is None or not await catch_up(log, session_id, name, known):
            snapshot = await self._around.store.snapshot(session_id)
            known = Recent(snapshot.versions[name], decoded_document(snapshot, name))
        known.others_write = bool(before) and known.version != before
        if name != "metadata":  # every operation changes it
            self._remembered.keep(session_id, name, known)
        return known

    async def _write(self, batch: list[_Waiting], known: Recent, *, is_read: bool) -> None:
        """Write what changes make of a document as it is known, one merged upon the other.

        Args:
            batch: the changes; what does not fit into one group stays unanswered.
            known: the document.
            is_read: whether it was just read; what is only remembered may be compared by Redis,
                and nothing else may follow from it.

        Raises:
            VersionMismatch: the document is another one by now.
            InvalidInput, _Unsure: nothing was written, and the document is to be read first.
        """
        steps: list[_Step] = []
        ahead = known.copy()
        for waiting in batch:
            if sum(step.size for step in steps) > _GROUP_BYTES:
                break
            try:
                history = await self._history(waiting, known, ahead, steps, is_read=is_read)
                step = self._step(waiting, ahead, history, len(steps))
            except InvalidInput as error:
                if not is_read:
                    raise
                waiting.refuse(error)
                continue
            if not (step.drafts or is_read):
                raise _Unsure
            steps.append(step)
        if steps:
            await self._commit(steps, known)

    async def _history(
        self,
        waiting: _Waiting,
        known: Recent,
        ahead: Recent,
        steps: list[_Step],
        *,
        is_read: bool,
    ) -> History:
        """Return what a change was made on, and what was written since, also just before it."""
        change = waiting.change
        base = change.request.base
        if not base:
            return History(ahead.value, ())
        if history := ahead.since(base):
            return history
        if not is_read:
            raise _Unsure
        history = await self._history_in_the_log(waiting, known)
        ours = [step.writing for step in steps if step.writing]
        return History(history.base, [*history.since, *ours])

    async def _history_in_the_log(self, waiting: _Waiting, known: Recent) -> History:
        if waiting.found:
            version, before = waiting.found
            more = known.since(version)
            if more is not None and before.base is not None:
                return History(before.base, [*before.since, *more.since])
        log, subject = self._around.store.log, waiting.change.subject
        change = waiting.change
        base = parse_position(change.request.base)
        history = await history_since(
            log, subject.session_id, change.name, base, known, fields=change.fields(known.value)
        )
        waiting.found = (known.version, history)
        return history

    def _step(self, waiting: _Waiting, ahead: Recent, history: History, place: int) -> _Step:
        """Merge a change into the document, and lead that on to the result."""
        around, change = self._around, waiting.change
        merged = self._merged(change, ahead.value, history, place)
        wanted = msgspec.to_builtins(merged.value)  # what is remembered is shared with nobody
        value = checked_document(change.name, ahead.value, wanted)
        draft = document_change(
            change.name, ahead.value, value, ahead.version, at=timestamp(change.at_ms),
            key=change.key, client=change.request.client,
        )  # fmt: skip
        if not draft.changes and not merged.contests:
            return _Step(waiting, value)
        writing = written(draft, NOT_IN_THE_LOG + place, own_origin(around, change.request))
        ahead.take("", writing, len(draft.json))  # its version is not known yet
        conflicts = conflict_drafts(merged, at=draft.at, client=draft.client)
        return _Step(waiting, value, writing, [draft, *conflicts])

    def _merged(
        self, change: _Change, current: dict[str, Any], history: History, place: int
    ) -> Outcomes:
        """Return what a change makes of a document, whatever it was made on."""
        name, request = change.name, change.request
        before = seen(history.base, request)
        is_current = not history.since and not request.made and before is not None
        if not request.base or is_current:
            return Outcomes(change.subject, request.base, change.made_of(current))
        wanted = change.made_of(current if before is None else before)
        if name == "metadata" and "last_activity" in wanted:  # every operation moves it
            wanted["last_activity"] = current["last_activity"]
        ours = own_side(self._around, request, wanted, change.at_ms, place)
        rules = LAST_WRITER if before is None else self._around.rules.of(name)
        merged = rebased(before, ours, current, history.since, rules)
        base = request.base if before is not None else ""
        last = history.since[-1] if history.since else Writing({}, 0, 0, "")
        theirs = Side(current, last.at, last.offset, last.origin)
        contests = told_of(merged.contests, UNSET if before is None else before, ours, theirs)
        return Outcomes(change.subject, base, merged.value, contests)

    async def _commit(self, steps: list[_Step], known: Recent) -> None:
        """Write steps in one group, remember them, and answer those who wait for them."""
        around, session_id = self._around, steps[0].waiting.change.subject.session_id
        group = [draft for step in steps for draft in step.drafts]
        positions: Iterator[Position] = iter(())
        if group:
            positions = iter(await commit_with_conflicts(around, session_id, group))
        for step in steps:
            numbers: list[str] = []
            if step.writing:
                position = next(positions)
                numbers = [str(next(positions).offset) for _ in step.drafts[1:]]
                writing = structs.replace(step.writing, offset=position.offset)
                known.take(str(position), writing, step.size)
            if isinstance(step.value, Metadata) and step.drafts:
                step.value.last_activity = moment_of(step.drafts[0].at)
            name = step.waiting.change.name
            step.waiting.settle(Document(
                name=name, value=step.value, version=known.version, conflicts=numbers or UNSET
            ))  # fmt: skip


def _open(batch: list[_Waiting]) -> list[_Waiting]:
    return [waiting for waiting in batch if not waiting.answer.done()]


def _next_batch(queue: deque[_Waiting]) -> list[_Waiting]:
    """Take what is written next, no key twice: a twin finds what the first one wrote."""
    batch = [queue.popleft()]
    keys = {batch[0].change.request.key}
    while queue and len(batch) < _TOGETHER and queue[0].change.request.key not in keys - {""}:
        keys.add(queue[0].change.request.key)
        batch.append(queue.popleft())
    return batch


def _document(
    name: DocumentName, known: Recent, conflicts: list[str] | UnsetType = UNSET
) -> Document:
    value = typed(name, msgspec.to_builtins(known.value))
    return Document(name=name, value=value, version=known.version, conflicts=conflicts)
