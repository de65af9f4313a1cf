"""What this side knows of a session's files: written beside them, with a checksum of its own.

A file whose content is not what was written, though nobody touched it since (size, inode and time
of change are as they were), is damaged. One that was touched is a person's edit.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec
from msgspec import Struct, structs

from sessiond.files.layout import FileName

STATE_FILE = ".state.json"
FORMAT = 1

_DIGEST_BYTES = 16


class Stamp(Struct, frozen=True):
    """What changes of a file when somebody writes it; times in ns since 1970."""

    size: int
    mtime_ns: int
    inode: int


class FileState(Struct, frozen=True, kw_only=True):
    """One file as it was written last.

    Attributes:
        digest: of its content; empty where the file is gone.
        stamp: of the file itself; None where it is gone.
        before: the digest of what was there before; the backup has it. Empty for nothing.
    """

    digest: str = ""
    stamp: Stamp | None = None
    before: str = ""


class FolderState(Struct, frozen=True, kw_only=True):
    """A session's folder: which position of the log its files stand for.

    `versions`: of the documents, for changes that are based on what the files say.
    """

    session_id: str
    position: str = ""
    versions: dict[str, str] = {}
    files: dict[FileName, FileState] = {}
    format: int = FORMAT


class _Sealed(Struct):
    """The file: a state, and the digest of its JSON."""

    checksum: str
    state: msgspec.Raw


_SEALED = msgspec.json.Decoder(_Sealed)
_STATE = msgspec.json.Decoder(FolderState)


def digest(content: bytes) -> str:
    """Return what tells a content from others: 16 bytes of BLAKE2b."""
    return blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def encode_state(state: FolderState) -> bytes:
    """Return a state as its file has it."""
    encoded = msgspec.json.encode(state)
    return msgspec.json.encode(_Sealed(digest(encoded), msgspec.Raw(encoded))) + b"\n"


def decode_state(content: bytes) -> FolderState | None:
    """Return the state in a file; None when that is damaged, or of another release."""
    try:
        sealed = _SEALED.decode(content)
        if digest(bytes(sealed.state)) != sealed.checksum:
            return None
        state = _STATE.decode(sealed.state)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return state if state.format == FORMAT and encode_state(state) == content else None


def with_file(state: FolderState, name: FileName, file: FileState) -> FolderState:
    """Return a state that knows something else of one file."""
    return structs.replace(state, files={**state.files, name: file})


def without_file(state: FolderState, name: FileName) -> FolderState:
    """Return a state that knows that a file is gone, and still what its backup has."""
    known = state.files.get(name)
    return with_file(state, name, FileState(before=known.before if known else ""))
