"""A list in the place of Redis: the contract of `commit.lua` for one session, without a server.

Offsets follow one another, epochs are folded, what a writer sent twice is written once, a group is
written whole or not at all, and a change that expects a version is refused at any other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, Self, TypeAlias

from sessiond.store.scripts import SNAPSHOT
from sessiond.sync.position import NO_EPOCH, entry_hash, fold

SESSION = "ses_1"
AT = "2026-01-13T10:30:00.000Z"
_OPTIONS = 6
"""Where an operation's options begin, behind op, id, at, hash, json and origin."""


class Plant(NamedTuple):
    """Bugs to be put in, so that a test can prove that it would find them."""

    skip_compare: bool = False
    skip_dedupe: bool = False
    hide_conflicts: bool = False


class Sent(NamedTuple):
    """One operation of a call; options as `commit.lua` describes them."""

    op: str
    id: str
    at: str
    hash: bytes
    json: bytes
    origin: str
    options: list[tuple[Any, Any, Any]]

    def option(self, name: str) -> Any:
        return next((value for key, value, _ in self.options if key == name), None)


class Record(NamedTuple):
    """Where a message or part was written first and last."""

    first: int
    last: int
    removed: bool = False

    @property
    def stored(self) -> bytes:
        return b"%d %d%b" % (self.first, self.last, b" removed" if self.removed else b"")


Refused: TypeAlias = tuple[str, str]


