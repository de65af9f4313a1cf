"""Blocks: the beginning of a log, compressed beside its stream.

A block holds neighbouring entries. What it holds comes back as Redis would send it from the stream,
so that whoever reads a log need not know where an entry lies. The epochs stay outside of what is
compressed: they are as good as random, and scripts compare positions with them.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec
import zstandard
from msgspec import Struct
from redis.asyncio import Redis

from sessiond.errors import StoreDamaged
from sessiond.store.connection import answered
from sessiond.store.entries import checked
from sessiond.store.keys import Keys
from sessiond.store.scripts import COMPRESS

CODEC = "zstd-1"
"""A zstd frame of a MessagePack list of columns: op, at, origin, id, json."""

_EPOCH_BYTES = 7
_LEVEL = 6
_MOST_BYTES = 256 * 1024 * 1024
_COLUMNS = msgspec.msgpack.Decoder(
    tuple[list[bytes], list[bytes], list[bytes], list[bytes], list[bytes]]
)


class NewerBlock(StoreDamaged):
    """A block in a form that this sessiond does not know."""


class Block(Struct, frozen=True):
    """Neighbouring entries, compressed.

    Attributes:
        last: the offset of the last one.
        epochs: of all of them, seven bytes each.
        data: the rest, in the form that `codec` names.
        checksum: of all of that.
    """

    last: int
    epochs: bytes
    codec: str
    data: bytes
    checksum: bytes

    @property
    def first(self) -> int:
        """The offset of the first entry."""
        return self.last - len(self.epochs) // _EPOCH_BYTES + 1


def pack(raw: list[Any]) -> Block:
    """Compress entries, one or more, as Redis sends them: `[id, [name, value, …]]`."""
    ops, ats, origins, ids, epochs, bodies = zip(*(fields[1::2] for _, fields in raw), strict=True)
    columns = msgspec.msgpack.encode((ops, ats, origins, ids, bodies))
    last = int(raw[-1][0][:-2])
    known_epochs = b"".join(bytes.fromhex(epoch.decode()) for epoch in epochs)
    data = zstandard.ZstdCompressor(level=_LEVEL).compress(columns)
    return Block(last, known_epochs, CODEC, data, _checksum(last, known_epochs, data))


def _checksum(last: int, epochs: bytes, data: bytes) -> bytes:
    return blake2b(b"%d %d " % (last, len(epochs)) + epochs + data, digest_size=8).digest()


def unpack(block: Block) -> list[Any]:
    """Return the entries of a block as Redis would send them from the stream.

    Raises:
        StoreDamaged: it is not what `pack` made.
    """
    if block.codec != CODEC:
        raise NewerBlock(
            f"the block of entries up to {block.last} is in the form {block.codec[:40]!r}",
            hint="a newer sessiond wrote it; use that one",
        )
    if block.checksum != _checksum(block.last, block.epochs, block.data):
        raise _damaged(block, "its checksum is another")
    epochs = [
        block.epochs[start : start + _EPOCH_BYTES].hex().encode()
        for start in range(0, len(block.epochs), _EPOCH_BYTES)
    ]
    offsets = range(block.first, block.last + 1)
    try:
        columns = _COLUMNS.decode(_decompressed(block.data))
        rows = zip(*columns[:4], epochs, columns[4], strict=True)
        return [[b"%d-0" % offset, _flat(row)] for offset, row in zip(offsets, rows, strict=True)]
    except (ValueError, msgspec.MsgspecError, zstandard.ZstdError) as error:
        raise _damaged(block, str(error)) from error


def _flat(row: tuple[bytes, ...]) -> list[bytes]:
    op, at, origin, name, epoch, body = row
    return [b"op", op, b"at", at, b"origin", origin, b"id", name, b"epoch", epoch, b"json", body]


def _damaged(block: Block, reason: str) -> StoreDamaged:
    return StoreDamaged(
        f"the block of entries up to {block.last} is damaged: {reason}",
    )


def _decompressed(data: bytes) -> bytes:
    size = zstandard.frame_content_size(data)
    if not 0 <= size <= _MOST_BYTES:
        raise ValueError(f"it says that it holds {size} bytes")
    return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)


def parse_block(raw: Any) -> Block:
    """Read an entry of the stream of blocks.

    Raises:
        StoreDamaged: it is none.
    """
    stream_id, flat = raw
    try:
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        block = Block(
            int(stream_id.removesuffix(b"-0")),
            fields[b"epochs"],
            fields[b"codec"].decode(),
            fields[b"data"],
            fields[b"checksum"],
        )
    except (KeyError, ValueError) as error:
        raise _foreign(stream_id) from error
    if len(block.epochs) % _EPOCH_BYTES or not 1 <= block.first <= block.last:
        raise _foreign(stream_id)
    return block


def raw_block(block: Block) -> list[Any]:
    """Return a block as Redis sends it from the stream of blocks."""
    flat = [b"epochs", block.epochs, b"codec", block.codec.encode(), b"data", block.data]
    return [b"%d-0" % block.last, [*flat, b"checksum", block.checksum]]


def _foreign(stream_id: bytes) -> StoreDamaged:
    return StoreDamaged(f"block {stream_id!r} is not one of sessiond's")


class BlockStore:
    """Moves entries from logs into blocks.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def oldest(self, session_id: str, count: int) -> list[Any]:
        """Return the oldest entries that are not compressed, as Redis sends them.

        Raises:
            StoreUnavailable, StoreDamaged: Redis does not answer, or has something foreign.
        """
        key = self._keys.conversation(session_id)
        raw = await answered(self._redis.execute_command("XRANGE", key, "-", "+", "COUNT", count))
        return checked(raw)

    async def put(self, session_id: str, block: Block) -> bool:
        """Put a block in the place of its entries; False when the log does not begin with them."""
        keys = [
            self._keys.metadata(session_id),
            self._keys.conversation(session_id),
            self._keys.blocks(session_id),
        ]
        epoch = block.epochs[-_EPOCH_BYTES:].hex()
        arguments: list[Any] = [block.first, block.last, epoch]
        arguments += [block.epochs, block.codec, block.data, block.checksum]
        put = await answered(COMPRESS.run(self._redis.execute_command, keys, arguments))
        return bool(put)
