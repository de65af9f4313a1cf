"""The specification's session files: which there are, and what their JSON says. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import UNSET, Raw, Struct

from sessiond.codec import json
from sessiond.errors import InvalidInput
from sessiond.model import (
    Cache,
    CachedCall,
    CacheEntry,
    Context,
    Metadata,
    NewMessage,
    Preferences,
)

FileName = Literal["metadata", "conversation", "context", "preferences", "cache"]
FILES: tuple[FileName, ...] = get_args(FileName)
"""The names of a session's files, without `.json`."""

MOST_CACHED = 256
"""Answers that `cache.json` tells of: those used last."""

_INDENT = 2
_OF_ENTRY = ("tool", "arguments", "path", "scope", "machine", "bytes", "value")


class GivenConversation(Struct, kw_only=True, forbid_unknown_fields=True):
    """`conversation.json` as a person may leave it: messages may lack an id and a time.

    The two counts follow from the messages: what stands there is passed over.
    """

    messages: list[NewMessage] = []
    total_messages: Any = 0
    context_window_used: Any = 0


Value: TypeAlias = Metadata | GivenConversation | Context | Preferences | Cache
"""What a file says, by its name."""

_DECODERS: dict[FileName, msgspec.json.Decoder[Any]] = {
    "metadata": msgspec.json.Decoder(Metadata),
    "conversation": msgspec.json.Decoder(GivenConversation),
    "context": msgspec.json.Decoder(Context),
    "preferences": msgspec.json.Decoder(Preferences),
    "cache": msgspec.json.Decoder(Cache),
}


class _Loaded(Struct):
    """A `model.Session` in JSON whose documents only pass through."""

    metadata: Raw
    conversation: Raw
    context: Raw
    preferences: Raw
    position: str
    versions: dict[str, str]


_LOADED = msgspec.json.Decoder(_Loaded)


class Rendered(Struct, frozen=True):
    """Files of a session: their bytes, the position they stand for, the documents' versions."""

    files: dict[FileName, bytes]
    position: str
    versions: dict[str, str]


def file_of(name: FileName) -> str:
    """Return the name of a file in a session's folder."""
    return f"{name}.json"


def cache_of(calls: Iterable[CachedCall]) -> Cache:
    """Return what `cache.json` says of the answers that were used last, given in that order."""
    entries = {
        call.key: CacheEntry(
            value={
                name: value for name in _OF_ENTRY if (value := getattr(call, name)) is not UNSET
            },
            stored_at=call.stored_at,
            expires_at=call.expires_at,
        )
        for call in islice(calls, MOST_CACHED)
    }
    return Cache(entries=entries)


def cache_file(cache: Cache) -> bytes:
    """Return the content of `cache.json`."""
    return pretty(json.encode(cache))


def rendered(session: bytes, cache: Cache | None = None) -> Rendered:
    """Return the files of a session; without `cache.json` where nothing is known of the cache.

    Args:
        session: a `model.Session` in JSON.
        cache: what it has cached.
    """
    loaded = _LOADED.decode(session)
    raw: dict[FileName, bytes] = {
        "metadata": bytes(loaded.metadata),
        "conversation": bytes(loaded.conversation),
        "context": bytes(loaded.context),
        "preferences": bytes(loaded.preferences),
    }
    files = {name: pretty(value) for name, value in raw.items()}
    if cache is not None:
        files["cache"] = cache_file(cache)
    return Rendered(files, loaded.position, loaded.versions)


def pretty(value: bytes) -> bytes:
    """Return JSON as people read it, with a line break at its end."""
    return bytes(msgspec.json.format(value, indent=_INDENT)) + b"\n"


def parsed(name: FileName, content: bytes) -> Value:
    """Return what a file says.

    Raises:
        InvalidInput: it is not such JSON; the error says where and why.
    """
    json.check_depth(content)
    try:
        value: Value = _DECODERS[name].decode(content)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"this is no {file_of(name)}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"this is not valid JSON: {error}") from error
    return value


def looks_damaged(content: bytes) -> str:
    """Say why content cannot be what a person saved in an editor; empty where it can."""
    if not content.strip():
        return "it is empty"
    if b"\0" in content:
        return "it holds zero bytes"
    return ""


def fault_of(name: FileName, content: bytes) -> str:
    """Say what keeps content from being such a file; empty for nothing."""
    try:
        parsed(name, content)
    except InvalidInput as error:
        return error.detail
    return ""
