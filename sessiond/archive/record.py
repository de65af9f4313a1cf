"""The form of an archive: all that Redis held of a session, compressed, with a checksum. Pure.

An archive is a line that names the form, sixteen bytes of BLAKE2b of the rest, and the rest: a zstd
frame of MessagePack. It holds what the keys held, not how a server stores it: an archive may be
restored by another version of Redis, or by Valkey.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal

import msgspec
import zstandard
from msgspec import Struct

from sessiond.errors import ArchiveDamaged

FORM = b"sessiond-archive-1\n"
_DIGEST_BYTES = 16
_LEVEL = 9
_MOST_BYTES = 2 * 1024 * 1024 * 1024


class KeyContent(Struct, frozen=True, array_like=True):
    """What one key held.

    Attributes:
        type: of the key.
        items: of a hash field, value, field, …; of a stream its entries, each
            `[id, [name, value, …]]`, the oldest first.
    """

    type: Literal["hash", "stream"]
    items: list[Any]


class Archive(Struct, frozen=True):
    """A whole session.

    Attributes:
        session_id: whose it is.
        epoch, version: the position of its last operation.
        keys: what its keys held, by the kinds of `store.keys.TABLE`.
    """

    session_id: str
    epoch: str
    version: int
    keys: dict[str, KeyContent]


_ARCHIVE = msgspec.msgpack.Decoder(Archive)


def pack(archive: Archive) -> bytes:
    """Return an archive as it is kept."""
    body = zstandard.ZstdCompressor(level=_LEVEL).compress(msgspec.msgpack.encode(archive))
    return FORM + _digest(body) + body


def unpack(packed: bytes, session_id: str) -> Archive:
    """Return the archive of a session.

    Raises:
        ArchiveDamaged: it is not what `pack` made, or of another session.
    """
    if not packed.startswith(FORM):
        raise _damaged(session_id, "it does not begin like one")
    start = len(FORM) + _DIGEST_BYTES
    body = packed[start:]
    if packed[len(FORM) : start] != _digest(body):
        raise _damaged(session_id, "its checksum is another")
    try:
        size = zstandard.frame_content_size(body)
        if not 0 <= size <= _MOST_BYTES:
            raise _damaged(session_id, f"it says that it holds {size} bytes")
        archive = _ARCHIVE.decode(zstandard.ZstdDecompressor().decompress(body))
    except (msgspec.MsgspecError, zstandard.ZstdError, UnicodeDecodeError) as error:
        raise _damaged(session_id, str(error)) from error
    if archive.session_id != session_id:
        raise _damaged(session_id, f"it is of session {archive.session_id[:64]!r}")
    return archive


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=_DIGEST_BYTES).digest()


def _damaged(session_id: str, reason: str) -> ArchiveDamaged:
    return ArchiveDamaged(
        f"the archive of session {session_id!r} is damaged: {reason}",
        hint="restore its file from a backup; nothing of it was changed or removed",
    )
