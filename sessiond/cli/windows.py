"""`sessiond show ID --window`: what of a conversation fits a model's context, for people."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from sessiond.cli.terminal import one_line, paint, plain
from sessiond.model import WINDOW_STRATEGIES, LeftOut, LeftOutReason, Window

_WHY: dict[LeftOutReason, str] = {
    "older": "older than what fits",
    "summarised": "summarised above",
    "tool-output": "large tool outputs left out",
    "too-large": "larger than the window: cut",
}


def add_window_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that ask for a window."""
    parser.add_argument(
        "--window", action="store_true", help="only what fits a context window, and what does not"
    )
    parser.add_argument("--tokens", type=int, metavar="N", help="size of the window")
    parser.add_argument("--strategy", choices=WINDOW_STRATEGIES, help="what the window keeps")


def asks_for_window(options: argparse.Namespace) -> bool:
    """Tell whether any of them was given."""
    return bool(options.window or options.tokens is not None or options.strategy)


def window_lines(window: Window) -> Iterator[str]:
    """Yield what a window is, and what it leaves out."""
    shown = f"{len(window.messages)} of {window.total_messages} messages"
    yield f"{paint('window'.ljust(14), 'dim')} {shown}, strategy {window.strategy}"
    yield f"{paint('tokens'.ljust(14), 'dim')} about {window.tokens} of {window.budget}"
    for left in window.left_out:
        yield f"{paint('left out'.ljust(14), 'dim')} {_left_out(left)}"
    if window.summary:
        yield f"{paint('summary'.ljust(14), 'dim')} {plain(window.summary)}"


def _left_out(left: LeftOut) -> str:
    which = left.first if left.first == left.last else f"{left.first} … {left.last}"
    what = f"{left.messages} messages" if left.messages else "a part"
    return one_line(f"{what} ({which}), about {left.tokens} tokens: {_WHY[left.reason]}")
