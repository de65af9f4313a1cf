"""What is to be written into a session's log: operations, and what makes each of them safe."""

from __future__ import annotations

from msgspec import Struct


class FieldChange(Struct, frozen=True):
    """One field of a document hash; None unsets it."""

    document: str
    field: str
    value: str | bytes | None


class IdempotencyKey(Struct, frozen=True):
    """What makes an operation without an id of its own idempotent, and a digest of its content."""

    name: str
    digest: str


class Mark(Struct, frozen=True):
    """How far a source of operations is written: kept with them, so that both are or neither.

    `before` is what the writer believes to be there, None for nothing: when Redis says another,
    something is missing, or was written by somebody else, and the group is refused.
    """

    name: str
    before: int | None
    now: int


class Draft(Struct, frozen=True):
    """An operation that is to be written; the committer adds sequence and origin.

    `expected` is the version a change is based on, `client` who asked for it if not the writer.
    """

    op: str
    id: str
    at: str
    json: bytes
    expected: str = ""
    key: IdempotencyKey | None = None
    mark: Mark | None = None
    client: str = ""
    changes: tuple[FieldChange, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of JSON and of fields, about."""
        if not self.changes:
            return len(self.json)
        return len(self.json) + sum(len(change.value or "") for change in self.changes)


def origin_of(draft: Draft, writer: str, sequence: int) -> str:
    """Return what the log says of who wrote an operation."""
    by = f"{draft.client}@" if draft.client else ""
    return f"{by}{writer}:{sequence}"


def options_of(draft: Draft) -> list[str | bytes]:
    """Return the options of an operation, three values each: see lua/commit.lua."""
    options: list[str | bytes] = []
    if draft.expected:
        options += ("expected", draft.expected, "")
    if draft.key:
        options += ("key", draft.key.name, draft.key.digest)
    if draft.mark:
        before = "-" if draft.mark.before is None else draft.mark.before
        options += ("mark", draft.mark.name, f"{before} {draft.mark.now}")
    for change in draft.changes:
        if change.value is None:
            options += (f"-{change.document}", change.field, "")
        else:
            options += (change.document, change.field, change.value)
    return options
