"""Comparing states: what is missing makes a database what the log says, and nothing more."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond.opencode.difference import Difference, LoggedState, difference
from sessiond.opencode.mapping import FIELD, Machine, local_part, local_session
from tests.opencode.simulated import NOW, PROJECT, SimulatedOpencode

MACHINE = Machine(PROJECT, "/home/dev/proj")
EPOCH = "0" * 14
MESSAGES = ("m1", "m2", "m3")
PARTS = ("p1", "p2")

Operation = tuple[str, str, Any]


def created(**more: Any) -> Operation:
    return "session.create", "ses_1", {"context": {FIELD: info(**more)}}


def info(**more: Any) -> dict[str, Any]:
    """A session's record as the log holds it."""
    opencode = SimulatedOpencode(worktree="${WORKTREE}")
    record = opencode.info("ses_1", **more)
    opencode.close()
    del record["projectID"]
    return record


def message(name: str, text: str, op: str = "message.append") -> Operation:
    record = {"role": "user", "text": text, "time": {"created": NOW}}
    return op, name, {"metadata": {FIELD: record}}


def part(name: str, text: str) -> Operation:
    body = {"id": name.partition("/")[2], "type": "text", "text": text}
    return "part.put", name, body


def logged(*operations: Operation) -> LoggedState:
    state = LoggedState()
    for offset, (op, record_id, body) in enumerate(operations, start=1):
        state.take(op, record_id, body, (EPOCH, offset, NOW))
    return state


def compare(opencode: SimulatedOpencode, log: LoggedState, now: int = NOW) -> Difference:
    return difference("ses_1", log, opencode.database.state("ses_1"), MACHINE, now)


def bring(opencode: SimulatedOpencode, log: LoggedState, now: int = NOW) -> Difference:
    """Have a database take what it misses; nothing of it may be refused."""
    found = compare(opencode, log, now)
    assert opencode.replay("ses_1", found.missing) == []
    return found


def kinds(found: Difference) -> list[str]:
    return [event.type for event in found.missing]


# Logs and databases by chance. A log is what Redis lets happen: nothing follows its own removal.


@st.composite
def logs(draw: st.DrawFn) -> list[Operation]:
    operations = [created(title=draw(st.sampled_from(["A title", "Another"])))]
    alive: set[str] = set()
    gone: set[str] = set()
    for number in range(draw(st.integers(0, 14))):
        name = draw(st.sampled_from(MESSAGES))
        inner = f"{name}/{name}{draw(st.sampled_from(PARTS))}"
        text = f"{number} ${{WORKTREE}}/a"
        match draw(st.integers(0, 9)):
            case 0 | 1 | 2 if name not in gone:
                verb = "message.edit" if name in alive else "message.append"
                operations.append(message(name, text, verb))
                alive.add(name)
            case 3 | 4 | 5 if name in alive and inner not in gone:
                operations.append(part(inner, text))
            case 6 if name in alive:
                operations.append(("message.remove", name, {}))
                alive.discard(name)
                gone.add(name)
            case 7 if name in alive and inner not in gone:
                operations.append(("part.remove", inner, {}))
                gone.add(inner)
            case 8:
                body = {"set": {"title": text}, "unset": []}
                operations.append(("document.change", "metadata", body))
            case 9:
                body = {"set": {FIELD: info(title=text, agent="build")}, "unset": []}
                operations.append(("document.change", "context", body))
    return operations


@st.composite
def databases(draw: st.DrawFn) -> SimulatedOpencode:
    opencode = SimulatedOpencode()
    if draw(st.booleans()):
        opencode.create("ses_1", title=draw(st.sampled_from(["A title", "Another"])))
        for name in draw(st.sets(st.sampled_from([*MESSAGES, "mine"]))):
            opencode.message("ses_1", name, text=draw(st.sampled_from(["", "/home/dev/proj/a"])))
            for inner in draw(st.sets(st.sampled_from([*PARTS, "mine"]))):
                opencode.part("ses_1", name, f"{name}{inner}", "x")
    return opencode


