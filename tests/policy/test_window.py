"""Windows on conversations: what they promise of any conversation, and what each strategy keeps."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs, to_builtins

from sessiond.errors import InvalidInput
from sessiond.model import WINDOW_STRATEGIES, Message, Part, WindowStrategy
from sessiond.policy import tokens
from sessiond.policy.shortening import LARGE_OUTPUT, cut_mark, output_stub
from sessiond.policy.window import LEAST_TOKENS, View, window
from sessiond.sync.parts import derived_content, derived_tool_calls

AT = datetime(2026, 1, 13, tzinfo=UTC)
WORD = "word "  # a token by the estimate, roughly


def message(name: str, role: str = "user", content: str = "", **fields: Any) -> Message:
    if parts := fields.get("parts"):
        content, fields["tool_calls"] = derived_content(parts), derived_tool_calls(parts)
    return Message(id=name, timestamp=AT, role=role, content=content, **fields)  # type: ignore[arg-type]


def tool(name: str, output: str) -> Part:
    state = {"status": "completed", "input": {"file": "a.py"}, "output": output}
    return {"id": name, "type": "tool", "tool": "read", "state": state}


def ids(view: View) -> list[str]:
    return [message.id for message in view.messages]


texts = st.one_of(st.text(max_size=80), st.integers(0, 400).map(lambda count: WORD * count))
parts = st.lists(
    st.one_of(
        texts.map(lambda text: {"type": "text", "text": text}),
        texts.map(lambda text: tool("", text)),
        st.just({"type": "file", "url": "data:"}),
        st.just({"type": "step-start"}),
    ),
    max_size=4,
).map(lambda parts: [{**part, "id": f"p{place}"} for place, part in enumerate(parts)])
roles = st.sampled_from(["user", "assistant", "system", "tool"])
calls = st.lists(
    st.one_of(st.just("grep"), st.sampled_from("abc").map(lambda name: {"id": name})), max_size=2
)
metadata = st.fixed_dictionaries(
    {}, optional={"pinned": st.booleans(), "tool_call_id": st.sampled_from("abc")}
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    found = []
    for place in range(draw(st.integers(0, 12))):
        fields: dict[str, Any] = {"metadata": draw(metadata)}
        if draw(st.booleans()):
            fields |= {"content": draw(texts), "tool_calls": draw(calls)}
        else:
            fields["parts"] = draw(parts)
        found.append(message(f"m{place}", draw(roles), **fields))
    return found


budgets = st.integers(LEAST_TOKENS, 600)
strategies = st.sampled_from(WINDOW_STRATEGIES)


def summary(older: list[Message], room: int) -> str:
    return f"{len(older)} messages"


@given(conversations(), budgets, strategies)
def test_a_window_never_takes_more_than_it_may(
    given: list[Message], budget: int, strategy: WindowStrategy
) -> None:
    view = window(given, budget, strategy, summary)
    taken = sum(map(tokens.of_message, view.messages)) + tokens.of_text(view.summary or "")
    assert view.tokens == taken <= budget


@given(conversations(), budgets, strategies)
def test_order_is_kept_and_what_is_not_whole_is_told(
    given: list[Message], budget: int, strategy: WindowStrategy
) -> None:
    view = window(given, budget, strategy, summary)
    whole = {message.id: message for message in given}
    assert ids(view) == [message.id for message in given if message.id in ids(view)]
    shortened = {left.first for left in view.left_out if left.messages == 0}
    assert {m.id for m in view.messages if m != whole[m.id]} == shortened
    gone = sum(left.messages for left in view.left_out)
    assert gone + len(view.messages) == len(given)


@given(conversations(), budgets, strategies)
def test_nothing_is_invented(given: list[Message], budget: int, strategy: WindowStrategy) -> None:
    whole = {message.id: message for message in given}
    for shown in window(given, budget, strategy, summary).messages:
        before = whole[shown.id]
        assert (shown.role, shown.metadata) == (before.role, before.metadata)
        if shown.content != before.content and not shown.content.startswith("[tool output"):
            head, mark, _ = shown.content.rpartition("\n[… about ")
            assert mark
            assert before.content.startswith(head)


@given(conversations(), budgets, strategies)
def test_the_conversation_stays_as_it_is_and_the_same_gives_the_same(
    given: list[Message], budget: int, strategy: WindowStrategy
) -> None:
    before = to_builtins(given)
    assert window(given, budget, strategy, summary) == window(given, budget, strategy, summary)
    assert to_builtins(given) == before


@given(conversations(), budgets, strategies)
def test_a_window_on_a_window_is_the_same(
    given: list[Message], budget: int, strategy: WindowStrategy
) -> None:
    view = window(given, budget, strategy, summary)
    again = window(view.messages, budget, strategy, summary)
    assert again.messages == view.messages
    assert again.left_out == []


@given(conversations(), budgets, strategies)
def test_the_newest_user_message_is_always_there(
    given: list[Message], budget: int, strategy: WindowStrategy
) -> None:
    users = [message.id for message in given if message.role == "user"]
    assert set(users[-1:]) <= set(ids(window(given, budget, strategy, summary)))


@given(conversations(), budgets, strategies)
def test_a_call_and_its_answer_are_never_separated(
    given: list[Message], budget: int, strategy: WindowStrategy
) -> None:
    there = set(ids(window(given, budget, strategy, summary)))
    by_call: dict[str, str] = {}
    caller: str | None = None
    for each in given:
        if each.role == "tool" and (
            owner := by_call.get(each.metadata.get("tool_call_id", ""), caller)
        ):
            assert (each.id in there) == (owner in there)
        elif each.tool_calls and each.role != "user":
            caller = each.id
            by_call |= {call["id"]: each.id for call in each.tool_calls if isinstance(call, dict)}


def many(count: int) -> list[Message]:
    return [message(f"m{place}", content=WORD * 20) for place in range(count)]


def test_what_fits_is_shown_whole_by_every_strategy() -> None:
    given = [message("a", content="hello"), message("b", "assistant", parts=[tool("p", "x" * 50)])]
    for strategy in WINDOW_STRATEGIES:
        assert window(given, 1000, strategy, summary) == View(
            given, [], sum(map(tokens.of_message, given))
        )


def test_recent_keeps_the_newest_and_tells_the_rest_as_one_run() -> None:
    given = many(10)
    each = tokens.of_message(given[0])
    view = window(given, 3 * each, "recent")
    assert ids(view) == ["m7", "m8", "m9"]
    (left,) = view.left_out
    assert (left.reason, left.first, left.last) == ("older", "m0", "m6")
    assert (left.messages, left.tokens) == (7, 7 * each)


def test_pinned_keeps_system_messages_and_what_is_pinned() -> None:
    given = many(10)
    given[0] = structs.replace(given[0], role="system")
    given[4] = structs.replace(given[4], metadata={"pinned": True})
    each = tokens.of_message(given[1])
    assert ids(window(given, 4 * each, "pinned")) == ["m0", "m4", "m8", "m9"]
    assert ids(window(given, 4 * each, "recent")) == ["m6", "m7", "m8", "m9"]


def test_what_is_pinned_and_larger_than_the_room_does_not_push_out_the_recent() -> None:
    given = many(4)
    given[0] = message("m0", "system", WORD * 500)
    assert ids(window(given, 3 * tokens.of_message(given[1]), "pinned")) == ["m1", "m2", "m3"]


def test_tools_leaves_out_large_outputs_first_the_oldest_first() -> None:
    large, small = WORD * 300, WORD * 5
    given = [
        message("a", "assistant", parts=[tool("p1", large), tool("p2", small)]),
        message("b", "assistant", parts=[tool("p3", large)]),
        message("c", content="go on"),
    ]
    size = tokens.of_text(large)
    view = window(given, sum(map(tokens.of_message, given)) - 100, "tools")
    assert ids(view) == ["a", "b", "c"]
    first, second = (view.messages[0].parts or [])[:2]
    assert first["state"]["output"] == output_stub(size)
    assert first["state"]["input"] == {"file": "a.py"}
    assert second == tool("p2", small)
    assert view.messages[1] == given[1]
    (left,) = view.left_out
    assert (left.reason, left.first, left.messages, left.parts) == ("tool-output", "a", 0, ["p1"])
    assert size >= left.tokens >= size - LARGE_OUTPUT


def test_tools_goes_on_as_recent_when_that_is_not_enough() -> None:
    given = [*many(10), message("t", "tool", WORD * 300), message("last", content="go on")]
    view = window(given, 100, "tools")
    assert ids(view)[-2:] == ["t", "last"]
    assert [left.reason for left in view.left_out] == ["older", "tool-output"]


def test_a_message_larger_than_the_window_is_cut_for_all_to_see() -> None:
    given = [message("a", content=WORD * 1000)]
    view = window(given, 100)
    (shown,) = view.messages
    head, _, mark = shown.content.partition("\n[")
    assert head == given[0].content[: len(head)] != ""
    assert "[" + mark == cut_mark(tokens.of_text(given[0].content) - tokens.of_text(head))[1:]
    assert view.left_out[0].reason == "too-large"
    assert 80 <= view.tokens <= 100


def test_an_answer_is_found_by_its_call_also_behind_another_message() -> None:
    given = [
        message("call", "assistant", "look", tool_calls=[{"id": "c1"}]),
        *many(3),
        message("answer", "tool", "found", metadata={"tool_call_id": "c1"}),
    ]
    each = tokens.of_message(given[1])
    assert ids(window(given, 2 * each + 20)) == ["call", "m1", "m2", "answer"]


def test_summary_stands_for_what_is_older_within_the_budget() -> None:
    asked: list[tuple[int, int]] = []

    def summarise(older: list[Message], room: int) -> str:
        asked.append((len(older), room))
        return "they talked"

    view = window(many(20), 200, "summary", summarise)
    assert view.summary == "they talked"
    ((older, room),) = asked
    assert older == 20 - len(view.messages) > 0
    assert room >= 50
    assert [left.reason for left in view.left_out] == ["summarised"]


def fails(older: list[Message], room: int) -> str:
    raise OSError


@pytest.mark.parametrize(
    "summarise", [fails, lambda *_: WORD * 999, lambda *_: None, lambda *_: ""]
)
def test_a_summary_that_fails_or_is_too_long_leaves_a_window_without_one(summarise: Any) -> None:
    view = window(many(20), 200, "summary", summarise)
    assert not view.summary
    assert {left.reason for left in view.left_out} == {"older"}


def test_too_small_a_window_and_a_missing_function_are_refused() -> None:
    with pytest.raises(InvalidInput, match="63 tokens is too small"):
        window([], LEAST_TOKENS - 1)
    with pytest.raises(InvalidInput, match="no function is configured"):
        window([], LEAST_TOKENS, "summary")
