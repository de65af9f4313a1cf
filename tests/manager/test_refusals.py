"""What the Python API refuses, and that it writes nothing then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from sessiond import Session, SessionManager
from sessiond.errors import InvalidInput, NotFound, SessiondError, TooLarge
from sessiond.model import NewMessage, Preferences
from tests.manager.programs import Connect, log_of, text_part


def deep(levels: int) -> dict[str, Any]:
    return {"x": deep(levels - 1)} if levels else {}


async def save_context(session: Session, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(session.context, name, value)
    await session.save()


async def be_at(session: Session, **more: Any) -> None:
    async with session.present(**more):
        pass


Attempt = Callable[[SessionManager, Session], Awaitable[object]]

REFUSED: dict[str, tuple[type[SessiondError], Attempt]] = {
    "session id with a space": (InvalidInput, lambda m, _: m.create(session_id="a b")),
    "session id with braces": (InvalidInput, lambda m, _: m.create(session_id="{a}")),
    "workspace with a space": (InvalidInput, lambda m, _: m.create(workspace="a b")),
    "title too long": (InvalidInput, lambda m, _: m.create(title="x" * 1025)),
    "preferences not an object": (
        InvalidInput,
        lambda m, _: m.create(preferences=cast("Preferences", ["dark"])),
    ),
    "preference with a name of ours": (
        InvalidInput,
        lambda m, _: m.create(preferences={"_version": 1}),
    ),
    "page of no sessions": (InvalidInput, lambda m, _: m.list(limit=0)),
    "page of too many sessions": (InvalidInput, lambda m, _: m.list(limit=501)),
    "cursor of nobody": (InvalidInput, lambda m, _: m.list(cursor="x")),
    "filter of nobody": (InvalidInput, lambda m, _: m.list(colour="red")),
    "load id with a space": (InvalidInput, lambda m, _: m.load("a b")),
    "load another path": (InvalidInput, lambda m, _: m.load("../status")),
    "load with a query": (InvalidInput, lambda m, s: m.load(f"{s.id}?limit=1")),
    "load nothing": (InvalidInput, lambda m, _: m.load("")),
    "delete another path": (InvalidInput, lambda m, s: m.delete(f"x/../{s.id}")),
    "no role": (InvalidInput, lambda _, s: s.add_message(content="x")),
    "unknown role": (InvalidInput, lambda _, s: s.add_message(role="nobody")),
    "unknown field": (InvalidInput, lambda _, s: s.add_message(role="user", colour="red")),
    "content not a text": (InvalidInput, lambda _, s: s.add_message(role="user", content=5)),
    "message id with a slash": (InvalidInput, lambda _, s: s.add_message(role="user", id="a/b")),
    "message id with a slash, built by hand": (
        InvalidInput,
        lambda _, s: s.add_messages([NewMessage(role="user", id="a/b")]),
    ),
    "unknown role, built by hand": (
        InvalidInput,
        lambda _, s: s.add_messages([NewMessage(role=cast("Any", "nobody"))]),
    ),
    "nested too deep": (InvalidInput, lambda _, s: s.add_message(role="user", metadata=deep(99))),
    "half a character": (InvalidInput, lambda _, s: s.add_message(role="user", content="\ud800")),
    "not JSON": (InvalidInput, lambda _, s: s.add_message(role="user", metadata={"x": object()})),
    "no messages": (InvalidInput, lambda _, s: s.add_messages([])),
    "too many messages": (
        TooLarge,
        lambda _, s: s.add_messages([NewMessage(role="user") for _ in range(65)]),
    ),
    "content beside parts": (
        InvalidInput,
        lambda _, s: s.add_message(role="user", content="x", parts=[text_part("p", "y")]),
    ),
    "part twice": (
        InvalidInput,
        lambda _, s: s.add_message(role="user", parts=[text_part("p", "x"), text_part("p", "y")]),
    ),
    "edit of an unknown field": (InvalidInput, lambda _, s: s.edit_message("m", colour="red")),
    "edit of derived content": (InvalidInput, lambda _, s: s.edit_message("m", content="x")),
    "edit to no message": (InvalidInput, lambda _, s: s.edit_message("m", role="nobody")),
    "edit of no message": (NotFound, lambda _, s: s.edit_message("unknown", role="tool")),
    "removal of no message": (NotFound, lambda _, s: s.remove_message("unknown")),
    "removal through another path": (InvalidInput, lambda _, s: s.remove_message("m/parts/p")),
    "part without type": (InvalidInput, lambda _, s: s.put_part("m", {"id": "p"})),
    "part id of ours": (InvalidInput, lambda _, s: s.put_part("m", text_part("own-x", "x"))),
    "part id with a slash": (InvalidInput, lambda _, s: s.put_part("m", text_part("a/b", "x"))),
    "part of no message": (NotFound, lambda _, s: s.put_part("unknown", text_part("p", "x"))),
    "removal of no part": (NotFound, lambda _, s: s.remove_part("m", "unknown")),
    "version of nobody": (InvalidInput, lambda _, s: s.remove_message("m", expected="latest")),
    "position of nobody": (InvalidInput, lambda _, s: anext(s.subscribe(after="yesterday"))),
    "context of another shape": (
        InvalidInput,
        lambda _, s: save_context(s, active_files="README.md"),
    ),
    "present under a name with a slash": (InvalidInput, lambda _, s: be_at(s, instance="a/b")),
    "present with a file without a name": (InvalidInput, lambda _, s: be_at(s, active_files=[""])),
    "present with one text for a list": (InvalidInput, lambda _, s: be_at(s, active_files="a.py")),
    "present with too long a name": (
        InvalidInput,
        lambda _, s: be_at(s, active_files=["x" * 1025]),
    ),
    "present with too many files": (
        InvalidInput,
        lambda _, s: be_at(s, active_files=[f"f{n}" for n in range(257)]),
    ),
    "present with names of files that are too long together": (
        TooLarge,
        lambda _, s: be_at(s, active_files=[f"{n}{'x' * 1000}" for n in range(17)]),
    ),
    "present with half a character": (
        InvalidInput,
        lambda _, s: be_at(s, active_files=["\ud800"]),
    ),
    "live nested too deep": (InvalidInput, lambda _, s: s.send_live(deep(99))),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_is_not_right_is_refused_and_writes_nothing(
    manager: SessionManager, session: Session, what: str
) -> None:
    expected, attempt = REFUSED[what]
    before = await log_of(session)
    with pytest.raises(expected) as refused:
        await attempt(manager, session)
    assert refused.value.code == expected.code
    assert await log_of(session) == before


async def test_a_program_whose_name_cannot_be_an_origin_is_refused(connect: Connect) -> None:
    with pytest.raises(InvalidInput):
        await connect(name="a b:c").create()
