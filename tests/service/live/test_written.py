"""What was written here follows on a copy as far as that is certain, and is kept within a bound."""

from __future__ import annotations

from sessiond.service.live.written import Written
from sessiond.store.draft import Draft
from sessiond.store.outcome import Committed
from sessiond.sync.entry import Entry
from sessiond.sync.position import START, Position, entry_hash, fold

WRITER = "here.1"


class Log:
    """A log that only this process writes, an operation at a time."""

    def __init__(self, word: str = "w", size: int = 10) -> None:
        self.word = word
        self.body = b'"%s"' % (b"x" * size)
        self.entries: list[Entry] = []
        self.drafts: list[Draft] = []

    def write(self, count: int) -> Log:
        """Write so many operations."""
        for _ in range(count):
            draft = Draft("message.append", self.word, "at", self.body, client="ana")
            offset = len(self.entries) + 1
            origin = f"ana@{WRITER}:{offset}"
            content = entry_hash(draft.op, draft.at, origin, draft.id, draft.json)
            epoch = fold(self.entries[-1].epoch if self.entries else START.epoch, content)
            self.drafts.append(draft)
            self.entries.append(
                Entry(offset, draft.op, draft.at, origin, draft.id, epoch, draft.json)
            )
        return self

    def tell(self, written: Written, session_id: str, first: int, last: int, group: int) -> None:
        """Have operations of this log noted, in groups of so many."""
        for begin in range(first - 1, last, group):
            places = range(begin, min(begin + group, last))
            positions = [self.entries[place].position for place in places]
            committed = Committed(positions, "default", sequence=places[0] + 1)
            written.note(session_id, [self.drafts[place] for place in places], committed)


def test_what_follows_is_given_up_to_the_first_gap() -> None:
    log, written = Log().write(9), Written(WRITER)
    log.tell(written, "s", 3, 5, group=2)
    log.tell(written, "s", 7, 9, group=1)
    at = [START, *(entry.position for entry in log.entries)]
    assert written.after("s", at[2]) == log.entries[2:5]
    assert written.after("s", at[4]) == log.entries[4:5]
    assert written.after("s", at[6]) == log.entries[6:]
    assert written.after("s", at[0]) == []
    assert written.after("t", at[2]) == []


def test_what_belongs_to_another_history_does_not_follow() -> None:
    log, other, written = Log().write(6), Log("other").write(6), Written(WRITER)
    log.tell(written, "s", 1, 4, group=4)
    other.tell(written, "s", 3, 6, group=2)
    assert written.after("s", START) == log.entries[:2]
    assert written.after("s", other.entries[1].position) == other.entries[2:]
    assert written.after("s", Position(log.entries[0].epoch, 3)) == []


def test_what_was_written_before_is_not_taken_again() -> None:
    log, written = Log().write(1), Written(WRITER)
    committed = Committed([log.entries[0].position], "default", duplicate=True, sequence=7)
    written.note("s", log.drafts, committed)
    assert written.sessions == []


def test_what_was_copied_is_forgotten() -> None:
    log, written = Log().write(6), Written(WRITER)
    log.tell(written, "s", 1, 6, group=2)
    written.forget("s", 3)
    written.forget("t", 3)
    assert written.after("s", log.entries[3].position) == log.entries[4:]
    assert (written.after("s", START), written.sessions) == ([], ["s"])
    written.forget("s", 6)
    assert written.sessions == []


def test_no_more_is_kept_than_may_be_and_what_was_begun_first_goes_first() -> None:
    log, written = Log(size=1_000).write(10), Written(WRITER, limit_bytes=20_000)
    log.tell(written, "first", 1, 5, group=1)
    log.tell(written, "second", 1, 7, group=1)
    assert written.sessions == ["first", "second"]
    log.tell(written, "second", 8, 10, group=1)
    assert written.sessions == ["second"]
    assert written.after("second", START) == log.entries
    Log(size=30_000).write(1).tell(written, "third", 1, 1, group=1)
    assert written.sessions == []
    log.tell(written, "fourth", 1, 10, group=1)
    assert written.after("fourth", START) == log.entries, "what is gone takes no room"
