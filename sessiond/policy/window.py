"""What of a conversation fits a window of so many tokens. Pure; the conversation stays as it is.

A window is a view: messages in their order, and an account of what it leaves out. Messages go in
*exchanges*: a message that calls tools and the `tool` messages that answer it stay together, or go
together. The newest user message is always there, cut if it alone is larger than the window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from msgspec import UNSET, Struct, UnsetType, structs

from sessiond.errors import InvalidInput
from sessiond.model import LeftOut, LeftOutReason, Message, WindowStrategy
from sessiond.policy import tokens
from sessiond.policy.shortening import cut, with_stubs

LEAST_TOKENS = 64
"""The smallest window: a cut message, and what tells that it was cut, fit it."""

Summarise: TypeAlias = Callable[[list[Message], int], str]
"""Somebody's function: the messages that a window leaves out, and the tokens it may take → text."""

_SUMMARY_SHARE = 4
"""A summary may take a quarter of the window."""


class View(Struct, frozen=True):
    """A window on a conversation.

    Attributes:
        messages: in the conversation's order.
        left_out: what is not there, or not whole, in the same order.
        tokens: about how many these messages, and the summary, take.
        summary: what stands for the messages left out, where one was made.
    """

    messages: list[Message]
    left_out: list[LeftOut]
    tokens: int
    summary: str | UnsetType = UNSET


class _Exchange(Struct):
    """Messages that stay together: their places in the conversation, and their tokens."""

    places: list[int]
    tokens: int


def window(
    messages: Sequence[Message],
    budget: int,
    strategy: WindowStrategy = "recent",
    summarise: Summarise | None = None,
) -> View:
    """Return what of a conversation fits.

    Args:
        messages: the conversation.
        budget: tokens that the view may take.
        strategy: `recent` keeps the newest exchanges; `pinned` before them those with a system
            message or one with `metadata.pinned`; `tools` first leaves out large tool outputs, the
            oldest first; `summary` is `recent` with a summary of what is older.
        summarise: makes it.

    Raises:
        InvalidInput: the budget is below LEAST_TOKENS, or there is no one to summarise.
    """
    if budget < LEAST_TOKENS:
        raise InvalidInput(
            f"a window of {budget} tokens is too small", hint=f"ask for at least {LEAST_TOKENS}"
        )
    if strategy == "summary" and summarise is None:
        raise InvalidInput(
            "no function is configured that summarises",
            hint="name one in performance.context_window_summary, or choose another strategy",
        )
    sizes = [tokens.of_message(message) for message in messages]
    if sum(sizes) <= budget:
        return View(list(messages), [], sum(sizes))
    match strategy:
        case "tools":
            return _without_outputs(messages, sizes, budget)
        case "summary" if summarise:
            return _summarised(messages, sizes, budget, summarise)
        case _:
            return _recent(messages, sizes, budget, pinned=strategy == "pinned")


def _recent(
    messages: Sequence[Message], sizes: Sequence[int], budget: int, *, pinned: bool = False
) -> View:
    """Keep the newest exchanges, and before them what must not be missing."""
    exchanges = _exchanges(messages, sizes)
    kept: dict[int, Message] = {}
    cuts: list[LeftOut] = []
    room = budget
    newest = _newest_user(messages)
    for exchange in _by_importance(exchanges, messages, newest, pinned=pinned):
        places = exchange.places
        if exchange.tokens <= room:
            kept |= {place: messages[place] for place in places}
            room -= exchange.tokens
        elif places == [newest] or (not kept and len(places) == 1):
            shorter = cut(messages[places[0]], room)
            kept[places[0]] = shorter
            room -= tokens.of_message(shorter)
            cuts.append(_shortened(messages[places[0]], shorter))
        elif not (pinned and _is_pinned(exchange, messages)):
            break  # what is older than this would stand without what came after it
    return _view(messages, sizes, kept, cuts)


def _without_outputs(messages: Sequence[Message], sizes: Sequence[int], budget: int) -> View:
    """Put stubs in the place of large tool outputs, the oldest first, until all the rest fits."""
    shortened = list(messages)
    stubs: list[LeftOut] = []
    excess = sum(sizes) - budget
    for place, message in enumerate(messages):
        if excess <= 0:
            break
        shorter, ids = with_stubs(message)
        saved = sizes[place] - tokens.of_message(shorter)
        if saved > 0:
            shortened[place] = shorter
            excess -= saved
            stubs.append(_shortened(message, shorter, "tool-output", ids))
    smaller = [tokens.of_message(message) for message in shortened]
    if excess <= 0:
        return View(shortened, stubs, sum(smaller))
    view = _recent(shortened, smaller, budget)
    there = {message.id for message in view.messages}
    left_out = [*view.left_out, *(stub for stub in stubs if stub.first in there)]
    places = {message.id: place for place, message in enumerate(messages)}
    return structs.replace(view, left_out=sorted(left_out, key=lambda left: places[left.first]))


