"""Printing for people: colours on a terminal only, tables, and JSON for programs."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TextIO

import msgspec

_CODES = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36", "dim": "2"}


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return the text in a colour, if the stream is a terminal and NO_COLOR is not set."""
    stream = stream or sys.stdout
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


def as_json(value: Any) -> str:
    """Return a value as indented JSON, with nothing in it that could move a terminal."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return "".join(c if c == "\n" or c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(as_json(value))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns that fit their content."""
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    for index, row in enumerate([headings, *rows]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(paint(line.rstrip(), "dim") if index == 0 else line.rstrip())


def local_time(moment: datetime) -> str:
    """Return a moment as the clock on the wall shows it."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def plain(text: str) -> str:
    """Return text from elsewhere without the control characters that could move a terminal."""
    return "".join(c if _is_harmless(c) else "\ufffd" for c in text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return text from elsewhere as one line."""
    return " ".join(plain(text).split("\n"))


def _is_harmless(character: str) -> bool:
    if character in "\n\t\u200d":  # the last one joins emoji
        return True
    return character.isprintable() or unicodedata.category(character) == "Zs"
