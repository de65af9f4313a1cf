"""The state of files on this machine: what a tool's answer is compared with before it is given.

What counts is content: machines have the same project with other times. A digest is remembered with
the signature of its file (device, inode, size, mtime, ctime), so that looking again costs one
`fstat`. As in git's index, a signature is not trusted where the file changed less than 2 s before
its content was read, by the same clock: a further change may have left it as it is.

What depends on history instead is compared by the commit that is checked out.

Nothing outside of the project's folder is read, and no symbolic link is followed below it. What
this cannot see: a change through a writable mapping that was never flushed, and one of the user's
own ignore file of git outside of the project.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import blake2b
from threading import Lock

from msgspec import Struct

from sessiond.model import CacheCall, CacheScope
from sessiond.policy.caching import relative_path

SETTLED_NS = 2_000_000_000
"""A file that changed less than this before it is looked at may change without a trace."""

LARGEST_FILE = 8 * 1024 * 1024
MOST_FILES = 20_000
MOST_READ = 64 * 1024 * 1024
"""Bytes that one look at a folder may read, of files that are not known yet."""

_REMEMBERED = 65_536
_DEEPEST = 64
_TRIES = 3
_THREADS = 4
_CHUNK = 1024 * 1024
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_IGNORE_FILES = (".gitignore", ".ignore", ".rgignore")
_GIT = ".git"
_BRANCH = "ref: "
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

Signature = tuple[int, int, int, int, int, int]


class Unknown(Exception):
    """The state of a file or folder cannot be told now; the message says why."""


class Fingerprint(Struct, frozen=True):
    """The state of a file, or of all files below a folder, at one moment.

    Attributes:
        digest: of names and contents: the same on every machine with the same files.
        stamp: of this very state on this machine: any change since makes another one. Empty where
            something changed less than 2 s ago.
    """

    digest: str
    stamp: str


class _Item(Struct, frozen=True):
    """A file, link or folder below a folder. `names`: on the way from there."""

    names: tuple[str, ...]
    signature: Signature


class Fingerprints:
    """Digests of files, remembered as long as the files do not change. It may be used by threads.

    Args:
        clock_ns: nanoseconds since 1970, by the clock that the times of files come from.
        remembered: digests at most.
    """

    def __init__(
        self, clock_ns: Callable[[], int] = time.time_ns, remembered: int = _REMEMBERED
    ) -> None:
        self._clock_ns = clock_ns
        self._most = remembered
        self._digests: OrderedDict[Signature, bytes] = OrderedDict()
        self._lock = Lock()

    def of(self, root: str, path: str, scope: CacheScope) -> Fingerprint:
        """Return the state of what an answer depends on. Blocks: it reads files.

        Args:
            root: the project's folder, absolute.
            path: below it.
            scope: whether the file there counts, all files below that folder, or the commit that
                is checked out.

        Raises:
            Unknown: it is not there, not readable, reached by a link, no regular file, too large,
                or it changes while it is looked at.
            InvalidInput: the path leads out of the project's folder.
        """
        names = [name for name in relative_path(path).split("/") if name != "."]
        if scope == "revision":
            return self._revision(root)
        try:
            with _opened(root, names, _FOLDER if scope == "tree" else 0) as descriptor:
                if scope == "tree":
                    return self._tree(root, names, descriptor)
                return self._file(descriptor)
        except (OSError, ValueError) as error:
            raise Unknown(getattr(error, "strerror", None) or str(error)) from error

    def _file(self, descriptor: int) -> Fingerprint:
        began = self._clock_ns()
        digest, signature = self._content(descriptor)
        return _fingerprint([digest], [signature], began)

    def _tree(self, root: str, names: list[str], folder: int) -> Fingerprint:
        """Look at all files twice: a moment lies between at which all of them were as seen."""
        for _ in range(_TRIES):
            began = self._clock_ns()
            rules = self._ignore_rules(root, names)
            items = _listing(folder)
            contents = self._contents(folder, items)
            if _listing(folder) == items and self._ignore_rules(root, names) == rules:
                digests = [digest for digest, _ in rules]
                for item, content in zip(items, contents, strict=True):
                    digests += [os.fsencode("/".join(item.names)), content]
                signatures = [signature for _, signature in rules if signature]
                return _fingerprint(digests, signatures + [item.signature for item in items], began)
        raise Unknown("it changes while it is looked at")

    def _revision(self, root: str) -> Fingerprint:
        """Find the commit that is checked out, as git does: HEAD names it, or a branch."""
        for _ in range(_TRIES):
            began = self._clock_ns()
            commit, *signatures = head = _git_file(root, "HEAD")
            if commit.startswith(_BRANCH):
                commit, signature = _branch(root, commit.removeprefix(_BRANCH))
                signatures.append(signature)
            if not _COMMIT.fullmatch(commit):
                raise Unknown("no commit is checked out")
            if _git_file(root, "HEAD") == head:
                return _fingerprint([commit.encode()], signatures, began)
        raise Unknown("it changes while it is looked at")

    def _contents(self, folder: int, items: list[_Item]) -> list[bytes]:
        found = []
        allowed = MOST_READ
        for item in items:
            mode = item.signature[5]
            if stat.S_ISDIR(mode):
                found.append(b"folder")
                continue
            if stat.S_ISLNK(mode):
                found.append(_link(folder, item.names))
                continue
            known = self._known(item.signature)
            if known is None:
                allowed -= item.signature[2]
                if allowed < 0:
                    raise Unknown(f"there are more than {MOST_READ:,} bytes below it to look at")
                known = self._read(folder, item)
            found.append(known)
        return found

    def _read(self, folder: int, item: _Item) -> bytes:
        with _opened(folder, list(item.names)) as descriptor:
            digest, signature = self._content(descriptor)
        if signature != item.signature:
            raise Unknown("it changes while it is looked at")
        return digest

    def _ignore_rules(self, root: str, names: list[str]) -> list[tuple[bytes, Signature | None]]:
        """Return what the folders above say that a search below is to ignore."""
        found: list[tuple[bytes, Signature | None]] = []
        above = [names[:depth] for depth in range(len(names))]
        places = [[*folder, name] for folder in above for name in _IGNORE_FILES]
        for place in [*places, [_GIT, "info", "exclude"]]:
            try:
                with _opened(root, place) as descriptor:
                    found.append(self._content(descriptor))
            except (FileNotFoundError, NotADirectoryError):
                found.append((b"", None))
        return found

    def _content(self, descriptor: int) -> tuple[bytes, Signature]:
        """Return the digest of an open file, and the signature that it had all the time."""
        for _ in range(_TRIES):
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Unknown("it is no regular file")
            if status.st_size > LARGEST_FILE:
                raise Unknown(f"it has more than {LARGEST_FILE:,} bytes")
            signature = _signature(status)
            known = self._known(signature)
            if known is not None:
                return known, signature
            began = self._clock_ns()
            digest = _digest(descriptor)
            if _signature(os.fstat(descriptor)) == signature:
                if _is_settled(signature, began):
                    self._remember(signature, digest)
                return digest, signature
        raise Unknown("it changes while it is looked at")

    def _known(self, signature: Signature) -> bytes | None:
        with self._lock:
            digest = self._digests.get(signature)
            if digest is not None:
                self._digests.move_to_end(signature)
            return digest

    def _remember(self, signature: Signature, digest: bytes) -> None:
        with self._lock:
            self._digests[signature] = digest
            while len(self._digests) > self._most:
                self._digests.popitem(last=False)


class Watcher:
    """Looks at files in threads of its own: a file system that hangs holds up nobody else.

    Args:
        fingerprints: the state of files on this machine.
    """

    def __init__(self, fingerprints: Fingerprints) -> None:
        self._fingerprints = fingerprints
        self._threads = ThreadPoolExecutor(_THREADS, "fingerprints")

    async def look(self, root: str, calls: Sequence[CacheCall]) -> list[Fingerprint | Unknown]:
        """Return the state of what the answers to calls depend on, or why it cannot be told.

        Raises:
            InvalidInput: a path leads out of the project's folder.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._look, root, calls)

    def close(self) -> None:
        """Look at nothing more; what hangs is left behind."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _look(self, root: str, calls: Sequence[CacheCall]) -> list[Fingerprint | Unknown]:
        found: list[Fingerprint | Unknown] = []
        for call in calls:
            try:
                found.append(self._fingerprints.of(root, call.path, call.scope))
            except Unknown as error:
                found.append(error)
        return found


@contextmanager
def _opened(folder: str | int, names: list[str], flags: int = 0) -> Iterator[int]:
    """Open what lies below a folder, name by name, through no link; close it again."""
    descriptor = os.dup(folder) if isinstance(folder, int) else os.open(folder, _FOLDER)
    try:
        for depth, name in enumerate(names, start=1):
            wanted = _FLAGS | (flags if depth == len(names) else _FOLDER)
            inner = os.open(name, wanted, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _branch(root: str, name: str) -> tuple[str, Signature]:
    """Return the commit of a branch; it has a file of its own, or a line among the packed ones."""
    names = name.split("/")
    if not {"", ".", ".."}.isdisjoint(names):
        raise Unknown("HEAD names no branch")
    with suppress(Unknown):
        return _git_file(root, *names)
    packed, signature = _git_file(root, "packed-refs")
    commits = (line.partition(" ") for line in packed.splitlines())
    return next((commit for commit, _, other in commits if other == name), ""), signature


def _git_file(root: str, *names: str) -> tuple[str, Signature]:
    """Return what a file of the project's repository says, and its signature."""
    try:
        with _opened(root, [_GIT, *names]) as descriptor:
            before = _signature(os.fstat(descriptor))
            content = os.read(descriptor, LARGEST_FILE)
            if not stat.S_ISREG(before[5]) or _signature(os.fstat(descriptor)) != before:
                raise Unknown("it changes while it is looked at")
            return content.decode("utf-8", "surrogateescape").strip(), before
    except OSError as error:
        raise Unknown(f"{_GIT}/{'/'.join(names)} is not there, or is elsewhere") from error


