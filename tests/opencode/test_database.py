"""opencode's database as sessiond reads it: everything it holds, and never in its way."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sessiond.errors import DatabaseUnreadable
from sessiond.opencode import database as module
from sessiond.opencode.database import STRETCH, Database
from sessiond.opencode.mapping import replayed_id
from sessiond.opencode.protocol import OpencodeEvent
from sessiond.opencode.records import SessionRow
from tests.opencode.simulated import NOW, PROJECT, SimulatedOpencode

QUESTIONS: list[Callable[[Database], object]] = [
    Database.version,
    lambda database: database.sessions(PROJECT),
    lambda database: database.events("ses_1", -1, 9),
    lambda database: database.sequence_of("evt_1"),
    lambda database: database.state("ses_1"),
    lambda database: database.info("ses_1"),
    lambda database: database.last_event("ses_1", ""),
    lambda database: database.last_event("ses_1", "m1"),
    lambda database: database.last_event("ses_1", "m1/p1"),
    lambda database: database.is_complete("ses_1"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "opencode data #1?&%20"
    folder.mkdir()
    return folder / "opencode.db"


@pytest.fixture
def opencode(path: Path) -> Iterator[SimulatedOpencode]:
    opencode = SimulatedOpencode(path)
    yield opencode
    opencode.close()


@pytest.fixture
def database(opencode: SimulatedOpencode) -> Database:
    return opencode.database


def event(name: str, kind: str, **properties: Any) -> OpencodeEvent:
    return OpencodeEvent(id=name, type=kind, properties=properties)


def foreign(offset: int, kind: str, **properties: Any) -> OpencodeEvent:
    return event(replayed_id("0" * 14, offset), kind, **properties)


# The log


def test_events_come_in_their_order_with_all_they_hold(
    opencode: SimulatedOpencode, database: Database
) -> None:
    opencode.create("ses_1")
    opencode.message("ses_1", "m1", text="é\U0001f600\x00\u2028")
    opencode.create("ses_2")
    opencode.part("ses_1", "m1", "p1", "hello")
    found = database.events("ses_1", -1, 100)
    assert [e.seq for e in found] == [0, 1, 2]
    assert [(e.id, e.type) for e in found] == opencode.events("ses_1")
    assert found[1].data["info"]["text"] == "é\U0001f600\x00\u2028"


def test_events_are_those_after_one_place_up_to_another(
    opencode: SimulatedOpencode, database: Database
) -> None:
    opencode.create("ses_1")
    for number in range(5):
        opencode.message("ses_1", f"m{number}")
    assert [e.seq for e in database.events("ses_1", 1, 3)] == [2, 3]
    assert database.events("ses_1", 5, 100) == []
    assert database.events("ses_none", -1, 100) == []


def test_what_sessiond_replayed_is_not_among_the_events(
    opencode: SimulatedOpencode, database: Database
) -> None:
    opencode.create("ses_1")
    info = {"id": "m1", "role": "user", "time": {"created": NOW}}
    assert opencode.replay("ses_1", [foreign(5, "message.updated", info=info)]) == []
    mine = opencode.message("ses_1", "m2")
    assert [e.seq for e in database.events("ses_1", -1, 100)] == [0, 2]
    assert database.sequence_of(mine) == 2
    assert database.sequence_of(replayed_id("0" * 14, 5)) == 1
    assert database.sequence_of("evt_unknown") is None


def test_a_long_log_comes_in_stretches(opencode: SimulatedOpencode, database: Database) -> None:
    opencode.create("ses_1")
    for number in range(STRETCH + 10):
        opencode.message("ses_1", f"m{number}")
    first = database.events("ses_1", -1, 10**6)
    assert len(first) == STRETCH
    assert [e.seq for e in database.events("ses_1", first[-1].seq, 10**6)] == list(
        range(STRETCH, STRETCH + 11)
    )


def test_the_last_writer_of_each_record_is_known(
    opencode: SimulatedOpencode, database: Database
) -> None:
    created = opencode.create("ses_1")
    first = opencode.message("ses_1", "m1")
    part = opencode.part("ses_1", "m1", "p1", "a")
    opencode.message("ses_1", "m2")
    assert database.last_event("ses_1", "") == created
    assert database.last_event("ses_1", "m1") == first
    assert database.last_event("ses_1", "m1/p1") == part
    info = {"id": "m1", "role": "user", "time": {"created": NOW}}
    opencode.replay("ses_1", [foreign(7, "message.updated", info=info)])
    updated = opencode.update("ses_1", title="new")
    assert database.last_event("ses_1", "m1") == replayed_id("0" * 14, 7)
    assert database.last_event("ses_1", "") == updated
    for record in ("m9", "m1/p9", "p1", "m2/p9"):
        assert database.last_event("ses_1", record) is None
    assert database.last_event("ses_2", "") is None


def test_a_log_is_complete_when_it_begins_with_the_creation(
    opencode: SimulatedOpencode, database: Database
) -> None:
    for name in ("ses_1", "ses_2", "ses_3"):
        opencode.create(name)
    opencode.forget_events("ses_2")
    opencode.forget_events("ses_3")
    opencode.message("ses_3", "m1")
    assert database.is_complete("ses_1")
    assert not database.is_complete("ses_2")
    assert not database.is_complete("ses_3")
    assert not database.is_complete("ses_none")


# The records


def test_a_listing_holds_the_sessions_of_one_project(
    opencode: SimulatedOpencode, database: Database
) -> None:
    opencode.create("ses_1", title="One", time={"created": NOW, "updated": NOW + 5})
    opencode.message("ses_1", "m1")
    opencode.create("ses_2")
    opencode.forget_events("ses_2")
    assert database.sessions(PROJECT) == {
        "ses_1": SessionRow("ses_1", PROJECT, "One", NOW + 5, 1),
        "ses_2": SessionRow("ses_2", PROJECT, "A title", NOW, -1),
    }
    assert database.sessions("another") == {}


def test_the_state_is_every_record_in_its_order(
    opencode: SimulatedOpencode, database: Database
) -> None:
    opencode.create("ses_1")
    opencode.message("ses_1", "m2", time={"created": NOW + 1})
    opencode.message("ses_1", "m9", time={"created": NOW})
    opencode.part("ses_1", "m9", "p2", "b")
    opencode.part("ses_1", "m9", "p1", "a")
    opencode.create("ses_2")
    opencode.message("ses_2", "m5")
    state = database.state("ses_1")
    assert state is not None
    assert state.seq == 4
    assert state.info == opencode.info("ses_1")
    assert list(state.messages) == ["m9", "m2"]
    assert state.messages["m9"] == {"role": "user", "time": {"created": NOW}}
    assert state.parts == {
        "m9/p1": {"type": "text", "text": "a"},
        "m9/p2": {"type": "text", "text": "b"},
    }
    assert database.state("ses_none") is None


RICH: dict[str, Any] = {
    "parentID": "ses_0",
    "path": "sub/deep",
    "cost": 0.25,
    "tokens": {"input": 1, "output": 2, "reasoning": 3, "cache": {"read": 4, "write": 5}},
    "summary": {"additions": 1, "deletions": 2, "files": 3, "diffs": [{"file": "a", "patch": ""}]},
    "metadata": {"key": ["é", None]},
    "permission": [{"permission": "task", "pattern": "*", "action": "deny"}],
    "revert": {"messageID": "m1", "snapshot": "627e5a66", "diff": ""},
    "agent": "build",
    "model": {"id": "mock-model", "providerID": "mock", "variant": "default"},
    "time": {"created": NOW, "updated": NOW + 1, "compacting": NOW + 2, "archived": NOW + 3},
}


@pytest.mark.parametrize("name", [*RICH, "everything", "nothing"])
def test_a_session_without_events_is_read_from_its_row_as_its_events_had_it(
    opencode: SimulatedOpencode, database: Database, name: str
) -> None:
    more = RICH if name == "everything" else {name: RICH[name]} if name in RICH else {}
    opencode.create("ses_1", **more)
    told = database.info("ses_1")
    opencode.forget_events("ses_1")
    assert database.info("ses_1") == told == opencode.info("ses_1", **more)
    state = database.state("ses_1")
    assert state is not None
    assert (state.seq, state.info) == (-1, told)


def test_the_record_of_a_session_is_what_its_last_event_said(
    opencode: SimulatedOpencode, database: Database
) -> None:
    opencode.create("ses_1")
    opencode.update("ses_1", title="two", revert={"messageID": "m1"})
    assert database.info("ses_1") == opencode.info("ses_1", title="two", revert={"messageID": "m1"})
    opencode.happen("ses_1", "session.updated", {"info": opencode.info("ses_1", title="three")})
    assert database.info("ses_1") == opencode.info("ses_1", title="three")


def test_a_deleted_session_leaves_nothing(opencode: SimulatedOpencode, database: Database) -> None:
    opencode.create("ses_1")
    opencode.message("ses_1", "m1")
    opencode.delete("ses_1")
    assert database.state("ses_1") is None
    assert database.info("ses_1") is None
    assert database.events("ses_1", -1, 100) == []
    assert database.sessions(PROJECT) == {}


def test_a_session_that_a_replay_deleted_is_gone_although_its_log_stays(
    opencode: SimulatedOpencode, database: Database
) -> None:
    opencode.create("ses_1")
    opencode.replay("ses_1", [foreign(3, "session.deleted", info=opencode.info("ses_1"))])
    assert database.state("ses_1") is None
    assert database.sessions(PROJECT) == {}
    assert len(opencode.events("ses_1")) == 2


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (r"cut \ud83d", "cut \ufffd"),
        (r"\ude00 cut", "\ufffd cut"),
        (r"whole \ud83d\ude00", "whole \U0001f600"),
        (r"both \ud83d\ud83d\ude00\ude00", "both \ufffd\U0001f600\ufffd"),
        (r"written out \\ud83d", r"written out \ud83d"),
        (r"after a backslash \\\ud83d", "after a backslash \\\ufffd"),
    ],
)
def test_half_a_character_is_read_as_a_replacement_and_stops_nothing(
    opencode: SimulatedOpencode, database: Database, stored: str, read: str
) -> None:
    """Where a tool's output was cut within an emoji, JavaScript writes the half that is left."""
    opencode.create("ses_1")
    opencode.message("ses_1", "m1", text="PLACE")
    for table in ("event", "message"):
        opencode.connection.execute(
            f"UPDATE {table} SET data = replace(data, 'PLACE', ?)",  # noqa: S608
            (stored,),
        )
    assert database.events("ses_1", 0, 9)[0].data["info"]["text"] == read
    state = database.state("ses_1")
    assert state is not None
    assert state.messages["m1"]["text"] == read


