"""Who is at a session, for people: part of `sessiond status` and `sessiond show`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sessiond.cli.terminal import one_line, paint
from sessiond.client import DaemonClient
from sessiond.errors import SessiondError
from sessiond.model import Presence, PresentSessions, SessionPresence

_FILES_SHOWN = 10


async def sessions_with_people(client: DaemonClient) -> list[SessionPresence]:
    """Ask for the sessions where somebody is; none if that cannot be told."""
    with contextlib.suppress(SessiondError):  # the rest is worth telling without them
        found: PresentSessions
        found, _ = await client.call("GET", "/v1/presence", PresentSessions)
        return found.sessions
    return []


async def people_at(client: DaemonClient, session_id: str) -> SessionPresence | None:
    """Ask who is at a session; None if that cannot be told."""
    with contextlib.suppress(SessiondError):
        return await client.presence(session_id)
    return None


def summary_lines(found: SessionPresence, width: int) -> Iterator[str]:
    """Yield a line that says who is at a session, and a warning for each file of several."""
    name = one_line(found.session_id)
    people = "; ".join(_person(who) for who in found.present)
    yield f"{paint('present'.ljust(width), 'dim')} {name}: {people}"
    for warning in _warnings(found):
        yield f"{paint('warning'.ljust(width), 'yellow')} {name}: {warning}"


def person_lines(found: SessionPresence, width: int) -> Iterator[str]:
    """Yield a line for everybody at a session, and a warning for each file of several."""
    for who in found.present:
        yield f"{paint('present'.ljust(width), 'dim')} {_person(who)}"
    for warning in _warnings(found):
        yield f"{paint('warning'.ljust(width), 'yellow')} {warning}"


def _person(who: Presence) -> str:
    program = f" ({one_line(who.client)})" if who.client else ""
    turn = ", answering…" if who.has_turn else ""
    files = f", works on {_files(who.active_files)}" if who.active_files else ""
    return f"{_name(who)}{program}{turn}{files}"


def _name(who: Presence) -> str:
    return f"{one_line(who.instance)} on {one_line(who.machine)}"


def _files(names: list[str]) -> str:
    more = len(names) - _FILES_SHOWN
    shown = ", ".join(one_line(name) for name in names[:_FILES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _warnings(found: SessionPresence) -> Iterator[str]:
    """Yield which file is open at whom; one who works alone is warned of nothing."""
    by_name = {who.instance: who for who in found.present}
    for file, instances in found.shared_files.items():
        people = [_name(by_name[name]) for name in instances if name in by_name]
        yield f"{one_line(file)} is open at {' and at '.join(people)}"
