"""At which sessions the opencodes of one share are, and what they work on: for others to see.

An opencode is at a session while a turn of its own runs there, and for some minutes after a person
prompted there. What it works on are the files that its tools wrote: relative to the worktree, so
that machines with the project at another path name them alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import time
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct, field

from sessiond.errors import SessionDeleted, SessiondError
from sessiond.opencode.activity import LONGEST_NAME, NEUTRAL_WORKTREE, written_files
from sessiond.opencode.mapping import REPLAYED
from sessiond.opencode.protocol import OpencodeEvent
from sessiond.service.content.presence import Presences
from sessiond.service.opencode.instance import Instance

ATTENTION_SECONDS = 300.0
"""How long a person is at a session after a prompt, or after the end of its turn."""

_GOODBYE_SECONDS = 2.0
_MOST_FILES = 20
_RENEWALS_PER_LIFE = 3
_PROGRAM = "opencode"


class _Visit(Struct):
    """An opencode at a session. `told`: the files that others know of, None for not at all."""

    active_at: float
    has_turn: bool = False
    files: dict[str, None] = field(default_factory=dict)
    told: list[str] | None = None
    told_at: float = 0.0

    def lasts(self, now: float) -> bool:
        return self.has_turn or now - self.active_at < ATTENTION_SECONDS


class Attendance:
    """The visits of one share's opencodes. Notes are taken at once and told by `keep`.

    Args:
        presences: where others see them.
        neutral: makes a path of this machine neutral (see `opencode.mapping`).
        is_shared: tells whether a session may be spoken of.
        now: seconds, of whatever beginning.
    """

    def __init__(
        self,
        presences: Presences,
        *,
        neutral: Callable[[str], str],
        is_shared: Callable[[str], bool],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._presences = presences
        self._neutral = neutral
        self._is_shared = is_shared
        self._now = now
        self._visits: dict[tuple[str, str], _Visit] = {}
        self._ended: list[tuple[str, str]] = []
        self._news = asyncio.Event()

    def came_back(self, instance: Instance) -> None:
        """Take note of an opencode that attaches, perhaps in the middle of turns."""
        for session_id in instance.attachment.turns:
            self.prompted(instance, session_id).has_turn = True

    def prompted(self, instance: Instance, session_id: str) -> _Visit:
        """Take note that somebody prompts in a session."""
        visit = self._visits.get((instance.name, session_id))
        if visit is None:
            visit = self._visits[instance.name, session_id] = _Visit(self._now())
        if visit.told is None:
            self._news.set()
        visit.active_at = self._now()
        return visit

    def note(self, instance: Instance, session_id: str, events: Iterable[OpencodeEvent]) -> None:
        """Learn from what happens in an opencode."""
        for event in events:
            if not event.id.startswith(REPLAYED):
                self._note(instance, session_id, event.type, event.properties)

    def gone(self, name: str) -> None:
        """Take note that an opencode is gone."""
        for whose in [each for each in self._visits if each[0] == name]:
            self._end(whose)

    async def keep(self) -> None:
        """Tell of all visits, for ever: at once when something changed, and again in time."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._presences.valid_seconds / _RENEWALS_PER_LIFE):
                    await self._news.wait()
            self._news.clear()
            await self.tell()

    async def tell(self) -> None:
        """Tell what others do not know yet, or will soon have forgotten."""
        for whose, visit in list(self._visits.items()):
            if visit.lasts(self._now()) and self._is_shared(whose[1]):
                await self._announce(whose, visit)
            elif visit.told is not None or not visit.lasts(self._now()):
                self._end(whose)
        ended, self._ended = self._ended, []
        for name, session_id in ended:
            with contextlib.suppress(SessiondError):  # it ends by itself
                await self._presences.leave(session_id, name)

    async def close(self) -> None:
        """End all visits; where Redis does not answer soon, they end by themselves."""
        for whose in list(self._visits):
            self._end(whose)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await self.tell()

    def _note(self, instance: Instance, session_id: str, kind: str, given: dict[str, Any]) -> None:
        match kind:
            case "session.status" | "session.idle":
                status = given.get("status")
                state = status.get("type") if isinstance(status, dict) else "idle"
                if state != "idle" or (instance.name, session_id) in self._visits:
                    self.prompted(instance, session_id).has_turn = state != "idle"
            case "message.updated" if _of(given, "info").get("role") == "user":
                self.prompted(instance, session_id)
            case "message.part.updated":
                visit = self._visits.get((instance.name, session_id))
                for path in written_files(_of(given, "part")) if visit else ():
                    self._work_on(visit, posixpath.join(instance.attachment.directory, path))
            case "session.deleted":
                self._visits.pop((instance.name, session_id), None)

    def _work_on(self, visit: _Visit | None, path: str) -> None:
        name = self._neutral(posixpath.normpath(path)).removeprefix(NEUTRAL_WORKTREE)
        if visit is None or not 0 < len(name) <= LONGEST_NAME:
            return
        if name not in visit.files:
            self._news.set()
        visit.files.pop(name, None)
        visit.files[name] = None
        for oldest in list(visit.files)[:-_MOST_FILES]:
            del visit.files[oldest]

    def _end(self, whose: tuple[str, str]) -> None:
        if self._visits.pop(whose).told is not None:
            self._ended.append(whose)
            self._news.set()

    async def _announce(self, whose: tuple[str, str], visit: _Visit) -> None:
        name, session_id = whose
        files, now = sorted(visit.files), self._now()
        is_due = now - visit.told_at >= self._presences.valid_seconds / _RENEWALS_PER_LIFE / 2
        if files == visit.told and not is_due:
            return
        try:
            await self._presences.announce(session_id, name, files, _PROGRAM)
        except SessionDeleted:
            self._visits.pop(whose, None)
        except SessiondError:  # Redis is away, or the session is not there yet: the next time
            visit.told = None
        else:
            visit.told, visit.told_at = files, now


def _of(record: dict[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    return found if isinstance(found, dict) else {}