# Changes


def test_the_version_changes_with_every_commit_and_with_nothing_else(
    opencode: SimulatedOpencode, database: Database
) -> None:
    seen = [database.version()]
    for number in range(3):
        opencode.create(f"ses_{number}")
        seen.append(database.version())
        assert database.version() == seen[-1]
        database.sessions(PROJECT)
        assert database.version() == seen[-1]
    assert len(set(seen)) == 4


def test_what_was_committed_while_the_database_was_closed_changes_the_version_too(
    opencode: SimulatedOpencode, database: Database
) -> None:
    seen = set()
    for number in range(3):
        seen.add(database.version())
        database.close()
        opencode.create(f"ses_{number}")
    seen.add(database.version())
    assert len(seen) == 4


def test_a_database_that_took_the_place_of_another_is_the_one_that_is_read(
    opencode: SimulatedOpencode, database: Database, path: Path, tmp_path: Path
) -> None:
    opencode.create("ses_old")
    before = database.identity(), database.version()
    assert list(database.sessions(PROJECT)) == ["ses_old"]
    other = SimulatedOpencode(tmp_path / "other.db")
    other.create("ses_new")
    other.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    opencode.connection.close()
    for leftover in ("-wal", "-shm"):
        path.with_name(path.name + leftover).unlink(missing_ok=True)
    os.replace(tmp_path / "other.db", path)  # noqa: PTH105
    assert list(database.sessions(PROJECT)) == ["ses_new"]
    assert database.identity() != before[0]
    assert database.version() != before[1]


