"""Windows on stored sessions, and the tokens that a session says it takes."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest

from sessiond.config import PerformanceOptions
from sessiond.core import window_defaults
from sessiond.errors import ConfigurationError, InvalidInput
from sessiond.model import Message, NewMessage, Session
from sessiond.policy import tokens
from sessiond.service.content import usage as usage_module
from sessiond.service.content.usage import Usage, count_message, count_messages
from sessiond.service.content.windows import MOST_TOKENS, WindowDefaults, Windows
from sessiond.sync.position import Position
from tests.service.support import create
from tests.store.support import Services

SHORT = b'{"id":"m","timestamp":"2026-01-13T10:30:00Z","role":"user"}'


async def loaded(core: Services, session_id: str) -> Session:
    return msgspec.json.decode(await core.sessions.load(session_id), type=Session)


def tokens_of(session: Session) -> int:
    return sum(map(tokens.of_message, session.conversation.messages))


async def say(core: Services, session_id: str, *contents: str) -> None:
    given = [NewMessage(role="user", content=text) for text in contents]
    await core.messages.append(session_id, given)


async def test_a_session_says_what_it_takes_after_every_kind_of_change(core: Services) -> None:
    name = await create(core)
    assert (await loaded(core, name)).conversation.context_window_used == 0
    await say(core, name, "one two three", "four")
    first = await loaded(core, name)
    assert first.conversation.context_window_used == tokens_of(first) > 0
    await say(core, name, "some more words")
    more = await loaded(core, name)
    assert more.conversation.context_window_used == tokens_of(more)
    message, other = (found.id for found in more.conversation.messages[:2])
    await core.records.edit(name, message, {"content": "now it is rather longer than before"})
    part = {"type": "tool", "tool": "grep", "state": {"output": "found " * 20}}
    await core.records.put_part(name, other, "p", part)
    changed = await loaded(core, name)
    assert changed.conversation.context_window_used == tokens_of(changed)
    await core.records.remove(name, message)
    after = await loaded(core, name)
    assert after.conversation.context_window_used == tokens_of(after)
    used = [session.conversation.context_window_used for session in (first, more, changed, after)]
    assert len(set(used)) == 4


async def test_only_what_is_new_is_counted(core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    of_message = tokens.of_message

    def counting(message: Message) -> int:
        counted.append(message.content)
        return of_message(message)

    monkeypatch.setattr(tokens, "of_message", counting)
    name = await create(core)
    await say(core, name, "one", "two")
    await loaded(core, name)
    await say(core, name, "three")
    await loaded(core, name)
    await loaded(core, name)
    assert counted == ["one", "two", "three"]


async def test_what_was_counted_of_another_history_does_not_count(core: Services) -> None:
    name = await create(core)
    await say(core, name, "a message of some words")
    before = await loaded(core, name)
    epoch, _, offset = before.position.partition(":")
    usage, end = core.sessions._usage, int(offset)
    await usage.count(name, Position(epoch[::-1], end), [(end, SHORT)], None)
    counted = usage.counted(name)
    assert counted
    assert counted.by_offset[end] != tokens_of(before)
    assert (await loaded(core, name)).conversation.context_window_used == tokens_of(before)


async def test_others_go_on_while_a_long_conversation_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(usage_module, "_SLICE_SECONDS", 0)
    turns: list[int] = []

    async def others() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    assert await count_messages([SHORT] * 50) == [count_message(SHORT)] * 50
    beside.cancel()
    assert len(turns) >= 50


async def test_a_large_message_is_counted_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []

    def counting(_: Message) -> int:
        threads.append(threading.get_ident())
        return 7

    monkeypatch.setattr(tokens, "of_message", counting)
    large = msgspec.json.encode({**msgspec.json.decode(SHORT), "content": "word " * 100_000})
    assert await count_messages([SHORT, large]) == [7, 7]
    assert threads[0] == threading.get_ident() != threads[1]


async def test_of_many_messages_those_of_the_sessions_used_last_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sessiond.service.content.usage._REMEMBERED_MESSAGES", 3)
    usage = Usage()
    for name in ("a", "b", "b", "c"):
        await usage.count(name, Position("e", 2), [(1, SHORT), (2, SHORT)], None)
    assert usage.counted("a") is None
    assert usage.counted("b") is None
    assert usage.counted("c")


async def test_a_window_leaves_the_session_as_it_is(core: Services) -> None:
    name = await create(core)
    await say(core, name, *(f"message {number} " + "word " * 30 for number in range(20)))
    before = await core.sessions.load(name)
    window = await Windows(WindowDefaults()).of(before, 200, "recent")
    assert 0 < len(window.messages) < 20
    assert (window.total_messages, window.budget, window.strategy) == (20, 200, "recent")
    assert window.position == (await loaded(core, name)).position
    assert await core.sessions.load(name) == before


@pytest.mark.parametrize(
    ("budget", "strategy", "told"),
    [
        (63, None, "from 64 to"),
        (MOST_TOKENS + 1, None, "from 64 to"),
        (-1, None, "from 64 to"),
        ("100", None, "tokens is 100"),
        (100, "newest", "no strategy 'newest'"),
        (100, "", "no strategy ''"),
        (100, "os:system", "no strategy 'os:system'"),
        (100, "summary", "no function is configured"),
    ],
)
async def test_a_window_that_cannot_be_is_refused(
    core: Services, budget: int, strategy: str | None, told: str
) -> None:
    session = await core.sessions.load(await create(core))
    with pytest.raises(InvalidInput, match=told):
        await Windows(WindowDefaults()).of(session, budget, strategy)


def first_words(messages: list[Message], room: int) -> str:
    return f"{len(messages)} older messages"


async def test_the_configured_function_summarises(core: Services) -> None:
    options = PerformanceOptions(
        context_window_size=200,
        context_window_strategy="summary",
        context_window_summary=f"{__name__}:first_words",
    )
    name = await create(core)
    await say(core, name, *("word " * 30 for _ in range(20)))
    window = await Windows(window_defaults(options)).of(await core.sessions.load(name))
    assert (window.budget, window.strategy) == (200, "summary")
    assert window.summary == f"{20 - len(window.messages)} older messages"


@pytest.mark.parametrize(
    "name", ["no.such:function", f"{__name__}:missing", "sessiond.model:JOURNALED"]
)
def test_a_function_that_is_not_there_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(ConfigurationError, match="context_window_summary") as refused:
        window_defaults(PerformanceOptions(context_window_summary=name))
    assert refused.value.hint
    assert "leave it empty" in refused.value.hint


def test_the_strategy_summary_needs_a_function() -> None:
    with pytest.raises(ConfigurationError, match="context_window_summary is empty"):
        window_defaults(PerformanceOptions(context_window_strategy="summary"))