class ListedRedis:
    """What the stores ask a Redis for, of one session that it holds in lists.

    Args:
        documents: the session's documents at the beginning, each field as its hash holds it.
        creation: the JSON of the operation that created it.
    """

    def __init__(
        self, documents: dict[str, dict[str, bytes]], creation: bytes, plant: Plant
    ) -> None:
        self.plant = plant
        self.log: list[tuple[bytes, list[bytes]]] = []
        self.documents = documents
        self.records: dict[str, Record] = {}
        self.conflicts: list[tuple[bytes, list[bytes]]] = []
        self._applied: dict[str, tuple[int, int]] = {}
        self._keys: dict[str, bytes] = {}
        self._epoch = NO_EPOCH
        self.begin("session.create", SESSION, creation)
        for fields in documents.values():
            fields["_version"] = self.position

    @property
    def position(self) -> bytes:
        return f"{self._epoch}:{len(self.log)}".encode()

    def begin(self, op: str, name: str, body: bytes) -> None:
        """Write an operation that was there before anybody came."""
        origin = f"beginning:{len(self.log) + 1}"
        self.add(Sent(op, name, AT, entry_hash(op, AT, origin, name, body), body, origin, []))

    def add(self, sent: Sent) -> None:
        """Write an operation."""
        self._epoch = fold(self._epoch, sent.hash)
        offset = len(self.log) + 1
        words = sent.op, sent.at, sent.origin, sent.id, self._epoch
        op, at, origin, name, epoch = (word.encode() for word in words)
        names = (b"op", b"at", b"origin", b"id", b"epoch", b"json")
        pairs = zip(names, (op, at, origin, name, epoch, sent.json), strict=True)
        self.log.append((b"%d-0" % offset, [word for pair in pairs for word in pair]))
        if sent.op.startswith(("message.", "part.")):
            first = self.records[sent.id].first if sent.id in self.records else offset
            self.records[sent.id] = Record(first, offset, sent.op.endswith(".remove"))
        for key, field, value in sent.options:
            if key in self.documents:
                self.documents[key][field] = _bytes(value)
            elif key.removeprefix("-") in self.documents:
                self.documents[key[1:]].pop(field, None)
            elif key == "key":
                self._keys[field] = f"{value} {offset}".encode()
        if sent.op == "document.change":
            self.documents[sent.id]["_version"] = self.position
        if sent.op == "conflict.record" and not self.plant.hide_conflicts:
            told = [_bytes(w) for key, *pair in sent.options if key == "conflict" for w in pair]
            self.conflicts.append((b"%d-0" % offset, told))

    def taken_copy(self) -> dict[str, Any]:
        """Return all it holds."""
        return copy.deepcopy(vars(self))

    def roll_back(self, taken: dict[str, Any]) -> None:
        """Hold what a copy held: what was written since is lost."""
        vars(self).update(copy.deepcopy(taken))

    # The commit script

    def commit(self, arguments: tuple[Any, ...]) -> list[Any]:
        """Take a call (`EVALSHA …`) as `commit.lua` does and return its reply."""
        _, _, keys, *rest = arguments
        words = iter(rest[keys + 3 :])
        writer, sequence, _, groups = next(words), next(words), next(words), next(words)
        reply: list[Any] = [b"default"]
        for _ in range(groups):
            group = [_sent(words) for _ in range(next(words))]
            reply += self._group(writer, sequence, group)
            sequence += len(group)
        return reply

    def _group(self, writer: str, sequence: int, group: list[Sent]) -> list[Any]:
        watermark = 0 if self.plant.skip_dedupe else self._applied.get(writer, (0, 0))[0]
        if sequence <= watermark and (known := self._written(group)):
            return [b"duplicate", known[0], *(self._epoch_at(offset) for offset in known)]
        for sent in group:
            if refused := self._refusal(sent):
                return [b"error", *(word.encode() for word in refused)]
        if sequence <= watermark:
            return [b"error", b"superseded", group[0].origin.encode()]
        first = len(self.log) + 1
        for sent in group:
            self.add(sent)
        self._applied[writer] = sequence + len(group) - 1, len(self.log)
        offsets = range(first, len(self.log) + 1)
        return [b"ok", first, *(self._epoch_at(offset) for offset in offsets)]

    def _written(self, group: list[Sent]) -> list[int]:
        origins = {fields[5]: index for index, (_, fields) in enumerate(self.log, start=1)}
        places = [origins.get(sent.origin.encode(), 0) for sent in group]
        return places if all(places) else []

    def _epoch_at(self, offset: int) -> bytes:
        return self.log[offset - 1][1][9]

    def _refusal(self, sent: Sent) -> Refused | None:
        if sent.option("key") in self._keys:
            return "key-used", sent.option("key")
        expected = None if self.plant.skip_compare else sent.option("expected")
        if sent.op == "document.change":
            return _mismatch(expected, self.documents[sent.id]["_version"].decode())
        if sent.op in ("message.append", "conflict.record"):
            return None
        message, record = self.records.get(sent.id.partition("/")[0]), self.records.get(sent.id)
        if message is None or message.removed or (record and record.removed):
            return "not-found", sent.id
        if record is None:
            return _mismatch(expected, "0")
        return _mismatch(expected, f"{self._epoch_at(record.last).decode()}:{record.last}")

    # What the stores send

    async def execute_command(self, command: str, *arguments: Any) -> Any:
        if command == "EVALSHA":
            assert arguments[0] == SNAPSHOT.digest
            return [[*_flat(fields)] for fields in (self._metadata(), *self._others())]
        key, first, last, _, limit = arguments
        if key.endswith(":blocks"):
            return []  # nothing is compressed
        log = self.conflicts if key.endswith(":conflicts") else self.log
        if command == "XREVRANGE":
            return [entry for entry in log[::-1] if _offset(entry[0]) <= _offset(first)][:limit]
        return [entry for entry in log if _is_within(entry[0], first, last)][:limit]

    async def hmget(self, key: str, names: list[str]) -> list[bytes | None]:
        if key.endswith(":metadata"):
            metadata = self._metadata()
            return [metadata.get(name) for name in names]
        return [self.records[name].stored if name in self.records else None for name in names]

    async def hget(self, key: str, name: str) -> bytes | None:
        if key.endswith(":applied"):
            return self._keys.get(name)
        return (await self.hmget(key, [name]))[0]

    async def zadd(self, _key: str, _members: dict[str, int]) -> None:
        """Indexes are of no interest here."""

    def _metadata(self) -> dict[str, bytes]:
        epoch, _, version = self.position.partition(b":")
        counts = {"epoch": epoch, "version": version, "total_messages": b"0", "amendments": b"0"}
        return self.documents["metadata"] | counts

    def _others(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        return self.documents["context"], self.documents["preferences"]


class Pipeline:
    """Commands that leave together."""

    def __init__(self, execute: Callable[..., Any]) -> None:
        self._execute = execute
        self._commands: list[tuple[Any, ...]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._commands.clear()

    def execute_command(self, command: str, *arguments: Any) -> None:
        limit = () if "COUNT" in arguments else ("COUNT", None)
        self._commands.append((command, *arguments, *limit))

    async def execute(self) -> list[Any]:
        return [await self._execute(*command) for command in self._commands]


def _sent(words: Any) -> Sent:
    op, name, at, content, body, origin, count = (next(words) for _ in range(_OPTIONS + 1))
    options = [(next(words), next(words), next(words)) for _ in range(count)]
    return Sent(op, name, at, content, body, origin, options)


def _mismatch(expected: str | None, current: str) -> Refused | None:
    if expected is None or expected in (current, current.partition(":")[2]):
        return None
    return "version-mismatch", current


def _offset(stream_id: bytes | str) -> int:
    text = stream_id.decode() if isinstance(stream_id, bytes) else stream_id
    return int(text.strip("(").partition("-")[0])


def _is_within(stream_id: bytes, first: str, last: str) -> bool:
    offset = _offset(stream_id)
    begins = first == "-" or offset >= _offset(first) + first.startswith("(")
    return begins and (last == "+" or offset <= _offset(last))


def _flat(fields: dict[str, bytes]) -> list[bytes]:
    return [word for name, value in fields.items() for word in (name.encode(), value)]


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
