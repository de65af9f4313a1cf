"""A session that Redis lost, written again from this machine's copy of its log.

Its creation is older than what journals keep, or its creator's journal is lost. Machines that do
this at once come to the same: the same creation is one, a message's id stands for one message, and
every other operation has a key that is made of its place in the log that was lost.
"""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from sessiond.codec import json
from sessiond.errors import AlreadyExists, NotFound
from sessiond.model import DOCUMENTS, DocumentName, NewSession
from sessiond.replica import Replica
from sessiond.service.content.shapes import encode_creation, encode_fields
from sessiond.service.writing import Surroundings, commit
from sessiond.store.draft import Draft, IdempotencyKey
from sessiond.store.outcome import KeyUsed
from sessiond.sync.entry import Entry

_TOGETHER = 64
_NEW_SESSION = msgspec.json.Decoder(NewSession)
_ANY = msgspec.json.Decoder()
_DONE_BEFORE = (AlreadyExists, KeyUsed, NotFound)
"""What tells that another machine does the same, and is further on."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


def draft_of(entry: Entry) -> Draft | None:
    """Return an operation as it is written once more; None where it cannot be.

    What a conflict holds does not stand in the log: it is lost.
    """
    client = entry.origin.rpartition("@")[0]
    plain = Draft(entry.op, entry.id, entry.at, entry.json, client=client)
    match entry.op:
        case "session.create":
            new = _NEW_SESSION.decode(entry.json)
            return msgspec.structs.replace(plain, changes=encode_creation(new, entry.at))
        case "message.append":
            return plain
        case "document.change":
            body, name = _ANY.decode(entry.json), _name(entry.id)
            changes = encode_fields(name, body["set"], body["unset"])
            return msgspec.structs.replace(plain, changes=changes, key=_key(entry))
        case "message.edit" | "message.remove" | "part.put" | "part.remove":
            return msgspec.structs.replace(plain, key=_key(entry))
        case _:
            return None


def _name(text: str) -> DocumentName:
    return next(name for name in DOCUMENTS if name == text)


def _key(entry: Entry) -> IdempotencyKey:
    return IdempotencyKey(f"key:revived:{entry.position}", json.encode(entry.op).decode())


class Revival:
    """Writes sessions again that Redis does not have.

    Args:
        around: the stores and the time.
        replica: this machine's copies.
    """

    def __init__(self, around: Surroundings, replica: Replica) -> None:
        self._around = around
        self._replica = replica

    async def revive(self, session_id: str) -> bool:
        """Write a session again; tell whether there was a whole copy of it.

        Raises:
            StoreUnavailable: Redis is away, or full: what is there then is a beginning of it.
            ReplicaUnavailable: the copies cannot be read.
        """
        content = await self._replica.content(session_id)
        outline, entries = content or (None, [])
        if outline is None or outline.deleted or not entries or entries[0].op != "session.create":
            return False
        workspace = self._replica.copies[session_id].workspace
        await self._around.store.announce_creation(session_id, workspace, self._around.clock())
        drafts = [draft for entry in entries if (draft := draft_of(entry))]
        await self._write(session_id, drafts[:1])
        for start in range(1, len(drafts), _TOGETHER):
            await self._write(session_id, drafts[start : start + _TOGETHER])
        _log.warning("session.revived", session_id=session_id, count=len(drafts))
        return True

    async def _write(self, session_id: str, drafts: list[Draft]) -> None:
        """Write operations in their order, each by itself; pass over those that are there."""
        outcomes = await asyncio.gather(
            *(commit(self._around, session_id, [draft]) for draft in drafts),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, _DONE_BEFORE):
                raise outcome