def test_the_identity_stays_while_the_file_does(
    opencode: SimulatedOpencode, database: Database
) -> None:
    before = database.identity()
    opencode.create("ses_1")
    assert database.identity() == before


# In nobody's way


def test_a_writer_and_a_reader_do_not_hold_each_other_up(
    opencode: SimulatedOpencode, database: Database
) -> None:
    opencode.create("ses_1")
    opencode.connection.execute("BEGIN IMMEDIATE")
    opencode.connection.execute("UPDATE session SET title = 'not yet'")
    assert database.sessions(PROJECT)["ses_1"].title == "A title"
    opencode.connection.execute("COMMIT")
    assert database.sessions(PROJECT)["ses_1"].title == "not yet"


def test_a_state_is_of_one_moment_while_somebody_writes(
    opencode: SimulatedOpencode, database: Database
) -> None:
    opencode.create("ses_1")
    opencode.message("ses_1", "m0")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            opencode.message("ses_1", f"m{number}")
            opencode.part("ses_1", f"m{number}", f"p{number}", "a")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        sizes = set()
        for _ in range(20_000):
            state = database.state("ses_1")
            assert state is not None
            assert len(state.messages) - 1 == (state.seq) // 2
            assert len(state.parts) == (state.seq - 1) // 2
            sizes.add(state.seq)
            if len(sizes) == 50:  # on a busy machine the writer has to wait for its turn
                break
    finally:
        stop.set()
        writer.join()
    assert len(sizes) == 50