@given(logs(), databases())
def test_what_is_missing_makes_any_database_what_the_log_says(
    operations: list[Operation], opencode: SimulatedOpencode
) -> None:
    log = logged(*operations)
    mine = opencode.records("ses_1")
    found = bring(opencode, log)
    records = opencode.records("ses_1")
    expected = {
        name: MACHINE.local({k: v for k, v in (written.change.body or {}).items() if k != "id"})
        for name, written in log.records.items()
    }
    unknown = {**found.unknown_messages, **found.unknown_parts}
    assert records == {**unknown, **expected}
    assert unknown == {
        name: record for name, record in mine.items() if name not in log.records and name in records
    }
    change = log.session_change()
    assert change is not None
    assert change.body is not None
    assert opencode.database.info("ses_1") == local_session(change.body, MACHINE, NOW)
    opencode.close()


@given(logs(), databases())
def test_when_all_was_taken_nothing_is_missing_any_more(
    operations: list[Operation], opencode: SimulatedOpencode
) -> None:
    log = logged(*operations)
    bring(opencode, log)
    assert compare(opencode, log, NOW + 60_000).missing == []
    opencode.close()


@given(logs())
def test_what_is_taken_twice_is_taken_once(operations: list[Operation]) -> None:
    opencode, log = SimulatedOpencode(), logged(*operations)
    found = bring(opencode, log)
    before = opencode.events("ses_1")
    opencode.replay("ses_1", found.missing)
    assert opencode.events("ses_1") == before
    opencode.close()


# One by one


@pytest.fixture
def opencode() -> SimulatedOpencode:
    return SimulatedOpencode()


def test_a_session_that_is_not_here_comes_whole_and_in_order(opencode: SimulatedOpencode) -> None:
    log = logged(
        created(),
        message("m2", "b"),
        message("m1", "a"),
        part("m2/p2", "b2"),
        part("m2/p1", "b1"),
    )
    found = bring(opencode, log)
    assert kinds(found) == [
        *("session.updated", "message.updated", "message.updated"),
        *("message.part.updated", "message.part.updated"),
    ]
    assert len({event.id for event in found.missing}) == 5
    assert (found.unknown_messages, found.unknown_parts) == ({}, {})


def test_only_what_differs_is_missing(opencode: SimulatedOpencode) -> None:
    log = logged(created(), message("m1", "a"), message("m2", "b"), part("m1/p1", "x"))
    bring(opencode, log)
    opencode.message("ses_1", "m2", text="changed here")
    found = compare(opencode, log)
    assert [event.properties["info"]["id"] for event in found.missing] == ["m2"]


def test_what_was_removed_goes_and_is_not_unknown(opencode: SimulatedOpencode) -> None:
    bring(opencode, logged(created(), message("m1", "a"), part("m1/p1", "x"), part("m1/p2", "y")))
    log = logged(
        created(),
        message("m1", "a"),
        *(part("m1/p1", "x"), part("m1/p2", "y"), ("part.remove", "m1/p1", {})),
    )
    found = bring(opencode, log)
    assert kinds(found) == ["message.part.removed"]
    log.take("message.remove", "m1", {}, (EPOCH, 9, NOW))
    found = compare(opencode, log)
    assert kinds(found) == ["message.removed"]
    assert (found.unknown_messages, found.unknown_parts) == ({}, {})
    bring(opencode, log)
    assert opencode.records("ses_1") == {}


def test_what_was_removed_before_it_ever_came_is_not_spoken_of(
    opencode: SimulatedOpencode,
) -> None:
    bring(opencode, logged(created()))
    log = logged(created(), message("m1", "a"), ("message.remove", "m1", {}))
    assert compare(opencode, log).missing == []


def test_what_only_this_database_has_is_unknown_to_the_log(opencode: SimulatedOpencode) -> None:
    log = logged(created(), message("m1", "a"))
    bring(opencode, log)
    opencode.message("ses_1", "mine", text="/home/dev/proj")
    opencode.part("ses_1", "mine", "p1", "x")
    opencode.part("ses_1", "m1", "p2", "y")
    found = compare(opencode, log)
    assert found.missing == []
    assert list(found.unknown_messages) == ["mine"]
    assert sorted(found.unknown_parts) == ["m1/p2", "mine/p1"]