def _listing(folder: int) -> list[_Item]:
    """Return all that lies below an open folder, but for git's own, in one order everywhere."""
    found: list[_Item] = []
    _list(folder, (), found)
    return sorted(found, key=lambda item: item.names)


def _list(folder: int, above: tuple[str, ...], found: list[_Item]) -> None:
    if len(above) > _DEEPEST:
        raise Unknown(f"there are more than {_DEEPEST} folders in one another")
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            is_folder = stat.S_ISDIR(status.st_mode)
            if entry.name == _GIT and is_folder:
                continue
            names = (*above, entry.name)
            found.append(_Item(names, _signature(status)))
            if len(found) > MOST_FILES:
                raise Unknown(f"there are more than {MOST_FILES:,} files below it")
            if is_folder:
                with _opened(folder, [entry.name], _FOLDER) as inner:
                    _list(inner, names, found)


def _link(folder: int, names: tuple[str, ...]) -> bytes:
    """Return what a link says; searches do not follow it."""
    with _opened(folder, list(names[:-1]), _FOLDER) as inner:
        return b"link " + os.fsencode(os.readlink(names[-1], dir_fd=inner))


def _digest(descriptor: int) -> bytes:
    hashed = blake2b(digest_size=16)
    offset = 0
    while chunk := os.pread(descriptor, _CHUNK, offset):
        hashed.update(chunk)
        offset += len(chunk)
    return hashed.digest()


def _fingerprint(digests: list[bytes], signatures: list[Signature], began_ns: int) -> Fingerprint:
    digest = _joined(digests)
    if not all(_is_settled(signature, began_ns) for signature in signatures):
        return Fingerprint(digest, "")
    state = [repr(signature).encode() for signature in signatures]
    return Fingerprint(digest, f"{digest}.{_joined(state)}")


def _joined(parts: list[bytes]) -> str:
    hashed = blake2b(digest_size=16)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big") + part)
    return hashed.hexdigest()


def _signature(status: os.stat_result) -> Signature:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_mode,
    )


def _is_settled(signature: Signature, looked_ns: int) -> bool:
    return max(signature[3], signature[4]) < looked_ns - SETTLED_NS
