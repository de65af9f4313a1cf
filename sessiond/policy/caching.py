"""What the answer of a tool depends on, and under which key it is cached. Pure.

A key is `<subject>.<call>`: the subject names what the answer depends on (a file, or all files
below a folder), the call the tool and its arguments. So whoever edits a file can tell which
answers are worth nothing any more, from their keys alone. All paths are relative to the project's
folder, which lies elsewhere on each machine.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import msgspec

from sessiond.errors import InvalidInput
from sessiond.model import CacheCall, CacheScope

KEY = re.compile(r"[0-9a-f]{16}\.[0-9a-f]{32}")

_canonical = msgspec.json.Encoder(order="deterministic").encode


def relative_path(path: str) -> str:
    """Return a path below the project's folder in its one form; "." is the folder itself.

    Raises:
        InvalidInput: it is absolute, leads out of the folder, or holds a NUL.
    """
    normal = posixpath.normpath(path)
    if posixpath.isabs(normal) or normal == ".." or normal.startswith("../") or "\0" in normal:
        raise InvalidInput(
            f"{path[:200]!r} is no path below the project's folder",
            hint="name it relative to `root`, without leaving that",
        )
    return normal


def key_of(call: CacheCall) -> str:
    """Return the key of a call: the same for the same tool, arguments and path, however ordered.

    Raises:
        InvalidInput: the path is none below the project's folder.
    """
    path = relative_path(call.path)
    what = _canonical([call.tool, call.arguments, call.scope, path])
    return f"{_subject(call.scope, path)}.{blake2b(what, digest_size=16).hexdigest()}"


def subjects_of_change(paths: Iterable[str]) -> list[str]:
    """Return the subjects of all answers that depend on files which changed, sorted.

    These are the files themselves, and every folder that they lie in.
    """
    subjects = set()
    for given in paths:
        path = relative_path(given)
        subjects |= {_subject("file", path), _subject("tree", path)}
        while path != ".":
            path = posixpath.dirname(path) or "."
            subjects.add(_subject("tree", path))
    return sorted(subjects)


def paths_below(paths: Iterable[Any]) -> list[str]:
    """Return those of some values that are paths below the project's folder, in their one form."""
    found = []
    for path in paths:
        with contextlib.suppress(InvalidInput):
            if isinstance(path, str) and path:
                found.append(relative_path(path.removeprefix("${WORKTREE}/")))
    return found


def _subject(scope: CacheScope, path: str) -> str:
    return blake2b(f"{scope} {path}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def checked_key(key: str) -> str:
    """Return a key, unchanged.

    Raises:
        InvalidInput: it is none.
    """
    if not KEY.fullmatch(key):
        raise InvalidInput(
            f"{key[:80]!r} is no key of the cache", hint="use it as a lookup answered it"
        )
    return key
