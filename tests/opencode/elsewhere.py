"""A session as another instance writes it: the events that come from there."""

from __future__ import annotations

import itertools
import time
from typing import Any

from sessiond.opencode.protocol import OpencodeEvent

_numbers = itertools.count(1)


def fresh_id(prefix: str) -> str:
    """Return an id of opencode's form; later ones sort after earlier ones."""
    return f"{prefix}_{round(time.time() * 1000) * 4096 & (1 << 48) - 1:012x}{next(_numbers):014d}"


def event(type_: str, session: str, **properties: Any) -> OpencodeEvent:
    """Return an event of a session."""
    return OpencodeEvent(
        id=fresh_id("evt"), type=type_, properties={"sessionID": session, **properties}
    )


class Elsewhere:
    """A session of another instance.

    Args:
        like: the `info` of a session of the receiving project.
        session: its id, when it is to be one that exists there.
    """

    def __init__(self, like: dict[str, Any], session: str = "") -> None:
        self.id = session or fresh_id("ses")
        self.info = {**like, "id": self.id, "title": "from elsewhere"}

    def created(self) -> OpencodeEvent:
        return event("session.created", self.id, info=self.info)

    def titled(self, title: str) -> OpencodeEvent:
        return event("session.updated", self.id, info={**self.info, "title": title})

    def question(self, text: str) -> list[OpencodeEvent]:
        """What is logged of a prompt."""
        message = fresh_id("msg")
        info = {
            "id": message,
            "sessionID": self.id,
            "role": "user",
            "time": {"created": _now()},
            "agent": "build",
            "model": {"providerID": "mock", "modelID": "mock-model"},
        }
        return [event("message.updated", self.id, info=info), self.part(message, text)]

    def begun(self, parent: str) -> OpencodeEvent:
        """An answer's beginning. Its id is in `info.id`."""
        return self._answer(fresh_id("msg"), parent, {"time": {"created": _now()}})

    def ended(self, begun: OpencodeEvent) -> OpencodeEvent:
        info = begun.properties["info"]
        time_ = {**info["time"], "completed": _now()}
        return self._answer(info["id"], info["parentID"], {"time": time_, "finish": "stop"})

    def part(self, message: str, text: str, part: str = "") -> OpencodeEvent:
        """A part of text, new or as it is now."""
        content = {
            "id": part or fresh_id("prt"),
            "messageID": message,
            "sessionID": self.id,
            "type": "text",
            "text": text,
        }
        return event("message.part.updated", self.id, part=content, time=_now())

    def delta(self, part: OpencodeEvent, text: str) -> OpencodeEvent:
        """Text that streams into a part. Not logged."""
        ids = part.properties["part"]
        names = {"messageID": ids["messageID"], "partID": ids["id"]}
        return event("message.part.delta", self.id, **names, field="text", delta=text)

    def turn(self, question: str, answer: str) -> list[OpencodeEvent]:
        """What is logged of a whole turn."""
        asked = self.question(question)
        begun = self.begun(asked[0].properties["info"]["id"])
        said = self.part(begun.properties["info"]["id"], answer)
        return [*asked, begun, said, self.ended(begun)]

    def _answer(self, message: str, parent: str, more: dict[str, Any]) -> OpencodeEvent:
        info = {
            "id": message,
            "parentID": parent,
            "sessionID": self.id,
            "role": "assistant",
            "mode": "build",
            "agent": "build",
            "path": {"cwd": self.info["directory"], "root": self.info["directory"]},
            "cost": 0,
            "tokens": {"input": 0, "output": 0, "reasoning": 0, "cache": {"read": 0, "write": 0}},
            "providerID": "mock",
            "modelID": "mock-model",
            **more,
        }
        return event("message.updated", self.id, info=info)


def _now() -> int:
    return round(time.time() * 1000)
