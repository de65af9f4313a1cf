"""Every check passes a history in which all is well, and finds the one thing that is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from tests.system.faults import checks
from tests.system.faults.checks import Check, violations
from tests.system.faults.history import FinalSession, History, Seen, Told
from tests.system.faults.nemeses import NEMESES
from tests.system.faults.schedule import FINAL, KINDS, schedule

Damage = Callable[[History], None]


def seen(offset: int, name: str, life: int = 0, epoch: str = "") -> Seen:
    op = "session.create" if offset == 1 else "message.append"
    return Seen(life, offset, epoch or f"e{offset}", op, name)


def loaded(*names: str) -> dict[str, Any]:
    messages = [{"id": name, "content": f"{name} edited"} for name in names]
    context = {"state": {"w": 7}, "active_files": ["w-3.py"]}
    return {"conversation": {"messages": messages}, "context": context}


def told(kind: str, number: int, name: str, value: Any = "") -> Told:
    return Told("w", number, kind, "s", name, value or name, "committed")


def well() -> History:
    log = [seen(1, "s"), seen(2, "w-1"), seen(3, "w-2")]
    return History(
        told=[
            told("append", 1, "w-1"),
            told("append", 2, "w-2"),
            told("file", 3, "w-3.py"),
            told("edit", 4, "w-1", "edited"),
            told("part", 5, "w-2", "edited"),
            told("remove", 6, "w-0"),
            told("count", 7, "w", 7),
        ],
        attempted={("s", "w-1"), ("s", "w-2"), ("s", "w-0"), ("s", "w-3.py")},
        observed={"s": [list(log), [structs.replace(one, life=1) for one in log]]},
        final={"s": FinalSession(loads=[loaded("w-1", "w-2"), loaded("w-1", "w-2")], log=log)},
        recovery_seconds=0.5,
    )


def final(history: History) -> FinalSession:
    return history.final["s"]


def without(kind: str) -> Damage:
    def damage(history: History) -> None:
        load: dict[str, Any] = loaded("w-1", "w-2")
        match kind:
            case "append":
                load = loaded("w-1")
            case "remove":
                load = loaded("w-0", "w-1", "w-2")
            case "count":
                load["context"]["state"]["w"] = 6
            case "file":
                load["context"]["active_files"] = []
            case _:
                for message in load["conversation"]["messages"]:
                    message["content"] = "as it was"
        final(history).loads = [load, load]

    return damage


def say_twice(history: History) -> None:
    final(history).loads = [loaded("w-1", "w-2", "w-2")] * 2


def log_twice(history: History) -> None:
    final(history).log.append(seen(4, "w-1"))


def write_twice(history: History) -> None:
    def written(offset: int) -> dict[str, Any]:
        origin, position = f"w@here.1:{offset}", f"e:{offset}"
        body = {"set": {"state": {"w": 7}}}
        change = {"op": "document.change", "id": "context", "at": "12:00", "body": body}
        return {**change, "origin": origin, "position": position}

    final(history).operations = [written(4), written(5)]


def lose_a_conflict(history: History) -> None:
    final(history).log.append(Seen(0, 4, "e4", "conflict.record", "context"))


def disagree(history: History) -> None:
    history.observed["s"][1][2] = seen(3, "another", life=1)  # at the same place, epoch and all


def fall_behind(history: History) -> None:
    del history.observed["s"][0][2:]


def turn_round(history: History) -> None:
    final(history).log = [seen(1, "s"), seen(2, "w-2"), seen(3, "w-1")]


def leave_a_gap(history: History) -> None:
    final(history).log = [seen(1, "s"), seen(3, "w-1"), seen(4, "w-2")]


def skip_one(history: History) -> None:
    del history.observed["s"][0][1]


def make_up(history: History) -> None:
    final(history).loads = [loaded("w-1", "w-2", "ghost")] * 2


def list_twice(history: History) -> None:
    for load in final(history).loads:
        load["context"]["active_files"] *= 2


def list_what_nobody_opened(history: History) -> None:
    for load in final(history).loads:
        load["context"]["active_files"].append("ghost.py")


def differ(history: History) -> None:
    final(history).loads[1] = loaded("w-2", "w-1")


def forget_one(history: History) -> None:
    final(history).loads, final(history).missing = final(history).loads[:1], True


def give_up(history: History) -> None:
    history.failures.append("a client gave up")


def take_long(history: History) -> None:
    history.recovery_seconds = 60


def keep_the_deleted(history: History) -> None:
    history.told.append(told("delete", 8, "s"))


def test_all_is_well() -> None:
    assert violations(well()) == []


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        *(
            (without(kind), checks.nothing_acknowledged_is_lost)
            for kind in ("append", "edit", "part", "remove", "count", "file")
        ),
        (lambda history: history.final.clear(), checks.nothing_acknowledged_is_lost),
        (keep_the_deleted, checks.nothing_acknowledged_is_lost),
        (say_twice, checks.nothing_is_applied_twice),
        (log_twice, checks.nothing_is_applied_twice),
        (list_twice, checks.nothing_is_applied_twice),
        (write_twice, checks.nothing_is_applied_twice),
        (lose_a_conflict, checks.conflicts_are_kept),
        (disagree, checks.observers_agree),
        (fall_behind, checks.observers_end_with_the_log),
        (turn_round, checks.own_order_is_kept),
        (leave_a_gap, checks.offsets_are_contiguous),
        (skip_one, checks.offsets_are_contiguous),
        (make_up, checks.nothing_appears_that_nobody_wrote),
        (list_what_nobody_opened, checks.nothing_appears_that_nobody_wrote),
        (differ, checks.all_daemons_agree),
        (forget_one, checks.all_daemons_agree),
        (forget_one, checks.nothing_acknowledged_is_lost),
        (give_up, checks.all_clients_came_through),
        (take_long, checks.recovery_is_bounded),
    ],
)
def test_what_is_not_is_found(damage: Damage, check: Check) -> None:
    history = well()
    damage(history)
    assert list(check(history)) != []


def conflict(document: str, name: str, path: list[str], value: Any) -> dict[str, Any]:
    sides = {"ours": {"value": value}, "theirs": {}}
    return {"document": document, "id": name, "path": path, **sides}


def lost(history: History, kind: str) -> bool:
    found = list(checks.nothing_acknowledged_is_lost(history))
    return any(f"kind={kind!r}" in one for one in found)


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("append", conflict("message", "w-2", [], {"id": "w-2", "content": "w-2"})),
        ("edit", conflict("message", "w-1", ["content"], "edited")),
        ("part", conflict("part", "w-2/p5", [], {"type": "text", "text": "edited"})),
        ("remove", conflict("message", "w-0", [], None)),
        ("count", conflict("context", "", ["state", "w"], 7)),
        ("count", conflict("context", "", [], {"state": {"w": 7}})),
        ("file", conflict("context", "", ["active_files"], ["w-1.py", "w-3.py"])),
    ],
)
def test_what_a_conflict_holds_is_not_lost(kind: str, kept: Any) -> None:
    history = well()
    without(kind)(history)
    assert lost(history, kind)
    final(history).conflicts = [kept]
    assert not lost(history, kind)


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("append", conflict("part", "w-2/p5", [], {"type": "text", "text": "edited"})),
        ("edit", conflict("message", "w-1", ["content"], "another edit")),
        ("part", conflict("part", "w-2/p5", [], {"type": "text", "text": "another"})),
        ("remove", conflict("part", "w-0", [], None)),
        ("count", conflict("context", "", ["state", "w"], 6)),
        ("count", conflict("context", "", ["state", "v"], 7)),
        ("file", conflict("context", "", ["active_files"], ["w-1.py"])),
    ],
)
def test_a_conflict_about_something_else_makes_up_for_nothing(kind: str, other: Any) -> None:
    history = well()
    without(kind)(history)
    final(history).conflicts = [other]
    assert lost(history, kind)


def test_what_a_client_was_doing_when_it_was_killed_may_have_come_to_be_or_not() -> None:
    history = well()
    history.unanswered = {("s", "edit", "w-1"): "once more", ("s", "remove", "w-2"): "w-2"}
    assert violations(history) == []
    load: dict[str, Any] = loaded("w-1")
    load["conversation"]["messages"][0]["content"] = "once more"
    final(history).loads = [load, load]
    assert violations(history) == []
    load["conversation"]["messages"][0]["content"] = "as it was"
    assert lost(history, "edit")


def test_every_fault_of_a_schedule_can_be_done() -> None:
    assert set(KINDS) == set(NEMESES)
    assert set(FINAL) <= set(KINDS)


def test_a_seed_is_a_schedule() -> None:
    assert str(schedule(7)) == str(schedule(7))
    assert str(schedule(7)) != str(schedule(8))
    used = {step.kind for seed in range(300) for step in schedule(seed).steps}
    assert used == set(KINDS)
    assert {step.kind for step in schedule(3, ("flush",)).steps} <= {"flush"}
