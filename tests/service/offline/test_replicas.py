"""Whatever happens between replicas of a session, all agree at the end and no change vanishes.

Replicas run the real services, stores and merges; a list plays the part of Redis (`listed`), and
Hypothesis that of the network and of fate: calls are lost, doubled, late and overtaken, processes
crash, are offline, read slowly, and have wrong clocks.

Bugs that are put in on purpose prove that this would find them. For longer runs by hand:
`REPLICAS_EXAMPLES=20000 pytest tests/service/offline/test_replicas.py -k agree`.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from msgspec import UNSET

from sessiond.model import ConflictRecord
from tests.service.edits import CAP, FIELDS, RANKS, SUBJECTS, Field, at, tokens
from tests.service.listed import SESSION, Plant
from tests.service.replicas import Call, Change, Replica, applied, beginning, copied, lose

replicas = st.integers(0, 4)
choices = st.integers(0, 6)
fields = st.sampled_from(FIELDS)
edits = st.lists(st.tuples(fields, choices), min_size=1, max_size=4)
Edit: TypeAlias = tuple[Field, int]
ROUNDS = 400


class Replicas(RuleBasedStateMachine):
    """Three replicas of a session, and two more clients of the first one's process."""

    plant = Plant()
    forget_base = False

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.SelectorEventLoop()
        self.ms = 1_768_300_200_000
        self.words = 0
        self.changes: list[Change] = []
        self.strays: list[Call] = []
        self.server = beginning(self.plant)
        self.offline: set[int] = set()
        self.all: list[Replica] = []
        self.all += [
            self.do(Replica, name, self.server, lambda: self.ms, forget_base=self.forget_base)
            for name in "abc"
        ]
        self.all += [
            self.do(
                Replica, name, self.server, lambda: self.ms, self.all[0],
                forget_base=self.forget_base,
            )
            for name in "de"
        ]  # fmt: skip
        for replica in self.all:
            replica.receive(len(self.server.log))

    def do(self, work: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Do something, and let everybody go on until all wait for the network."""

        async def call() -> Any:
            return work(*arguments, **more)

        self.ms += 1
        result = self.loop.run_until_complete(call())
        while self.loop._ready:  # type: ignore[attr-defined]  # nobody waits for time to pass
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        for replica in self.all:
            while replica.errors:
                raise replica.errors.pop()
        return result

    def new_word(self) -> str:
        self.words += 1
        return f"t{self.words}"

    # What people do

    @rule(who=replicas, edits=edits, keyed=st.booleans(), whole=st.booleans())
    def write(self, who: int, edits: list[Edit], *, keyed: bool, whole: bool) -> None:
        """Edit some fields, and send that unless the network is away."""
        for field, choice in edits:
            self.all[who].edit(field, self.new_word(), choice)
        for field, _ in edits:
            if who not in self.offline:
                self._send(self.all[who], field.subject, whole=whole, keyed=keyed)

    @rule(field=fields, each=st.lists(choices, min_size=5, max_size=5), keyed=st.booleans())
    def write_the_same_field(self, field: Field, each: list[int], *, keyed: bool) -> None:
        for who, choice in enumerate(each):
            self.write(who, [(field, choice)], keyed=keyed, whole=bool(choice % 2))

    @rule(who=replicas, subject=st.sampled_from(["m0", "m1", "m1/p"]), really=st.integers(0, 9))
    def remove(self, who: int, subject: str, really: int) -> None:
        if not really and who not in self.offline:
            self.all[who].remove(subject)
            self._send(self.all[who], subject)

    def _send(
        self, replica: Replica, subject: str, *, whole: bool = True, keyed: bool = True
    ) -> None:
        name = f"c{len(self.changes)}"
        change = self.do(replica.send, subject, name, whole=whole, keyed=keyed)
        if change:
            self.changes.append(change)

    # What the network does

    def _picked(self, pick: int) -> Call | None:
        lines = [self.all[who].line for who in range(5) if who not in self.offline]
        calls = [(line, call) for line in lines for call in line.calls]
        if not calls:
            return None
        line, call = calls[pick % len(calls)]
        line.calls.remove(call)
        return call

    @rule(picks=st.lists(choices, min_size=1, max_size=5))
    def deliver(self, picks: list[int]) -> None:
        for pick in picks:
            if call := self._picked(pick):
                self.do(call.reply.set_result, self.server.commit(call.arguments))

    @rule(pick=choices, arrives=st.sampled_from(["never", "late", "now"]), patient=st.booleans())
    def lose(self, pick: int, arrives: str, *, patient: bool) -> None:
        """A connection ends; what was sent through it may arrive all the same."""
        call = self._picked(pick)
        if call is None:
            return
        if arrives == "now":
            self.server.commit(call.arguments)
        elif arrives == "late":
            self.strays.append(call)
        for replica in self.all:
            replica.seconds += 0 if patient else 10
        self.do(lose, call)

    @rule(pick=choices)
    def let_a_stray_in(self, pick: int) -> None:
        if self.strays:
            self.server.commit(self.strays.pop(pick % len(self.strays)).arguments)

    @rule(who=replicas, kind=st.sampled_from(["offline", "slow", "wrong", "crash"]), by=choices)
    def disturb(self, who: int, kind: str, by: int) -> None:
        replica = self.all[who]
        match kind:
            case "offline":
                self.offline ^= {who}
            case "slow":
                replica.line.held ^= True
            case "wrong":
                replica.skew_ms = [-60_000, -1, 0, 60_000][by % 4]
            case "crash" if by < 3:
                for each in self._process_of(replica):
                    self.strays += self.do(each.crash)

    def _process_of(self, replica: Replica) -> list[Replica]:
        return [each for each in self.all if each.line is replica.line]

    @rule(who=replicas, reads=st.integers(0, 4), most=st.sampled_from([1, 3, 100]))
    def go_on(self, who: int, reads: int, most: int) -> None:
        """Take what others wrote, be answered some reads, and ask again what had no answer."""
        replica = self.all[who]
        for _ in range(reads):
            if replica.line.reads:
                self.do(replica.line.reads.pop(0).set_result, None)
        if who not in self.offline:
            replica.receive(most)
            for change in list(replica.sent.values()):
                if change.state == "failed":
                    self.do(replica.ask, change)

    # What must be true in the end

    def teardown(self) -> None:
        try:
            self._settle()
            self._agree()
        finally:
            for replica in self.all:
                self.do(replica.stop)
            self.loop.close()

    def _settle(self) -> None:
        self.offline.clear()
        for _ in range(ROUNDS):
            for who, replica in enumerate(self.all):
                replica.line.held = False
                self.go_on(who, reads=100, most=0)
                for subject in SUBJECTS:
                    self._send(replica, subject)
            self.let_a_stray_in(0)
            self.deliver([0])
            if not any(replica.sent for replica in self.all) and not self.strays:
                return
        raise AssertionError("it never comes to rest")

    def _agree(self) -> None:
        truth = copied(self.server)
        for replica in self.all:
            replica.receive(len(self.server.log))
            assert replica.copy.offset == truth.offset
            assert replica.copy.subjects == truth.subjects
        conflicts = self.loop.run_until_complete(self.all[0].conflicts.of_session(SESSION))
        changes = list(applied(self.changes, self.server))
        for field in FIELDS:
            subject = truth.subjects[field.subject].value
            there = [change for change in changes if change.subject == field.subject]
            if field.subject == "m1/p" and truth.subjects["m1"].value is UNSET:
                continue  # who removes a message removes its parts, whatever became of them
            told = [each for each in conflicts if field.subject in (each.id, each.document)]
            check_words(field, there, at(subject, field.path), told)
            if subject is not UNSET:
                check_exactly(field, there, at(subject, field.path))
        assert_open(conflicts)


def check_words(
    field: Field, changes: list[Change], final: Any, conflicts: list[ConflictRecord]
) -> None:
    """What somebody wrote is there, or was replaced by one who saw it, or is in a conflict."""
    told = Counter(word for each in conflicts for word in _words_of(each))
    wrote, removed = set[str](), set[str]()
    for change in changes:
        before, after = (set(tokens(value)) for value in change.values(field))
        wrote, removed = wrote | (after - before), removed | (before - after)
    if field.kind == "cap":
        return
    for word in wrote:
        kept = word in tokens(final) or word in removed or told[word]
        assert kept, f"{word} of {field} is lost"
    for word in removed:
        assert word not in tokens(final) or told[word], f"{word} of {field} came back"


def _words_of(conflict: ConflictRecord) -> Iterator[str]:
    for value in (conflict.base, conflict.ours.value, conflict.theirs.value):
        yield from set(tokens(value))


def check_exactly(field: Field, changes: list[Change], final: Any) -> None:
    """The strategy's meaning: all additions, the sum, the greatest."""
    sides = [change.values(field) for change in changes if change.after is not UNSET]
    afters = [after for _, after in sides]
    match field.kind:
        case "union" | "append":
            wrote = Counter(word for before, after in sides for word in {*after} - {*before})
            gone = {word for before, after in sides for word in {*before} - {*after}}
            assert Counter(final) == Counter({w: n for w, n in wrote.items() if w not in gone})
        case "cap":
            assert len(final) <= CAP
            assert len(set(final)) == len(final)
            assert final or not any(afters)
        case "counter":
            assert final == sum(after - before for before, after in sides)
        case "max" | "min":
            assert final == {"max": max, "min": min}[field.kind]([0, *afters])
        case "rank":
            assert RANKS.index(final) == max([0, *map(RANKS.index, afters)])


def assert_open(conflicts: list[ConflictRecord]) -> None:
    """What a person is to decide waits for that; all else is settled."""
    for conflict in conflicts:
        assert conflict.state == ("open" if conflict.strategy == "manual" else "settled")


class ForgetfulRedis(Replicas):
    """The same while Redis loses what was written last: all agree on what it still knows."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = self.server.taken_copy()
        for replica in self.all:
            replica.forgetful = True

    @rule()
    def remember(self) -> None:
        self.taken = self.server.taken_copy()

    @rule()
    def forget(self) -> None:
        self.server.roll_back(self.taken)

    def _agree(self) -> None:
        truth = copied(self.server)
        for replica in self.all:
            replica.receive(len(self.server.log))
            assert (replica.copy.epoch, replica.copy.subjects) == (truth.epoch, truth.subjects)


_settings = settings(
    max_examples=int(os.environ.get("REPLICAS_EXAMPLES", "300")),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a failure is read without shrinking
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
Replicas.TestCase.settings = _settings

ForgetfulRedis.TestCase.settings = _settings

TestReplicasAgree = Replicas.TestCase
TestReplicasAgreeAlthoughRedisForgets = ForgetfulRedis.TestCase


class Uncompared(Replicas):
    plant = Plant(skip_compare=True)


class Doubled(Replicas):
    plant = Plant(skip_dedupe=True)


class Silent(Replicas):
    plant = Plant(hide_conflicts=True)


class Baseless(Replicas):
    forget_base = True


@pytest.mark.parametrize("broken", [Uncompared, Doubled, Silent, Baseless])
def test_a_bug_that_is_put_in_is_found(broken: type[Replicas]) -> None:
    patient = settings(_settings, database=None, max_examples=5_000)  # it ends with the first find
    with pytest.raises(AssertionError):
        run_state_machine_as_test(broken, settings=patient)
