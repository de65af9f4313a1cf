"""One transaction of the journal: what was confirmed, what is dropped for it, what is new."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from sessiond.errors import JournalFull, SessiondError
from sessiond.journal.connection import Connection, insert
from sessiond.journal.identity import NOT_COMPARED, add_identity
from sessiond.journal.index import Index
from sessiond.journal.options import MIB, JournalOptions
from sessiond.journal.record import (
    Row,
    Span,
    decode_operations,
    entry_number,
    identity_and_sequence,
    sealed,
    size_of,
)
from sessiond.sync.position import Position

_DROPPED_AT_ONCE = 512
_DECIDED = (
    "SELECT e.number, session_id, key, length(operations), c.number IS NOT NULL FROM entries e "
    "LEFT JOIN confirmed c USING (number) WHERE number IN (SELECT value FROM json_each(?))"
)
_OLDEST_KEPT = (  # in one row: see `connection.insert`
    "SELECT json_group_array(json_array(number, session_id, key, bytes, at_ms)) FROM "
    "(SELECT e.number, session_id, key, length(operations) AS bytes, c.at_ms FROM confirmed c "
    "JOIN entries e USING (number) ORDER BY number LIMIT ?)"
)
_KEPT = msgspec.json.Decoder(list[tuple[int, str, str, int, int]])

Outcome = Span | SessiondError
"""The sequences of a group, or why it was refused."""


class Draft(Struct, frozen=True):
    """A group that is to be written: `body` is its operations in one piece."""

    session_id: str
    key: str
    count: int
    body: bytes


class Confirmation(Struct, frozen=True):
    """What Redis said of a group: its last operation is at this position; None: refused.

    What was refused is dropped, unless an earlier try of it was confirmed, or it is `forgotten`.
    """

    span: Span
    position: Position | None
    forgotten: bool = False


class Transaction:
    """Writes rows; what the index must follow is told to it once the rows are durable.

    Args:
        connection: is in a transaction while the verbs run.
        index: what is there before.
        options: bounds, and time.
        may_extend: whether the present incarnation may go on; else a new one begins with the
            first group.
    """

    def __init__(
        self, connection: Connection, index: Index, options: JournalOptions, *, may_extend: bool
    ) -> None:
        self._connection = connection
        self._index = index
        self._options = options
        self._now = options.clock()
        self._confirmed: list[int] = []
        self._taken_back: list[int] = []
        self._dropped: list[tuple[int, str, str, int]] = []
        self._added: list[tuple[int, Draft]] = []
        self._by_key: dict[tuple[str, str], Outcome] = {}
        self._may_extend = may_extend
        self._identity = index.identity
        self._sequence = index.last_sequence
        self._pending_bytes = index.pending_bytes
        self._kept_bytes = index.kept_bytes

    def confirm(self, confirmations: list[Confirmation]) -> None:
        """Write down what Redis has, and drop what it refused; the last word about a group counts.

        What is not there is passed over.
        """
        said = self._last_words(confirmations)
        if not said:
            return
        wanted = msgspec.json.encode(list(said)).decode()
        rows, again, dropped = [], [], []
        for number, session_id, key, body_bytes, was_confirmed in self._connection.execute(
            _DECIDED, (wanted,)
        ).fetchall():
            word = said[number]
            if was_confirmed and word.position is None and not word.forgotten:
                continue
            if was_confirmed:
                again.append(number)
            else:
                self._confirmed.append(body_bytes)
                self._pending_bytes -= size_of(body_bytes)
                self._kept_bytes += size_of(body_bytes)
            if word.position is None:
                dropped.append(number)
                self._drop(number, session_id, key, body_bytes)
            else:
                rows.append(sealed("confirmed", number, str(word.position), self._now))
        self._delete("confirmed", again)
        self._delete("entries", dropped)
        insert(self._connection, "confirmed", rows)

    def take_back(self, spans: list[Span]) -> None:
        """Forget that Redis has groups: they wait again. What is not there is passed over."""
        numbers = [number for span in spans if (number := self._index.number_of(span))]
        confirmed = [
            (number, body_bytes)
            for number, _, _, body_bytes, was_confirmed in self._connection.execute(
                _DECIDED, (msgspec.json.encode(numbers).decode(),)
            ).fetchall()
            if was_confirmed
        ]
        self._delete("confirmed", [number for number, _ in confirmed])
        self._taken_back += (body_bytes for _, body_bytes in confirmed)

    def _last_words(self, confirmations: list[Confirmation]) -> dict[int, Confirmation]:
        """Return what is to be written down of each entry, by its number."""
        said: dict[int, Confirmation] = {}
        for done in confirmations:
            number = self._index.number_of(done.span)
            if number is None:
                continue
            was_confirmed = number in said and said[number].position
            if done.position or done.forgotten or not was_confirmed:
                said[number] = done
        return said

    def drop(self) -> None:
        """Drop the oldest of what Redis has, as far as there is too much of it, or it is too old.

        Some at a time, and rather more than one transaction adds.
        """
        if not self._index.kept and not self._confirmed:
            return
        oldest = self._connection.execute(_OLDEST_KEPT, (_DROPPED_AT_ONCE,)).fetchone()[0]
        too_old = self._now - self._options.kept_seconds * 1000
        dropped = []
        for number, session_id, key, body_bytes, at_ms in _KEPT.decode(oldest):
            if self._kept_bytes <= self._options.kept_bytes and at_ms >= too_old:
                break
            self._drop(number, session_id, key, body_bytes)
            dropped.append(number)
        for table in ("confirmed", "entries"):
            self._delete(table, dropped)

    def place(self, drafts: list[Draft]) -> list[Outcome]:
        """Give groups their sequences and write them; a key that is known gets what it had."""
        outcomes = [self._place(draft) for draft in drafts]
        rows = [
            sealed(
                *("entries", number, self._identity.incarnation, draft.session_id, draft.key),
                *(self._now, draft.body),
            )
            for number, draft in self._added
        ]
        insert(self._connection, "entries", rows)
        return outcomes

    def renew(self, reason: str) -> None:
        """Go on as a new incarnation, whose sequences begin at 1."""
        self._identity = add_identity(self._connection, self._options, reason)
        self._sequence, self._may_extend = 0, True

    def follow(self) -> int:
        """Tell the index what is durable now; returns about how many bytes that was."""
        if self._identity is not self._index.identity:
            self._index.renew(self._identity)
        for body_bytes in self._confirmed:
            self._index.confirm(body_bytes)
        for body_bytes in self._taken_back:
            self._index.take_back(body_bytes)
        for dropped in self._dropped:
            self._index.drop(*dropped)
        for number, draft in self._added:
            size = len(draft.body)
            self._index.add(number, draft.session_id, draft.key, draft.count, size)
        return sum(size_of(len(draft.body)) for _, draft in self._added)

    def _drop(self, number: int, session_id: str, key: str, body_bytes: int) -> None:
        self._dropped.append((number, session_id, key, body_bytes))
        self._kept_bytes -= size_of(body_bytes)

    def _delete(self, table: str, numbers: list[int]) -> None:
        if numbers:
            self._connection.execute(
                f"DELETE FROM {table} WHERE number IN (SELECT value FROM json_each(?))",  # noqa: S608
                (msgspec.json.encode(numbers).decode(),),
            )

    def _place(self, draft: Draft) -> Outcome:
        name = (draft.session_id, draft.key)
        known = self._by_key.get(name) or self._span_of_key(draft)
        if known:
            return known
        size = size_of(len(draft.body))
        outcome: Outcome
        if self._pending_bytes + size > self._options.limit_bytes:
            outcome = _full(self._options.limit_bytes)
        else:
            if not self._may_extend:
                self.renew(NOT_COMPARED)
            outcome = Span(self._identity.incarnation, self._sequence + 1, draft.count)
            self._sequence, self._pending_bytes = outcome.last, self._pending_bytes + size
            self._added.append((entry_number(self._identity.number, outcome.first), draft))
        if draft.key:
            self._by_key[name] = outcome
        return outcome

    def _span_of_key(self, draft: Draft) -> Span | None:
        number = self._index.number_of_key(draft.session_id, draft.key)
        if number is None:
            return None
        found: Row | None = self._connection.execute(
            "SELECT incarnation, operations FROM entries "
            "WHERE number = ? AND session_id = ? AND key = ?",
            (number, draft.session_id, draft.key),
        ).fetchone()
        if found is None:
            return None
        return Span(found[0], identity_and_sequence(number)[1], len(decode_operations(found[1])))


def _full(limit_bytes: int) -> JournalFull:
    return JournalFull(
        f"the journal holds {limit_bytes / MIB:.6g} MiB that Redis does not have yet, as much as "
        "it may",
        hint="see why Redis does not take it (sessiond status); once it does, there is room again",
    )
