"""The journal against a model of it: crashes, restarts, older copies, a full disk, and a Redis.

What must hold whatever happens: nothing acknowledged is lost unless an older copy took its place,
and no sequence that Redis ever saw stands for two different things.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Struct, structs

from sessiond.errors import JournalFull, JournalUnavailable
from sessiond.journal import Journal, JournalOptions, Span, Status
from sessiond.journal.opening import CURRENT
from sessiond.sync.position import Position
from tests.journal.support import as_killed, at, entries_of, pending_of
from tests.journal.test_disk_full import FailingConnection

LIMIT = 6_000
SESSIONS = ("ses_1", "ses_2", "ses_3")


class Expected(Struct):
    """An entry that must be there. `confirmed` may be forgotten in a crash."""

    span: Span
    session_id: str
    operations: list[bytes]
    key: str
    confirmed: Position | None = None


class Backup(Struct, frozen=True):
    folder: Path
    expected: list[Expected]
    status: Status


def copy(entries: list[Expected]) -> list[Expected]:
    return [structs.replace(entry) for entry in entries]


class JournalMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="sj-", dir="/tmp"))
        self.runner = asyncio.Runner()
        self.lives = 0
        self.written = 0
        self.expected: list[Expected] = []
        self.backups: list[Backup] = []
        self.redis: dict[tuple[str, int], bytes] = {}

    @initialize()
    def start(self) -> None:
        self.folder = self.root / "j"
        self.open()

    def teardown(self) -> None:
        self.runner.run(self.journal.close())
        self.runner.close()
        shutil.rmtree(self.root)

    def open(self) -> None:
        self.connections: list[FailingConnection] = []

        def connect(path: Path) -> FailingConnection:
            self.connections.append(FailingConnection(path))
            return self.connections[-1]

        options = JournalOptions(limit_bytes=LIMIT, connect=connect)
        self.journal = self.runner.run(Journal.open(self.folder, options))

    @rule(
        session_id=st.sampled_from(SESSIONS),
        sizes=st.lists(st.integers(0, 300), min_size=1, max_size=4),
        key=st.sampled_from(["", "", "a", "b"]),
    )
    def append(self, session_id: str, sizes: list[int], key: str) -> None:
        self.written += 1
        group = [b"%d %d " % (self.written, place) + b"x" * n for place, n in enumerate(sizes)]
        name = (session_id, key)
        known = [entry for entry in self.expected if key and (entry.session_id, entry.key) == name]
        try:
            span = self.runner.run(self.journal.append(session_id, group, key=key))
        except JournalFull:
            waiting = [entry for entry in self.expected if entry.confirmed is None]
            size = sum(256 + sum(map(len, entry.operations)) for entry in waiting)
            assert size > LIMIT - 2_500
            return
        if known:
            assert span == known[-1].span
            return
        self.expected.append(Expected(span, session_id, group, key))

    @rule(session_id=st.sampled_from(SESSIONS))
    def append_on_a_full_disk(self, session_id: str) -> None:
        self.connections[-1].fault = (("INSERT", "COMMIT"), sqlite3.SQLITE_FULL)
        try:
            self.runner.run(self.journal.append(session_id, [b"refused"]))
        except (JournalUnavailable, JournalFull):
            pass
        else:
            raise AssertionError("it cannot have been written")
        finally:
            self.connections[-1].fault = None

    @rule(most=st.integers(1, 20))
    def connect_and_send(self, most: int) -> None:
        """What the daemon does: first ask Redis how far it is, then send, then confirm."""
        status = self.runner.run(self.journal.status())
        known = [last for (writer, last) in self.redis if writer == status.incarnation]
        renewed = self.runner.run(self.journal.seen(status.incarnation, max(known, default=0)))
        assert renewed == (max(known, default=0) > status.last_sequence)
        for entry in self.runner.run(pending_of(self.journal))[:most]:
            for place, operation in enumerate(entry.operations):
                name = (entry.span.incarnation, entry.span.first + place)
                assert self.redis.setdefault(name, operation) == operation, "a sequence used twice"
            self.journal.confirm(entry.span, at(entry.span.last))
            (expected,) = [known for known in self.expected if known.span == entry.span]
            expected.confirmed = at(entry.span.last)

    @rule()
    def restart(self) -> None:
        self.runner.run(self.journal.close())
        self.open()
        assert self.journal.recoveries == []

    @rule()
    def crash(self) -> None:
        self.lives += 1
        killed = as_killed(self.folder, self.root / f"life-{self.lives}")
        self.runner.run(self.journal.close())
        self.folder = killed
        self.open()
        assert self.journal.recoveries == []
        self.forget_unwritten()

    @rule()
    def back_up(self) -> None:
        target = as_killed(self.folder, self.root / f"backup-{len(self.backups)}")
        backup = Backup(target, copy(self.expected), self.runner.run(self.journal.status()))
        self.backups.append(backup)

    @precondition(lambda self: self.backups)
    @rule(data=st.data(), everything=st.booleans())
    def restore(self, data: st.DataObject, everything: bool) -> None:
        self.put_back(data.draw(st.sampled_from(self.backups)), everything=everything)

    @rule(more=st.integers(1, 3), everything=st.booleans(), asks_redis=st.booleans())
    def rewind(self, more: int, everything: bool, asks_redis: bool) -> None:
        """A copy is made, life goes on and reaches Redis, and then the copy is put back."""
        self.back_up()
        for _ in range(more):
            self.append("ses_1", [5], "")
        self.connect_and_send(20)
        self.put_back(self.backups[-1], everything=everything)
        if asks_redis:
            self.connect_and_send(20)

    def put_back(self, backup: Backup, *, everything: bool) -> None:
        """Put an older copy in place: of everything, or without the watermark beside it."""
        before = self.runner.run(self.journal.status())
        self.runner.run(self.journal.close())
        for name in [""] if everything else [CURRENT]:
            shutil.rmtree(self.folder / name)
            shutil.copytree(backup.folder / name, self.folder / name)
        self.expected = copy(backup.expected)
        self.open()
        self.forget_unwritten()
        known = self.runner.run(self.journal.incarnations())
        same = before.incarnation == backup.status.incarnation
        if not everything and (
            before.incarnation not in known
            or (same and before.last_sequence > backup.status.last_sequence)
        ):
            assert self.journal.recoveries, "the watermark tells"

    def forget_unwritten(self) -> None:
        """What was confirmed and not yet written down is pending once more."""
        waiting = {entry.span for entry in self.runner.run(pending_of(self.journal))}
        for entry in self.expected:
            if entry.span in waiting:
                entry.confirmed = None

    @invariant()
    def everything_is_as_expected(self) -> None:
        if not hasattr(self, "journal"):
            return
        found = self.runner.run(entries_of(self.journal))
        assert [(entry.span, entry.session_id, entry.operations) for entry in found] == [
            (entry.span, entry.session_id, entry.operations) for entry in self.expected
        ]
        assert [entry.position for entry in found] == [entry.confirmed for entry in self.expected]
        status = self.runner.run(self.journal.status())
        waiting = [entry for entry in self.expected if entry.confirmed is None]
        assert (status.pending, status.kept) == (
            len(waiting),
            len(self.expected) - len(waiting),
        )


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
