"""What is known of the journal's rows without asking SQLite: numbers, keys, counts."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

from sessiond.journal.record import (
    Identity,
    Span,
    entry_number,
    identity_and_sequence,
    key_digest,
    size_of,
)


class Index:
    """Follows the rows. Changed only after the transaction that changed them is durable.

    It costs about 8 bytes an entry, and 150 for each that has an idempotency key.
    """

    def __init__(self, identities: list[Identity]) -> None:
        self.identities = identities
        self.last_sequence = 0
        self.pending = self.pending_bytes = 0
        self.kept = self.kept_bytes = 0
        self._numbers: dict[str, array[int]] = {}
        self._keys: dict[int, int] = {}

    @property
    def identity(self) -> Identity:
        """Who writes now."""
        return self.identities[-1]

    def add(self, number: int, session_id: str, key: str, count: int, body_bytes: int) -> None:
        """Follow a new entry, which waits for Redis. Numbers only ever grow."""
        self._numbers.setdefault(session_id, array("q")).append(number)
        if key:
            self._keys[key_digest(session_id, key)] = number
        identity, first = identity_and_sequence(number)
        if identity == self.identity.number:
            self.last_sequence = first + count - 1
        self.pending += 1
        self.pending_bytes += size_of(body_bytes)

    def confirm(self, body_bytes: int) -> None:
        """An entry is known to be in Redis."""
        size = size_of(body_bytes)
        self.pending, self.kept = self.pending - 1, self.kept + 1
        self.pending_bytes, self.kept_bytes = self.pending_bytes - size, self.kept_bytes + size

    def take_back(self, body_bytes: int) -> None:
        """An entry is known not to be in Redis any more: it waits again."""
        size = size_of(body_bytes)
        self.pending, self.kept = self.pending + 1, self.kept - 1
        self.pending_bytes, self.kept_bytes = self.pending_bytes + size, self.kept_bytes - size

    def drop(self, number: int, session_id: str, key: str, body_bytes: int) -> None:
        """A confirmed entry is not kept any longer."""
        numbers = self._numbers[session_id]
        del numbers[bisect_left(numbers, number)]
        if not numbers:
            del self._numbers[session_id]
        digest = key_digest(session_id, key) if key else 0
        if self._keys.get(digest) == number:
            del self._keys[digest]
        self.kept, self.kept_bytes = self.kept - 1, self.kept_bytes - size_of(body_bytes)

    def renew(self, identity: Identity) -> None:
        """Another incarnation writes from now on."""
        self.identities.append(identity)
        self.last_sequence = 0

    def sessions(self) -> set[str]:
        """Return the sessions that have entries."""
        return set(self._numbers)

    def number_of_key(self, session_id: str, key: str) -> int | None:
        """Return the number of the entry that probably came with this key."""
        return self._keys.get(key_digest(session_id, key)) if key else None

    def number_of(self, span: Span) -> int | None:
        """Return the number of an entry; None for an incarnation that this journal never had."""
        return self.number_at(span.incarnation, span.first)

    def number_at(self, incarnation: str, sequence: int) -> int | None:
        """Return the number that stands for a sequence of an incarnation."""
        for identity in reversed(self.identities):
            if identity.incarnation == incarnation:
                return entry_number(identity.number, sequence)
        return None

    def after(self, session_id: str, number: int, most: int) -> list[int]:
        """Return the numbers of a session's next entries."""
        numbers = self._numbers.get(session_id, array("q"))
        start = bisect_right(numbers, number)
        return numbers[start : start + most].tolist()
