"""The disk is full: what is acknowledged is durable, and it goes on without a restart."""

from __future__ import annotations

import itertools
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sessiond.errors import JournalFull, JournalUnavailable, SessiondError
from sessiond.journal import Journal, JournalOptions, Span
from sessiond.journal.connection import Connection, Cursor, connect
from sessiond.journal.record import Row
from tests.journal.support import as_killed, at, entries_of, of_session, pending_of

KIB = b"x" * 1024


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond this: SQLite is told EFBIG, as of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def refused_in_the_end(journal: Journal, spans: list[Span]) -> SessiondError:
    """Append until it is refused."""
    for _ in range(1_000):
        try:
            spans.append(await journal.append("ses_1", [KIB]))
        except SessiondError as error:
            return error
    raise AssertionError("it was never refused")


async def test_a_full_disk_refuses_and_room_on_it_is_enough_to_go_on(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    spans: list[Span] = []
    with files_at_most(200 * 1024):
        refusal = await refused_in_the_end(journal, spans)
        assert isinstance(refusal, JournalUnavailable)
        assert refusal.temporary
        assert refusal.hint
        with pytest.raises(JournalUnavailable):
            await journal.append("ses_1", [KIB * 4])
        copy = as_killed(tmp_path / "j", tmp_path / "killed")
    assert len(spans) > 10
    spans.append(await journal.append("ses_1", [KIB]))
    assert [entry.span for entry in await entries_of(journal)] == spans
    assert [span.first for span in spans] == list(range(1, len(spans) + 1))
    await journal.close()
    killed = await Journal.open(copy)
    assert killed.recoveries == []
    assert [entry.span for entry in await entries_of(killed)] == spans[:-1]
    await killed.close()


async def test_a_full_disk_keeps_nobody_from_opening_and_reading(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    spans = [await journal.append("ses_1", [KIB]) for _ in range(300)]
    copy = as_killed(tmp_path / "j", tmp_path / "killed")
    await journal.close()
    with files_at_most(64 * 1024):
        killed = await Journal.open(copy)
        assert [entry.span for entry in await entries_of(killed)] == spans
        with pytest.raises(JournalUnavailable):
            await killed.append("ses_1", [KIB])
    await killed.append("ses_1", [KIB])
    await killed.close()


class FailingConnection:
    """A connection whose commits or writes fail as long as `fault` is set."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        self.fault: tuple[str | tuple[str, ...], int] | None = None

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, parameters: Row = (), /) -> Cursor:
        if self.fault and sql.startswith(self.fault[0]):
            error = sqlite3.OperationalError("planted")
            error.sqlite_errorcode = self.fault[1]
            raise error
        return self._connection.execute(sql, parameters)

    def close(self) -> None:
        self._connection.close()


@pytest.mark.parametrize(
    ("statement", "clock_step_ms"),
    [("BEGIN", 2_000), ("INSERT", 2_000), ("COMMIT", 2_000), ("INSERT", 0)],
)
@pytest.mark.parametrize(
    "code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR_FSYNC]
)
async def test_whatever_fails_is_refused_and_undone(
    tmp_path: Path, statement: str, clock_step_ms: int, code: int
) -> None:
    """Where time passes, old entries are looked for in the same transaction."""
    opened: list[FailingConnection] = []

    def failing(path: Path) -> Connection:
        opened.append(FailingConnection(path))
        return opened[-1]

    clock = itertools.count(1_000_000, clock_step_ms).__next__
    journal = await Journal.open(tmp_path / "j", JournalOptions(connect=failing, clock=clock))
    first = await journal.append("ses_1", [b"1"])
    journal.confirm(first, at(1))
    opened[-1].fault = (statement, code)
    with pytest.raises(JournalUnavailable):
        await journal.append("ses_1", [b"2"], key="k")
    opened[-1].fault = None
    again = await journal.append("ses_1", [b"2"], key="k")
    assert (first.first, again.first) == (1, 2)
    assert [entry.position for entry in await entries_of(journal)] == [at(1), None]
    assert journal.recoveries == []
    await journal.close()


async def test_what_redis_confirmed_while_the_disk_is_full_is_known_of_a_session(
    tmp_path: Path,
) -> None:
    """So it is missed if Redis loses it again."""
    opened: list[FailingConnection] = []

    def failing(path: Path) -> Connection:
        opened.append(FailingConnection(path))
        return opened[-1]

    journal = await Journal.open(tmp_path / "j", JournalOptions(connect=failing))
    spans = [await journal.append("ses_1", [b"x"]) for _ in range(2)]
    opened[-1].fault = ("BEGIN", sqlite3.SQLITE_FULL)
    journal.confirm(spans[0], at(1))
    assert [entry.position for entry in await of_session(journal, "ses_1")] == [at(1), None]
    opened[-1].fault = None
    assert [entry.span for entry in await pending_of(journal)] == spans[1:]
    await journal.close()


async def test_a_full_journal_refuses_until_redis_took_something(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j", JournalOptions(limit_bytes=10 * 1024))
    spans: list[Span] = []
    refusal = await refused_in_the_end(journal, spans)
    assert isinstance(refusal, JournalFull)
    assert refusal.hint
    assert len(spans) == 7
    small = await journal.append("ses_1", [b"x"])
    journal.confirm(spans[0], at(1))
    spans.append(await journal.append("ses_1", [KIB]))
    assert [entry.span for entry in await pending_of(journal)] == [*spans[1:7], small, spans[7]]
    await journal.close()
