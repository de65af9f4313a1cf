"""Windows on sessions: what of a conversation fits a model's context. The log keeps all of it."""

from __future__ import annotations

import asyncio

import msgspec
from msgspec import Struct

from sessiond.errors import InvalidInput
from sessiond.model import WINDOW_STRATEGIES, Session, Window, WindowStrategy
from sessiond.policy.window import LEAST_TOKENS, Summarise, window

MOST_TOKENS = 100_000_000

_SESSION = msgspec.json.Decoder(Session)


class WindowDefaults(Struct, frozen=True):
    """What a window is when nobody says: `performance.context_window_*`."""

    tokens: int = 10_000
    strategy: WindowStrategy = "recent"
    summarise: Summarise | None = None


class Windows:
    """Computes windows; in a thread, for long conversations take a while."""

    def __init__(self, defaults: WindowDefaults) -> None:
        self._defaults = defaults

    async def of(
        self, session: bytes, budget: int | None = None, strategy: str | None = None
    ) -> Window:
        """Return a window on a session.

        Args:
            session: a `model.Session` in JSON.
            budget: tokens that the window may take.
            strategy: one of `model.WINDOW_STRATEGIES`.

        Raises:
            InvalidInput: there is no such strategy, or the budget is out of bounds.
        """
        wanted = self._wanted(budget, strategy)
        return await asyncio.to_thread(_window, session, wanted)

    def _wanted(self, budget: int | None, strategy: str | None) -> WindowDefaults:
        tokens = self._defaults.tokens if budget is None else budget
        if not isinstance(tokens, int) or not LEAST_TOKENS <= tokens <= MOST_TOKENS:
            raise InvalidInput(
                f"tokens is {tokens}, expected a whole number from {LEAST_TOKENS} to {MOST_TOKENS}"
            )
        if strategy is None:
            return msgspec.structs.replace(self._defaults, tokens=tokens)
        for known in WINDOW_STRATEGIES:
            if strategy == known:
                return WindowDefaults(tokens, known, self._defaults.summarise)
        raise InvalidInput(
            f"there is no strategy {strategy[:80]!r}",
            hint=f"it is one of {', '.join(WINDOW_STRATEGIES)}",
        )


def _window(session: bytes, wanted: WindowDefaults) -> Window:
    loaded = _SESSION.decode(session)
    messages = loaded.conversation.messages
    view = window(messages, wanted.tokens, wanted.strategy, wanted.summarise)
    return Window(
        session_id=loaded.metadata.session_id,
        strategy=wanted.strategy,
        budget=wanted.tokens,
        tokens=view.tokens,
        messages=view.messages,
        left_out=view.left_out,
        total_messages=len(messages),
        position=loaded.position,
        summary=view.summary,
    )
