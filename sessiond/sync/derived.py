"""What Redis must hold of a session beside its log, folded from that log. Pure.

The commit script writes all of it together with the entries (`store/lua/`), so the log alone says
what the hashes hold: that is how damage of them is found, and how they are made anew.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Raw, Struct, field

from sessiond.errors import StoreDamaged
from sessiond.model import DOCUMENTS, DocumentName
from sessiond.sync.entry import Entry
from sessiond.sync.position import NO_EPOCH, Position

_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_ANY = msgspec.json.Decoder()
_TEXT = msgspec.json.Decoder(str)


class _Changed(Struct):
    set: dict[str, Raw] = {}
    unset: list[str] = []


_CHANGE = msgspec.json.Decoder(_Changed)


class Place(Struct, frozen=True):
    """Where a message or a part was first written and last changed: a line of an index."""

    first: int
    last: int
    removed: bool = False

    @property
    def value(self) -> bytes:
        """As the index holds it."""
        if self.removed:
            return b"%d %d removed" % (self.first, self.last)
        return b"%d" % self.first if self.first == self.last else b"%d %d" % (self.first, self.last)


class Derived(Struct):
    """A session as its log makes it, at a position.

    Attributes:
        documents: field → what its hash holds: of metadata plain text, of the others JSON.
        versions: position of each document's last change.
        messages, parts: the indexes, by message id and by `<message id>/<part id>`.
        writers: writer → its last sequence, and that one's offset.
        conflicts: offset → the body of what recorded or resolved a conflict there.
    """

    epoch: str = NO_EPOCH
    offset: int = 0
    status: str = ""
    last_activity: str = ""
    total_messages: int = 0
    amendments: int = 0
    documents: dict[DocumentName, dict[str, bytes]] = field(default_factory=dict)
    versions: dict[DocumentName, str] = field(default_factory=dict)
    messages: dict[str, Place] = field(default_factory=dict)
    parts: dict[str, Place] = field(default_factory=dict)
    writers: dict[str, tuple[int, int]] = field(default_factory=dict)
    conflicts: dict[int, bytes] = field(default_factory=dict)

    @property
    def position(self) -> Position:
        """The place of the last operation that was applied."""
        return Position(self.epoch, self.offset)

    @property
    def workspace(self) -> str:
        """The workspace that the session's creation named."""
        return self.documents["metadata"]["workspace"].decode()

    def apply(self, entry: Entry) -> None:
        """Take the next operation; where that fails, nothing of it was taken.

        Raises:
            StoreDamaged: its body is not that of such an operation, or it is about something that
                is not there.
        """
        try:
            _ANY.decode(entry.json)
            self._take(entry)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise StoreDamaged(f"the body of {entry.op} is damaged: {error}") from error
        except KeyError as error:
            raise StoreDamaged(f"{entry.op} is about {error}, which is not there") from error
        self.epoch, self.offset = entry.epoch, entry.offset
        self.last_activity = max(self.last_activity, entry.at)
        writer, sequence = written_by(entry.origin)
        if sequence:
            self.writers[writer] = (sequence, entry.offset)

    def hash_of(self, name: DocumentName) -> dict[bytes, bytes]:
        """Return what the hash of a document holds."""
        fields = {field.encode(): value for field, value in self.documents[name].items()}
        fields[b"_version"] = self.versions[name].encode()
        if name == "metadata":
            fields |= {
                b"epoch": self.epoch.encode(),
                b"version": b"%d" % self.offset,
                b"last_activity": self.last_activity.encode(),
                b"total_messages": b"%d" % self.total_messages,
                b"amendments": b"%d" % self.amendments,
            }
        return fields

    def index_of(self, kind: str) -> dict[bytes, bytes]:
        """Return what the index `messages` or `parts` holds."""
        places = self.messages if kind == "messages" else self.parts
        return {name.encode(): place.value for name, place in places.items()}

    def _take(self, entry: Entry) -> None:
        if (self.status == "active") == (entry.op == "session.create"):
            raise ValueError("the session was created before" if self.status else "no creation")
        match entry.op:
            case "session.create":
                self._create(entry)
            case "document.change":
                self._change(entry)
            case "message.append":
                if entry.id in self.messages:
                    raise ValueError(f"message {entry.id!r} was written before")
                self.messages[entry.id] = Place(entry.offset, entry.offset)
                self.total_messages += 1
            case "message.edit" | "message.remove":
                self._amend(self.messages, entry, is_new=False)
                self.total_messages -= entry.op == "message.remove"
            case "part.put" | "part.remove":
                if self.messages[entry.id.partition("/")[0]].removed:
                    raise KeyError(entry.id)
                self._amend(self.parts, entry, is_new=entry.id not in self.parts)
            case "conflict.record" | "conflict.resolve":
                self.conflicts[entry.offset] = entry.json
            case _:
                raise ValueError("there is no such operation")

    def _create(self, entry: Entry) -> None:
        given = _FIELDS.decode(entry.json)
        context, preferences = (
            given.pop("context", Raw(b"{}")),
            given.pop("preferences", Raw(b"{}")),
        )
        fixed = {"created_at": entry.at, "last_activity": entry.at, "status": "active"}
        texts = {name: _TEXT.decode(value) for name, value in given.items()}
        self.documents = {
            "metadata": {name: text.encode() for name, text in {**fixed, **texts}.items()},
            "context": _raw_fields(context),
            "preferences": _raw_fields(preferences),
        }
        _ = self.workspace
        self.status = "active"
        self.versions = dict.fromkeys(DOCUMENTS, str(entry.position))

    def _change(self, entry: Entry) -> None:
        name = msgspec.convert(entry.id, DocumentName)
        change = _CHANGE.decode(entry.json)
        written = {field: bytes(value) for field, value in change.set.items()}
        if name == "metadata":
            written = {field: _plain(value) for field, value in written.items()}
        document = self.documents[name] | written
        for gone in change.unset:
            document.pop(gone, None)
        self.documents[name] = document
        self.versions[name] = str(entry.position)

    def _amend(self, places: dict[str, Place], entry: Entry, *, is_new: bool) -> None:
        first = entry.offset if is_new else places[entry.id].first
        if not is_new and places[entry.id].removed:
            raise KeyError(entry.id)
        removed = entry.op.endswith(".remove")
        places[entry.id] = Place(first, entry.offset, removed)
        self.amendments += 1


def written_by(origin: str) -> tuple[str, int]:
    """Return the writer and the sequence that an origin names: `<client>@<writer>:<sequence>`."""
    by, _, sequence = origin.rpartition(":")
    return by.rpartition("@")[2], int(sequence) if sequence.isdecimal() else 0


def same_json(one: bytes, other: bytes) -> bool:
    """Tell whether two texts are the same JSON, whatever the order of fields."""
    return one == other or _canonical(one) == _canonical(other) is not None


def _canonical(text: bytes) -> bytes | None:
    try:
        return msgspec.json.encode(_ANY.decode(text), order="deterministic")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _raw_fields(value: Raw) -> dict[str, bytes]:
    return {name: bytes(raw) for name, raw in _FIELDS.decode(value).items()}


def _plain(value: bytes) -> bytes:
    """Return a JSON value as metadata holds it: without its quotes."""
    return str(_ANY.decode(value)).encode()


def ids_of(entry: Entry) -> Iterator[str]:
    """Yield what an operation names that an index or a hash has a line for."""
    yield entry.id
    yield written_by(entry.origin)[0]
