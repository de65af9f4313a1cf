"""A look into Redis for people: what one key holds, with the JSON inside it decoded."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import msgspec
from redis.asyncio import Redis

from sessiond.archive.record import FORM as ARCHIVE_FORM
from sessiond.errors import NotFound, StoreDamaged
from sessiond.store.blocks import parse_block, unpack
from sessiond.store.connection import answered
from sessiond.store.keys import Keys

_NUMBERS_BEFORE_OBJECT = re.compile(rb"(?:\d{1,15} ){1,8}(?=\{)")


async def read_key(redis: Redis, keys: Keys, key: str, limit: int) -> tuple[str, int, Any]:
    """Return a key's type, its number of items, and up to `limit` of them (a stream's newest).

    Raises:
        NotFound: there is no such key in our namespace.
    """
    if not key.startswith(f"{keys.namespace}:"):
        raise NotFound(
            f"{key[:200]!r} is not a key of sessiond", hint="`sessiond redis keys` shows them all"
        )
    kind = (await answered(redis.type(key))).decode()
    match kind:
        case "hash":
            fields = await answered(redis.hgetall(key))
            shown = dict(sorted(fields.items())[:limit])
            return kind, len(fields), {_text(name): _decoded(shown[name]) for name in shown}
        case "stream":
            length = await answered(redis.xlen(key))
            newest = await answered(
                redis.execute_command("XREVRANGE", key, "+", "-", "COUNT", limit)
            )
            return kind, length, [_entry(stream_id, flat) for stream_id, flat in newest[::-1]]
        case "zset":
            length = await answered(redis.zcard(key))
            members = await answered(redis.zrevrange(key, 0, limit - 1, withscores=True))
            return (
                kind,
                length,
                {
                    _text(member): int(score) if math.isfinite(score) else str(score)
                    for member, score in members
                },
            )
        case "string":
            value = await answered(redis.get(key))
            return kind, 1, _decoded(value or b"")
        case _:
            raise NotFound(f"there is no key {key[:200]!r}", hint="`sessiond sessions` lists ids")


def _entry(stream_id: bytes, flat: list[bytes]) -> dict[str, Any]:
    if b"codec" in flat[::2]:
        with contextlib.suppress(StoreDamaged):  # then it is shown as it lies there
            block = parse_block([stream_id, flat])
            entries = [_entry(*entry) for entry in unpack(block)]
            return {"entry": _text(stream_id), "codec": block.codec, "entries": entries}
    fields = zip(flat[::2], flat[1::2], strict=False)
    return {"entry": _text(stream_id)} | {
        _text(name): _decoded(value) if name == b"json" else _text(value) for name, value in fields
    }


def _decoded(value: bytes) -> Any:
    """Return JSON objects, lists and texts decoded; everything else as the text it is.

    Of an archive only its form and size are shown: `sessiond restore` unpacks it.

    Of numbers with an object behind them, such as an entry of presence, a list is made.
    """
    if value.startswith(ARCHIVE_FORM):
        return f"{_text(ARCHIVE_FORM.strip())}, {len(value)} bytes"
    numbers = _NUMBERS_BEFORE_OBJECT.match(value)
    if numbers:
        return [*map(int, numbers[0].split()), _decoded(value[numbers.end() :])]
    if value[:1] in (b"{", b"[", b'"'):
        try:
            return msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
    return _text(value)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
