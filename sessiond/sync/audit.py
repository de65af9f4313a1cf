"""Comparing what Redis holds of a session with what its log says that it must hold. Pure.

Each difference is a `Fault` of one of the session's keys. What has no witness cannot be proven:
the digests of idempotency keys, and the sides that a conflict keeps, are checked for their form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from sessiond.errors import StoreDamaged
from sessiond.model import DocumentName
from sessiond.sync.chain import broken_link, has_shape
from sessiond.sync.derived import Derived, ids_of, same_json
from sessiond.sync.entry import Entry

Severity = Literal["damaged", "warning"]

_MOST_FAULTS = 20
"""Of one key; more of them are counted only."""
FORGETTING = 1024
"""With fewer lines the list of writers and keys has not forgotten any; see store/lua/commit.lua."""
_WRITER = re.compile(rb"(\d{1,15}) (\d{1,15})")
_KEY = re.compile(rb"\S{0,64} (\d{1,15})")
_MARK = re.compile(rb"\d{1,15}")
_INDEX_LINE = re.compile(rb"\d{1,15}(?: \d{1,15}(?: removed)?)?")
_PRESENCE_LINE = re.compile(rb"\d{1,15} \d{1,15} \d{1,15} (\{.*\})", re.DOTALL)
_EPOCH = re.compile(rb"[0-9a-f]{14}")
_ARCHIVED = re.compile(rb"archived")
_REQUIRED = (b"status", b"epoch", b"version", b"workspace", b"session_id", b"created_at")
_CONFLICT_FIELDS = ("document", "id", "strategy", "outcome")


class Fault(Struct, frozen=True):
    """What is wrong with a key of a session. `kind`: as in the table of keys."""

    kind: str
    finding: str
    severity: Severity = "damaged"


class LogAudit:
    """Follows a log: is it whole, and what does it make of the session?

    `ids` is what the entries were about, and who wrote them; a caller may begin it anew.
    """

    def __init__(self) -> None:
        self.derived = Derived()
        self.faults: list[Fault] = []
        self.last = self.derived.offset
        """The offset of the last entry that was taken."""
        self.ids: set[str] = set()
        self.deletion: Entry | None = None
        """The tombstone that is left of the log of a deleted session."""
        self._before: str | None = self.derived.epoch

    def take(self, raw: Any) -> None:
        """Take the next stream entry, as Redis sent it."""
        stream_id = raw[0].decode("ascii", "replace")
        entry = entry_of(raw)
        if entry is None:
            self._note(f"entry {stream_id} is not one of sessiond's")
            self._before = None
            return
        if self.last == 0 and entry.op == "session.delete":
            self._before = None  # what it follows is gone
        elif entry.offset != self.last + 1:
            self._note(f"entries {self.last + 1} to {entry.offset - 1} are missing")
            self._before = None
        if broken_link([raw], self._before):
            self._note(
                f"entry {entry.offset} ({entry.op} {entry.id!r}), or its epoch, is not what was "
                "written there"
            )
        self._before, self.last = entry.epoch, entry.offset
        self.ids.update(ids_of(entry))
        if entry.op == "session.delete":
            self.deletion = entry
            return
        if self.faults:
            return
        try:
            self.derived.apply(entry)
        except StoreDamaged as error:
            self._note(f"entry {entry.offset}: {error.detail}")

    def _note(self, finding: str) -> None:
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(Fault("conversation", finding))


def entry_of(raw: Any) -> Entry | None:
    """Return a stream entry, as Redis sent it, as one of the log; None where it is none."""
    if not has_shape(raw):
        return None
    stream_id, fields = raw
    _, op, _, at, _, origin, _, record_id, _, epoch, _, json = fields
    try:
        return Entry(
            int(stream_id[:-2]),
            op.decode(),
            at.decode(),
            origin.decode(),
            record_id.decode(),
            epoch.decode(),
            json,
        )
    except UnicodeDecodeError:
        return None


def document_faults(
    name: DocumentName, held: Mapping[bytes, bytes], derived: Derived
) -> Iterator[Fault]:
    """Yield how a document's hash differs from its log."""

    def is_same(field: bytes, one: bytes, other: bytes) -> bool:
        if name == "metadata" or field == b"_version":
            return one == other
        return same_json(one, other)

    yield from _capped(name, _differences("field", held, derived.hash_of(name), is_same))


def index_faults(
    kind: str, held: Mapping[bytes, bytes], derived: Derived, later: set[str]
) -> Iterator[Fault]:
    """Yield how an index differs from its log, but for what was written `later`."""
    excepted = {name.encode() for name in later}
    wanted = {k: v for k, v in derived.index_of(kind).items() if k not in excepted}
    found = {k: v for k, v in held.items() if k not in excepted}
    yield from _capped(kind, _differences("line", found, wanted, _is_equal))


def applied_faults(
    held: Mapping[bytes, bytes], derived: Derived, later: set[str], end: int
) -> Iterator[Fault]:
    """Yield what is wrong with the list of writers and keys; `end`: the log's, by now."""
    yield from _capped("applied", _wrong_applied(held, derived, later, end))
    if len(held) < FORGETTING:
        missing = (
            derived.writers.keys() - later - {name.decode("utf-8", "replace") for name in held}
        )
        for writer in sorted(missing):
            yield Fault("applied", f"writer {writer!r} is missing")