def test_a_title_given_through_the_metadata_is_the_sessions_title(
    opencode: SimulatedOpencode,
) -> None:
    def renamed(title: str) -> Operation:
        return "document.change", "metadata", {"set": {"title": title}, "unset": []}

    def told(title: str) -> Operation:
        return "document.change", "context", {"set": {FIELD: info(title=title)}, "unset": []}

    for operations, title in (
        ([created(title="one"), renamed("two")], "two"),
        ([created(title="one"), renamed("two"), told("three")], "three"),
        ([created(title="one"), told("two"), renamed("three"), message("m1", "a")], "three"),
    ):
        bring(opencode, logged(*operations))
        local = opencode.database.info("ses_1")
        assert local is not None
        assert local["title"] == title


def test_changes_of_other_documents_and_fields_mean_nothing(opencode: SimulatedOpencode) -> None:
    log = logged(
        created(),
        ("document.change", "preferences", {"set": {"title": "no"}, "unset": []}),
        ("document.change", "metadata", {"set": {"status": "archived"}, "unset": []}),
        ("document.change", "metadata", {"set": {}, "unset": ["title"]}),
        ("document.change", "context", {"set": {"state": {}}, "unset": []}),
    )
    bring(opencode, log)
    assert opencode.database.info("ses_1") == opencode.info("ses_1")


@pytest.mark.parametrize("body", [None, 5, "text", [], {}, {"set": None}, {"set": [1]}])
def test_an_odd_change_of_the_metadata_means_nothing(body: Any) -> None:
    log = logged(created(title="one"), ("document.change", "metadata", body))
    assert log.title == "one"


def test_what_came_from_no_opencode_stays_out(opencode: SimulatedOpencode) -> None:
    """Messages that a program wrote through the API, and parts of them."""
    log = logged(
        created(),
        ("message.append", "m1", {"metadata": {}, "content": "hi"}),
        part("m1/p1", "a part of it"),
        message("m2", "a"),
        part("m2/p1", "b"),
    )
    found = bring(opencode, log)
    assert sorted(opencode.records("ses_1")) == ["m2", "m2/p1"]
    assert compare(opencode, log).missing == []
    assert (found.unknown_messages, found.unknown_parts) == ({}, {})


def test_a_session_of_no_opencode_is_no_session_here() -> None:
    log = logged(("session.create", "ses_1", {"context": {}}))
    assert log.session_change() is None


def test_a_deletion_is_known_and_so_is_what_was_before() -> None:
    log = logged(created(), message("m1", "a"), ("session.delete", "ses_1", {}))
    assert log.deleted


# Clocks

SKEWED = Machine(PROJECT, "/home/dev/proj", clock_ahead_ms=5000)


def test_an_offset_that_was_measured_a_little_differently_makes_no_difference(
    opencode: SimulatedOpencode,
) -> None:
    log = logged(created(), message("m1", "a"), part("m1/p1", "x"))
    found = difference("ses_1", log, None, SKEWED, NOW + 60_000)
    opencode.replay("ses_1", found.missing)
    again = Machine(PROJECT, "/home/dev/proj", clock_ahead_ms=5003)
    local = opencode.database.state("ses_1")
    assert difference("ses_1", log, local, again, NOW + 60_000).missing == []


def test_what_was_dated_back_when_it_came_is_not_missing_a_moment_later(
    opencode: SimulatedOpencode,
) -> None:
    log = logged(created(), message("m1", "a"))
    bring(opencode, log, NOW - 300)
    assert compare(opencode, log, NOW + 60_000).missing == []


def test_a_time_that_is_really_another_is_a_difference(opencode: SimulatedOpencode) -> None:
    bring(opencode, logged(created(), message("m1", "a")))
    record = {"role": "user", "text": "a", "time": {"created": NOW, "completed": NOW}}
    log = logged(created(), ("message.append", "m1", {"metadata": {FIELD: record}}))
    assert kinds(compare(opencode, log)) == ["message.updated"]
    record = {"role": "user", "text": "a", "time": {"created": NOW - 60_000}}
    log = logged(created(), ("message.append", "m1", {"metadata": {FIELD: record}}))
    assert kinds(compare(opencode, log)) == ["message.updated"]


