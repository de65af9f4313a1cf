"""Sessions that leave Redis, and come back: what the archive scripts do."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from redis.asyncio import Redis

from sessiond.archive.record import Archive, KeyContent
from sessiond.errors import (
    ArchiveDamaged,
    Contended,
    NotFound,
    SessionDeleted,
    SessiondError,
    SessionInUse,
    StoreDamaged,
)
from sessiond.policy.compression import BlockRules, block_length
from sessiond.store.blocks import pack, parse_block, raw_block, unpack
from sessiond.store.connection import answered
from sessiond.store.content import NOTHING, hash_arguments, stream_arguments
from sessiond.store.entries import checked, parse_entry
from sessiond.store.keys import ARCHIVED_KINDS, Keys
from sessiond.store.scripts import ARCHIVE, CAPTURE, RESTORE
from sessiond.sync.position import Position

IN_REDIS = "redis"
"""The place of an archive that is a key."""

_CAPTURE_MS = 10 * 60 * 1000
"""So old may be what was captured when the session goes: far less than a released file is kept."""


_NOTHING = KeyContent("stream", [])
_ALL = BlockRules(kept=0)
_BODY = 11


class Captured(Struct, frozen=True):
    """A session at one moment.

    Attributes:
        archive: all of it.
        standing: what tells whether it changed since.
        at_ms: when that was, by Redis's clock.
    """

    archive: Archive
    standing: bytes
    at_ms: int


class AlreadyArchived(SessiondError):
    """The session is archived: nothing is to be done."""


class ArchiveStore:
    """Takes sessions out of Redis and puts them back.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def capture(self, session_id: str) -> Captured:
        """Return all that Redis holds of a session that nobody uses.

        Raises:
            SessionInUse: a turn runs in it, or somebody is there.
            AlreadyArchived, NotFound, SessionDeleted: there is nothing to capture.
            StoreDamaged: it is not whole.
        """
        reply = await answered(
            CAPTURE.run(self._redis.execute_command, self._keys.archiving(session_id))
        )
        _check(session_id, reply)
        _, at_ms, standing, *contents = reply
        keys = {
            kind: KeyContent(_type(session_id, type_), items)
            for kind, (type_, items) in zip(ARCHIVED_KINDS, contents, strict=True)
            if type_ != b"none"
        }
        return Captured(_archive(session_id, keys), standing, at_ms)

    async def put(
        self, captured: Captured, place: str, packed: bytes, at: str, *, keep_conflicts: bool
    ) -> None:
        """Let a session go that was captured.

        Args:
            captured: it.
            place: where its archive is.
            packed: the archive, for Redis to keep; empty where it is elsewhere.
            at: when that is, for the stub.
            keep_conflicts: whether its conflicts stay in Redis, too, to be listed.

        Raises:
            SessionInUse, AlreadyArchived, NotFound, SessionDeleted: see `capture`.
            Contended: it changed since, or that was too long ago.
        """
        session_id = captured.archive.session_id
        arguments = [captured.standing, captured.at_ms, _CAPTURE_MS, place, packed, at]
        arguments.append(int(_is_of_opencode(captured.archive)))
        arguments.append(self._keys.conflicts(session_id) if keep_conflicts else "")
        keys = self._keys.archiving(session_id)
        _check(
            session_id, await answered(ARCHIVE.run(self._redis.execute_command, keys, arguments))
        )

    async def place(self, session_id: str) -> str | None:
        """Return where the archive of a session is; None of one that is not archived."""
        place = await answered(self._redis.hget(self._keys.metadata(session_id), "archive"))
        return None if place is None else str(place.decode("utf-8", "replace"))

    async def packed(self, session_id: str) -> bytes | None:
        """Return the archive that Redis keeps of a session."""
        key = self._keys.archive(session_id)
        found: bytes | None = await answered(self._redis.hget(key, "packed"))
        return found

    async def restore(self, archive: Archive, place: str, now_ms: int) -> bool:
        """Put a session back whose archive is at a place; False when it is not any more.

        A session with conflicts is entered among those with conflicts again.
        """
        session_id = archive.session_id
        arguments: list[Any] = [place]
        for kind in ARCHIVED_KINDS:
            content = archive.keys.get(kind)
            arguments += _arguments(content) if content else NOTHING
        keys = self._keys.archiving(session_id)
        if "conflicts" in archive.keys:
            await answered(self._redis.zadd(self._keys.contested, {session_id: now_ms}))
        done = await answered(RESTORE.run(self._redis.execute_command, keys, arguments))
        return bool(done)


