"""The specification's session files: which there are, and what their JSON says. Pure."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import Raw, Struct

from sessiond.codec import json
from sessiond.errors import InvalidInput
from sessiond.model import Cache, Context, Metadata, NewMessage, Preferences

FileName = Literal["metadata", "conversation", "context", "preferences", "cache"]
FILES: tuple[FileName, ...] = get_args(FileName)
"""The names of a session's files, without `.json`."""

_INDENT = 2


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
    """A session as its files: their bytes, the position they stand for, the documents' versions."""

    files: dict[FileName, bytes]
    position: str
    versions: dict[str, str]


def file_of(name: FileName) -> str:
    """Return the name of a file in a session's folder."""
    return f"{name}.json"


def rendered(session: bytes) -> Rendered:
    """Return the files of a session; `session` is a `model.Session` in JSON."""
    loaded = _LOADED.decode(session)
    raw: dict[FileName, bytes] = {
        "metadata": bytes(loaded.metadata),
        "conversation": bytes(loaded.conversation),
        "context": bytes(loaded.context),
        "preferences": bytes(loaded.preferences),
        "cache": json.encode(Cache()),
    }
    files = {name: pretty(value) for name, value in raw.items()}
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