def turn(*names: str, hours: float = 0) -> list[Operation]:
    """Messages, one a minute, the last of them before now by so many hours."""
    told: list[Operation] = []
    for place, name in enumerate(reversed(names)):
        at = NOW - round(hours * 3_600_000) - place * 60_000
        record = {"role": "user", "text": name, "time": {"created": at}}
        told = [
            ("message.append", name, {"metadata": {FIELD: record}}),
            part(f"{name}/{name}p", name),
            *told,
        ]
    return told


def order(opencode: SimulatedOpencode) -> list[str]:
    state = opencode.database.state("ses_1")
    assert state is not None
    return list(state.messages)


@pytest.mark.parametrize("hours", [-2, -1, 1])
def test_messages_from_before_a_clock_was_set_back_take_their_places_anew(
    opencode: SimulatedOpencode, hours: int
) -> None:
    """They came in by a clock that was ahead by some hours, and went right then."""
    early, late = turn("z1", "z2", hours=0.6), turn("a1", "a2", hours=0.1)
    before = Machine(PROJECT, "/home/dev/proj", clock_ahead_ms=hours * 3_600_000)
    log = logged(created(), *early, *late)
    opencode.replay(
        "ses_1", difference("ses_1", log, None, before, NOW + hours * 3_600_000).missing
    )
    now = NOW + 60_000
    found = bring(opencode, log, now)
    assert ("message.removed" in kinds(found)) == (hours > 0)
    assert order(opencode) == ["z1", "z2", "a1", "a2"]
    assert compare(opencode, log, now + 1).missing == []
    state = opencode.database.state("ses_1")
    assert state is not None
    assert hours < 0 or max(state.placed.values()) <= now
    assert sorted(state.parts) == [f"{name}/{name}p" for name in ("a1", "a2", "z1", "z2")]


def test_a_message_that_the_log_has_not_whole_stays_where_it_is(
    opencode: SimulatedOpencode,
) -> None:
    log = logged(created(), *turn("m1", "m2"))
    bring(opencode, log)
    opencode.part("ses_1", "m1", "q", "not written yet")
    local, back = opencode.database.state("ses_1"), -3_600_000
    set_back = Machine(PROJECT, "/home/dev/proj", clock_ahead_ms=back)
    found = difference("ses_1", log, local, set_back, NOW + back)
    taken_out = [e.properties["messageID"] for e in found.missing if e.type == "message.removed"]
    assert taken_out == ["m2"]
    assert list(found.unknown_parts) == ["m1/q"]


def test_parts_keep_their_ids(opencode: SimulatedOpencode) -> None:
    log = logged(created(), message("m1", "a"), part("m1/p1", "x"))
    bring(opencode, log)
    found = compare(SimulatedOpencode(), log)
    told = [event.properties["part"] for event in found.missing if "part" in event.properties]
    body = log.records["m1/p1"].change.body or {}
    assert told == [local_part("ses_1", "m1/p1", body, MACHINE, NOW)]


@pytest.mark.parametrize("has_ended", [True, False])
def test_a_part_that_ended_here_is_not_taken_back_to_where_it_had_not(
    opencode: SimulatedOpencode,
    *,
    has_ended: bool,
) -> None:
    half = {"type": "text", "text": "w0", "time": {"start": NOW}}
    whole = {"time": {"start": NOW, "end": NOW}}
    log = logged(created(), message("m1", "x"), ("part.put", "m1/p1", {"id": "p1"} | half))
    bring(opencode, log)
    times = whole["time"] if has_ended else half["time"]
    opencode.part("ses_1", "m1", "p1", "w0 w1", time=times)
    found = compare(opencode, log)
    assert list(found.unknown_parts) == (["m1/p1"] if has_ended else [])
    assert len(found.missing) == (0 if has_ended else 1)