def test_reading_changes_no_file_of_opencode(opencode: SimulatedOpencode, path: Path) -> None:
    opencode.create("ses_1")
    opencode.message("ses_1", "m1")

    def contents() -> dict[str, bytes]:
        files = (file for file in path.parent.iterdir() if not file.name.endswith("-shm"))
        return {file.name: file.read_bytes() for file in files}

    before = contents()
    for question in QUESTIONS:
        reader = Database(path)
        question(reader)
        reader.close()
    assert contents() == before


def test_no_statement_can_write(opencode: SimulatedOpencode, path: Path) -> None:
    reader = Database(path)
    with pytest.raises(DatabaseUnreadable), reader._reading() as connection:
        connection.execute("DELETE FROM session")


# What cannot be read


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_missing_file_is_unreadable_and_not_made(
    tmp_path: Path, question: Callable[[Database], object]
) -> None:
    path = tmp_path / "none" / "opencode.db"
    with pytest.raises(DatabaseUnreadable, match=r"opencode\.db"):
        question(Database(path))
    with pytest.raises(DatabaseUnreadable):
        Database(path).identity()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("question", QUESTIONS[1:])
@pytest.mark.parametrize("content", [b"", b"no database at all" * 100, b"SQLite format 3\x00"])
def test_a_file_that_is_no_opencode_database_is_unreadable(
    tmp_path: Path, content: bytes, question: Callable[[Database], object]
) -> None:
    path = tmp_path / "opencode.db"
    path.write_bytes(content)
    with pytest.raises(DatabaseUnreadable):
        question(Database(path))