def compacted(archive: Archive) -> Archive:
    """Return an archive with all of its log in blocks, but for the newest entry.

    So it is smaller, and comes back faster: a block is one value, an entry twelve.

    Raises:
        StoreDamaged: its log is not whole.
    """
    log = archive.keys.get("conversation", _NOTHING)
    *old, newest = checked(log.items) or [None]
    if not old:
        return archive
    blocks = list(archive.keys.get("blocks", _NOTHING).items)
    while old:
        sizes = [len(fields[_BODY]) for _, fields in old[: _ALL.entries]]
        length = block_length(sizes, 1, len(old), _ALL) or len(old)
        blocks.append(raw_block(pack(old[:length])))
        old = old[length:]
    in_blocks = {
        "blocks": KeyContent("stream", blocks),
        "conversation": KeyContent("stream", [newest]),
    }
    return replace(archive, keys=archive.keys | in_blocks)


def check_log(archive: Archive) -> None:
    """Check that the log of an archive is whole: from its first entry to the session's position.

    Raises:
        StoreDamaged: it is not.
    """
    blocks = archive.keys.get("blocks", _NOTHING).items
    entries = [entry for raw in blocks for entry in unpack(parse_block(raw))]
    entries += archive.keys.get("conversation", _NOTHING).items
    checked(entries)
    if not entries or parse_entry(entries[0]).offset != 1:
        raise _incomplete(archive, "its log has no beginning")
    if parse_entry(entries[-1]).position != Position(archive.epoch, archive.version):
        raise _incomplete(archive, "its log does not end where it says")


def _incomplete(archive: Archive, reason: str) -> ArchiveDamaged:
    return ArchiveDamaged(
        f"session {archive.session_id!r} is not whole: {reason}", hint="see `sessiond doctor`"
    )


def _archive(session_id: str, keys: dict[str, KeyContent]) -> Archive:
    flat = keys["metadata"].items
    metadata = dict(zip(flat[::2], flat[1::2], strict=True))
    try:
        epoch, version = metadata[b"epoch"].decode(), int(metadata[b"version"])
    except (KeyError, ValueError) as error:
        raise StoreDamaged(
            f"the metadata of session {session_id!r} are damaged: {error}"
        ) from error
    return Archive(session_id, epoch, version, keys)


def _is_of_opencode(archive: Archive) -> bool:
    context = archive.keys.get("context")
    return context is not None and b"opencode" in context.items[::2]


def _type(session_id: str, given: bytes) -> Any:
    if given not in (b"hash", b"stream"):
        raise StoreDamaged(
            f"session {session_id!r} has a key of the type {given.decode('ascii', 'replace')}"
        )
    return given.decode()


def _arguments(content: KeyContent) -> list[Any]:
    """Return what a key held as restore.lua takes it."""
    if content.type == "hash":
        return hash_arguments(content.items)
    return stream_arguments(content.items)


def _check(session_id: str, reply: list[Any]) -> None:
    """Raise what a script's answer says, unless it is "ok"."""
    reason = reply[0]
    if reason == b"ok":
        return
    detail = reply[1].decode("utf-8", "replace")
    match reason:
        case b"not-found":
            raise NotFound(
                f"there is no session {session_id!r}", hint="`sessiond sessions` lists them"
            )
        case b"session-deleted":
            raise SessionDeleted(
                f"session {session_id!r} was deleted", hint="there is nothing to archive"
            )
        case b"archived":
            raise AlreadyArchived(detail)
        case b"turn":
            raise SessionInUse(
                f"a turn of {detail!r} runs in session {session_id!r}", hint="wait for its end"
            )
        case b"present":
            raise SessionInUse(
                f"{detail!r} is at session {session_id!r}",
                hint="`sessiond show` tells who is there; archive it when they have left",
            )
    raise Contended(
        f"session {session_id!r} changed while it was archived",
        hint="try again when nobody writes to it",
    )
