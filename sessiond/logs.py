"""Logging: one line per event, dotted names in the past tense, and only keys that are listed.

The list stands at the end of the chain: whatever a caller passes, bodies of messages, tokens
and passwords have no key to come out through.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from sessiond.config import DebugOptions

_ALLOWED = frozenset(
    {
        "event",
        "level",
        "timestamp",
        "exception",
        "address",
        "adopted",
        "archived",
        "binary",
        "bytes",
        "client",
        "code",
        "count",
        "damaged",
        "delay_s",
        "deleted",
        "directory",
        "duplicate",
        "duration_ms",
        "error",
        "exit_code",
        "file",
        "forgotten",
        "hint",
        "id",
        "instance",
        "key",
        "key_file",
        "left",
        "method",
        "milliseconds",
        "namespace",
        "offset",
        "op",
        "operations",
        "origin",
        "pid",
        "policy",
        "port",
        "position",
        "reason",
        "restarts",
        "route",
        "seconds",
        "server",
        "session_id",
        "sessions",
        "signal",
        "socket",
        "status",
        "subscribers",
        "timeout_s",
        "url",
        "version",
        "wanted",
        "workspace",
    }
)
_LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error")}


class _Lossy:
    """A stream that drops what cannot be written: a full disk must not stop what is told of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write, or drop it."""
        with suppress(OSError, ValueError):  # full, or closed
            self._stream.write(text)

    def flush(self) -> None:
        """Hand over what was written, or drop it."""
        with suppress(OSError, ValueError):
            self._stream.flush()


class Logs:
    """The log of one process; its level can change while it runs."""

    def __init__(self, options: DebugOptions) -> None:
        self.level = options.log_level
        console = options.log_format == "console" or (
            options.log_format == "auto" and sys.stderr.isatty()
        )
        structlog.configure(
            processors=[
                self._above_level,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                _only_allowed,
                _renderer(console=console),
            ],
            logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Lossy(sys.stderr))),
        )
        self.logger: FilteringBoundLogger = structlog.get_logger()

    def _above_level(self, _logger: Any, name: str, event: EventDict) -> EventDict:
        if _LEVELS.get(name, logging.ERROR) < _LEVELS[self.level]:
            raise structlog.DropEvent
        return event


def _renderer(*, console: bool) -> Processor:
    if console:
        return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    return structlog.processors.JSONRenderer()


def _only_allowed(_logger: Any, _name: str, event: EventDict) -> EventDict:
    return {name: value for name, value in event.items() if name in _ALLOWED}