def test_a_locked_database_is_unreadable_soon_and_read_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.05)
    path = tmp_path / "opencode.db"
    opencode = SimulatedOpencode(path)
    opencode.create("ses_1")
    opencode.connection.execute("PRAGMA journal_mode = DELETE")
    opencode.connection.execute("BEGIN EXCLUSIVE")
    database = Database(path)
    with pytest.raises(DatabaseUnreadable, match="locked"):
        database.sessions(PROJECT)
    opencode.connection.execute("COMMIT")
    assert list(database.sessions(PROJECT)) == ["ses_1"]
    database.close()
    opencode.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE event SET data = '{'",
        "UPDATE event SET data = '[]'",
        "UPDATE event SET data = '5'",
        "UPDATE event SET data = '{\"info\": 5}'",
        "UPDATE event SET data = x'ff'",
        "ALTER TABLE session RENAME COLUMN id TO key",
        "DROP TABLE event",
        "DROP TABLE event_sequence",
    ],
)
def test_a_damaged_database_gives_an_answer_or_says_that_it_is_unreadable(
    opencode: SimulatedOpencode, database: Database, damage: str
) -> None:
    opencode.create("ses_1")
    opencode.connection.execute("PRAGMA foreign_keys = OFF")
    opencode.connection.execute(damage)
    unreadable = 0
    for question in QUESTIONS:
        try:
            question(database)
        except DatabaseUnreadable:
            unreadable += 1
    assert unreadable


@pytest.mark.parametrize("column", ["tokens_input", "summary_files", "time_created", "revert"])
def test_a_session_row_of_another_opencode_is_unreadable_by_name(
    opencode: SimulatedOpencode, database: Database, column: str
) -> None:
    opencode.create("ses_1")
    opencode.forget_events("ses_1")
    opencode.connection.execute(f"ALTER TABLE session RENAME COLUMN {column} TO other")
    with pytest.raises(DatabaseUnreadable, match=column):
        database.info("ses_1")


def test_a_reader_can_close_and_go_on(opencode: SimulatedOpencode, database: Database) -> None:
    opencode.create("ses_1")
    for _ in range(2):
        assert database.info("ses_1")
        database.close()
        database.close()


def test_the_simulation_takes_replays_as_opencode_does(opencode: SimulatedOpencode) -> None:
    """The facts that the tests of sessiond rest on, as they were measured of opencode."""
    lost = event("evt_sd1x1", "message.updated", info={"id": "m", "time": {"created": 1}})
    assert opencode.replay("ses_1", [lost]) == ["evt_sd1x1"]
    put = event("evt_sd1x2", "session.updated", info=opencode.info("ses_1", permission=[1]))
    assert opencode.replay("ses_1", [put, put]) == []
    assert opencode.events("ses_1") == [("evt_sd1x2", "session.created.1")]
    part = {"id": "p", "messageID": "none", "type": "text"}
    orphan = event("evt_sd1x3", "message.part.updated", part=part)
    assert opencode.replay("ses_1", [orphan]) == ["evt_sd1x3"]
    gone = event("evt_sd1x4", "message.removed", messageID="none")
    assert opencode.replay("ses_1", [gone]) == []
    query = "SELECT permission, revert FROM session"
    theirs = opencode.info("ses_1", revert={"messageID": "theirs"})
    opencode.replay("ses_1", [event("evt_sd1x5", "session.updated", info=theirs)])
    row = opencode.connection.execute(query).fetchone()
    assert row == (json.dumps([1]), None)  # absent keys stay, a revert is this machine's own
    opencode.revert("ses_1", "mine")
    opencode.replay("ses_1", [event("evt_sd1x6", "session.updated", info=theirs)])
    opencode.replay("ses_1", [event("evt_sd1x7", "session.updated", info=opencode.info("ses_1"))])
    row = opencode.connection.execute(query).fetchone()
    assert row == (json.dumps([1]), json.dumps({"messageID": "mine"}))
    with pytest.raises(sqlite3.IntegrityError):
        opencode.create("ses_1")
