"""What was acknowledged to whom, and what must therefore be true. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TOKEN = re.compile(r"\bq\d{5}q\b")
"""What names a prompt, in its text."""

Message = dict[str, Any]


@dataclass
class Prompt:
    """A prompt that was sent. Times are seconds of `time.monotonic()`.

    It is unknown when its session had not come to the machine yet. `message` is the user's
    message, once it is answered.
    """

    token: str
    session: str
    machine: str
    text: str
    began: float
    ended: float = math.inf
    is_answered: bool = False
    is_unknown: bool = False
    message: str = ""
    error: str = ""

    @property
    def requests(self) -> int:
        """How often its turn asks the model."""
        return 2 if "TOOL:" in self.text else 1

    @property
    def name(self) -> str:
        return f"{self.text!r} of {self.machine} in {self.session}"


@dataclass
class Fault:
    """Something that was broken on purpose: on one machine, or (Redis) for all."""

    kind: str
    machine: str
    began: float
    ended: float = math.inf

    def meets(self, prompt: Prompt) -> bool:
        """Tell whether it may have interrupted a prompt's turn."""
        concerns = self.kind != "opencode" or self.machine == prompt.machine
        return concerns and self.began <= prompt.ended and prompt.began <= self.ended


@dataclass
class Ledger:
    """The prompts, the faults, and what was taken out again.

    `excused` are the users' messages of turns of which a message was removed or reverted by
    somebody; `removed` the messages of which opencode confirmed that they are gone for good;
    `unsteady` the machines whose clock was set. Where it was set back, opencode ignores prompts
    until it is past the last message, unless sessiond can put that right: that takes Redis.
    """

    prompts: dict[str, Prompt] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    excused: set[str] = field(default_factory=set)
    removed: dict[str, set[str]] = field(default_factory=dict)
    unsteady: set[str] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)

    def excuse(self, messages: Iterable[Message]) -> None:
        """Take note that questions and answers may be gone, and with them what is owed."""
        self.excused |= {m["info"].get("parentID", m["info"]["id"]) for m in messages}

    def take_out(self, session: str, messages: Iterable[str]) -> None:
        """Take note that messages are gone for everybody."""
        self.removed.setdefault(session, set()).update(messages)

    def interruptions(self, prompt: Prompt) -> int:
        """Count the faults during a prompt."""
        return sum(fault.meets(prompt) for fault in self.faults)


def text_of(message: Message) -> str:
    return "".join(part.get("text", "") for part in message["parts"] if part["type"] == "text")


def tokens(message: Message) -> set[str]:
    return set(TOKEN.findall(text_of(message)))


def turns(messages: list[Message]) -> dict[str, list[Message]]:
    """Return what belongs to each user's message: itself, then its answers."""
    found = {m["info"]["id"]: [m] for m in messages if m["info"]["role"] == "user"}
    for message in messages:
        found.get(message["info"].get("parentID"), []).append(message)
    return found


def wrong_calls(ledger: Ledger, calls: Mapping[str, int]) -> Iterator[str]:
    """Tell of prompts for which the model was called too often, or too rarely.

    Args:
        ledger: what was asked.
        calls: how often the model was asked, by the token of the last prompt.
    """
    for prompt in ledger.prompts.values():
        slack = ledger.interruptions(prompt)
        count = calls.get(prompt.token, 0)
        if prompt.session in ledger.deleted:
            continue  # opencode itself goes on to ask when its session is deleted during a turn
        low = prompt.requests - slack if prompt.is_answered else 0
        if not low <= count <= prompt.requests + slack:
            yield f"{count} calls, not {prompt.requests} (±{slack}): {prompt.name}"
        elif prompt.is_answered and not count and not (slack and prompt.machine in ledger.unsteady):
            yield f"silently ignored, with {slack} faults: {prompt.name}"


def unanswered(ledger: Ledger) -> Iterator[str]:
    """Tell of prompts that failed without a reason."""
    for prompt in ledger.prompts.values():
        is_free = prompt.session in ledger.deleted or ledger.interruptions(prompt)
        if not (is_free or prompt.is_answered or prompt.is_unknown):
            yield f"failed, without a fault: {prompt.name}: {prompt.error}"


def wrong_history(ledger: Ledger, session: str, messages: list[Message]) -> Iterator[str]:
    """Tell what a session's history lacks, has twice, or should not have any more."""
    there = {message["info"]["id"] for message in messages}
    for name in sorted(there & ledger.removed.get(session, set())):
        yield f"came back: {name} in {session}"
    found = turns(messages)
    places: list[tuple[int, Prompt]] = []
    for prompt in owed(ledger, session):
        own = [turn for turn in found.values() if prompt.token in tokens(turn[0])]
        if len(own) != 1:
            yield f"{len(own)} times in the history: {prompt.name}"
        else:
            places.append((messages.index(own[0][0]), prompt))
            yield from _wrong_answer(prompt, own[0][1:])
    yield from _wrong_order(places)


def owed(ledger: Ledger, session: str) -> list[Prompt]:
    """Return the prompts of a session that were answered, and that nobody took out."""
    return [
        prompt
        for prompt in ledger.prompts.values()
        if prompt.session == session and prompt.is_answered and prompt.message not in ledger.excused
    ]


def _wrong_answer(prompt: Prompt, answers: list[Message]) -> Iterator[str]:
    complete = [a for a in answers if a["info"].get("finish") and "completed" in a["info"]["time"]]
    if len(complete) != prompt.requests or len(answers) != prompt.requests:
        told = [(a["info"]["id"], a["info"].get("finish")) for a in answers]
        yield f"answers are {told}, not {prompt.requests}: {prompt.name}"
    elif (said := text_of(answers[-1])) and not _answers(prompt, said):
        yield f"the answer is {said!r}: {prompt.name}"
    elif not said:
        yield f"the answer is empty: {prompt.name}"


def _answers(prompt: Prompt, said: str) -> bool:
    return said.startswith("w0 ") if "SLOW:" in prompt.text else prompt.token in said


def _wrong_order(places: list[tuple[int, Prompt]]) -> Iterator[str]:
    for place, prompt in places:
        for other_place, other in places:
            if prompt.ended < other.began and place > other_place:
                yield f"stands before what was answered earlier: {other.name}, {prompt.name}"