def _summarised(
    messages: Sequence[Message], sizes: Sequence[int], budget: int, summarise: Summarise
) -> View:
    """Keep the newest exchanges, and let somebody else's function say what is before them."""
    share = budget // _SUMMARY_SHARE
    room = max(budget - share, LEAST_TOKENS)
    view = _recent(messages, sizes, room)
    there = {message.id for message in view.messages}
    older = [message for message in messages if message.id not in there]
    if not older or budget - room <= 0:
        return view
    text = _asked(summarise, older, budget - view.tokens)
    if text is None:
        return view
    left_out = [
        structs.replace(left, reason="summarised") if left.reason == "older" else left
        for left in view.left_out
    ]
    return View(view.messages, left_out, view.tokens + tokens.of_text(text), text)


def _asked(summarise: Summarise, older: list[Message], room: int) -> str | None:
    """Return a summary; None when the function fails, or its text is too long, or none."""
    try:
        text: Any = summarise(older, room)
        return text if isinstance(text, str) and text and tokens.of_text(text) <= room else None
    except Exception:  # noqa: BLE001  # whatever it does, there is a window
        return None


def _exchanges(messages: Sequence[Message], sizes: Sequence[int]) -> list[_Exchange]:
    """Return the conversation's exchanges, in the order of their beginnings.

    A `tool` message belongs to the call whose id it names (`metadata.tool_call_id`), else to the
    last message that called a tool; without any, it stands alone.
    """
    exchanges: list[_Exchange] = []
    by_call: dict[str, _Exchange] = {}
    caller: _Exchange | None = None
    for place, message in enumerate(messages):
        named = message.metadata.get("tool_call_id")
        owner = by_call.get(named, caller) if isinstance(named, str) else caller
        if message.role == "tool" and owner:
            owner.places.append(place)
            owner.tokens += sizes[place]
            continue
        exchange = _Exchange([place], sizes[place])
        exchanges.append(exchange)
        if message.tool_calls and message.role != "user":
            caller = exchange
            by_call |= dict.fromkeys(_call_ids(message), exchange)
    return exchanges


def _call_ids(message: Message) -> Iterator[str]:
    for call in message.tool_calls:
        if isinstance(call, dict) and isinstance(call.get("id"), str):
            yield call["id"]


def _by_importance(
    exchanges: list[_Exchange], messages: Sequence[Message], newest: int | None, *, pinned: bool
) -> Iterator[_Exchange]:
    """Yield the newest user message, what is pinned where that counts, then all from the newest."""
    from_newest = sorted(exchanges, key=lambda exchange: exchange.places[-1], reverse=True)
    first = [exchange for exchange in from_newest if newest in exchange.places]
    yield from first
    rest = [exchange for exchange in from_newest if exchange not in first]
    if pinned:
        yield from (exchange for exchange in rest if _is_pinned(exchange, messages))
        rest = [exchange for exchange in rest if not _is_pinned(exchange, messages)]
    yield from rest


def _is_pinned(exchange: _Exchange, messages: Sequence[Message]) -> bool:
    members = (messages[place] for place in exchange.places)
    return any(
        message.role == "system" or message.metadata.get("pinned") is True for message in members
    )


def _newest_user(messages: Sequence[Message]) -> int | None:
    places = (place for place in reversed(range(len(messages))) if messages[place].role == "user")
    return next(places, None)


def _view(
    messages: Sequence[Message],
    sizes: Sequence[int],
    kept: dict[int, Message],
    cuts: Iterable[LeftOut],
) -> View:
    by_id = {left.first: left for left in cuts}
    left_out: list[LeftOut] = []
    is_gap = False
    for place, message in enumerate(messages):
        if place not in kept:
            last = left_out.pop() if is_gap else None
            left_out.append(_one_more(last, message.id, sizes[place]))
        elif message.id in by_id:
            left_out.append(by_id[message.id])
        is_gap = place not in kept
    shown = [kept[place] for place in sorted(kept)]
    return View(shown, left_out, sum(map(tokens.of_message, shown)))


def _one_more(before: LeftOut | None, message_id: str, size: int) -> LeftOut:
    """Return the account of a run of messages left out, with one more at its end."""
    if before is None:
        return LeftOut(reason="older", first=message_id, last=message_id, messages=1, tokens=size)
    return structs.replace(
        before, last=message_id, messages=before.messages + 1, tokens=before.tokens + size
    )


def _shortened(
    whole: Message,
    shorter: Message,
    reason: LeftOutReason = "too-large",
    parts: Sequence[str] = (),
) -> LeftOut:
    return LeftOut(
        reason=reason,
        first=whole.id,
        last=whole.id,
        messages=0,
        tokens=max(tokens.of_message(whole) - tokens.of_message(shorter), 0),
        parts=list(parts) or UNSET,
    )