def _wrong_applied(
    held: Mapping[bytes, bytes], derived: Derived, later: set[str], end: int
) -> Iterator[str]:
    for field, value in held.items():
        name = field.decode("utf-8", "replace")
        wrong = f"line {name!r} is {_shown(value)}"
        if name.startswith("key:"):
            match = _KEY.fullmatch(value)
            if not match or not 0 < int(match[1]) <= end:
                yield f"{wrong}, not a digest and an offset of the log"
        elif name.startswith("outbox:"):
            if not _MARK.fullmatch(value):
                yield f"{wrong}, not a number"
        elif name not in later and value != b"%d %d" % derived.writers.get(name, (0, 0)):
            yield f"{wrong}; the log says {derived.writers.get(name, 'nothing of it')}"


def conflict_faults(raw: Iterable[Any], derived: Derived, end: int) -> Iterator[Fault]:
    """Yield what is wrong with the stream of conflicts; those behind `derived` are left out."""
    yield from _capped("conflicts", _wrong_conflicts(raw, derived, end))


def _wrong_conflicts(raw: Iterable[Any], derived: Derived, end: int) -> Iterator[str]:
    for stream_id, flat in raw:
        name = stream_id.decode("ascii", "replace")
        number = int(name.partition("-")[0])
        if derived.offset < number <= end:
            continue
        if not is_conflict(flat):
            yield f"entry {name} is not one of sessiond's"
        elif number not in derived.conflicts:
            yield f"entry {name} has no operation in the log"
        elif not _agrees(flat, derived.conflicts[number]):
            yield f"entry {name} is not what the log says of it"


def is_conflict(flat: list[bytes] | None) -> bool:
    """Tell whether these are the fields of a conflict, or of what was decided about one."""
    if flat is None or len(flat) % 2:
        return False
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    if fields.get(b"what") not in (b"conflict", b"resolution") or b"at" not in fields:
        return False
    return isinstance(_decoded(fields.get(b"json", b"")), dict)


def _agrees(flat: list[bytes], body: bytes) -> bool:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    logged, kept = _decoded(body), _decoded(fields[b"json"])
    if fields[b"what"] == b"resolution":
        return bool(fields.get(b"take") == str(logged.get("take")).encode())
    return all(
        fields.get(name.encode()) == str(logged.get(name)).encode()
        and str(kept.get(name)) == str(logged.get(name))
        for name in _CONFLICT_FIELDS
    )


def form_faults(kind: str, held: Mapping[bytes, bytes]) -> Iterator[Fault]:
    """Yield which lines of a hash cannot be sessiond's, whatever the log says."""
    check: Callable[[bytes], object] = _is_presence if kind == "presence" else _INDEX_LINE.fullmatch
    wrong = (
        f"line {field.decode('utf-8', 'replace')!r} is {_shown(value)}"
        for field, value in held.items()
        if not check(value)
    )
    yield from _capped(kind, wrong)


def _is_presence(value: bytes) -> bool:
    match = _PRESENCE_LINE.fullmatch(value)
    return match is not None and isinstance(_decoded(match[1]), dict)


def metadata_faults(held: Mapping[bytes, bytes]) -> Iterator[Fault]:
    """Yield which fields the metadata of a session lack."""
    missing = [name.decode() for name in _REQUIRED if not held.get(name)]
    if missing:
        yield Fault("metadata", f"lacks {', '.join(missing)}")


def stub_faults(held: Mapping[bytes, bytes]) -> Iterator[Fault]:
    """Yield what is wrong with what is left of an archived session: its log is elsewhere."""
    forms = ((b"status", _ARCHIVED), (b"epoch", _EPOCH), (b"version", _MARK))
    for name, form in forms:
        if not form.fullmatch(held.get(name, b"")):
            shown = _shown(held.get(name, b""))
            yield Fault("metadata", f"{name.decode()} is {shown}; the session is archived")


def tombstone_faults(held: Mapping[bytes, bytes], audit: LogAudit) -> Iterator[Fault]:
    """Yield what is wrong with what is left of a deleted session."""
    deletion = audit.deletion
    if deletion is None:
        yield Fault("conversation", "the session is deleted, and its log does not say so")
        return
    told = (held.get(b"epoch", b""), held.get(b"version", b""))
    if told != (deletion.epoch.encode(), b"%d" % deletion.offset):
        yield Fault("metadata", "its position is not that of the deletion in the log")


def _is_equal(_field: bytes, one: bytes, other: bytes) -> bool:
    return one == other


def _differences(
    what: str, held: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes], is_same: Any
) -> Iterator[str]:
    for name in sorted(held.keys() | wanted.keys()):
        shown = name.decode("utf-8", "replace")
        if name not in held:
            yield f"{what} {shown!r} is missing; the log says {_shown(wanted[name])}"
        elif name not in wanted:
            yield f"{what} {shown!r} is {_shown(held[name])}; the log has nothing of it"
        elif not is_same(name, held[name], wanted[name]):
            yield f"{what} {shown!r} is {_shown(held[name])}; the log says {_shown(wanted[name])}"


def _capped(kind: str, findings: Iterable[str]) -> Iterator[Fault]:
    more = 0
    for count, finding in enumerate(findings):
        if count < _MOST_FAULTS:
            yield Fault(kind, finding)
        else:
            more += 1
    if more:
        yield Fault(kind, f"and {more} more of its lines are wrong")


def _shown(value: bytes) -> str:
    text = value.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 60 else f"{text[:60]}…")  # noqa: PLR2004 - characters


def _decoded(value: bytes) -> Any:
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
