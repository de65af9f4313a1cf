"""What happened to the files of sessions that people should know of: logged, kept to be shown."""

from __future__ import annotations

from collections import deque
from typing import Literal

import structlog

from sessiond.service.clock import Clock, timestamp
from sessiond.service.status import FileProblem

_KEPT = 100

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Incidents:
    """The newest incidents since this process began.

    Args:
        clock: milliseconds since 1970.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: deque[FileProblem] = deque(maxlen=_KEPT)

    @property
    def recent(self) -> list[FileProblem]:
        """The newest 100, oldest first."""
        return list(self._told)

    def tell(
        self,
        session_id: str,
        file: str,
        what: Literal["quarantined", "set_aside", "restored", "unknown"],
        reason: str,
        kept: str = "",
    ) -> FileProblem:
        """Tell, and return, what happened to a file, or with none to a session."""
        at = timestamp(self._clock())
        told = FileProblem(
            session_id=session_id, file=file, what=what, reason=reason, kept=kept, at=at
        )
        self._told.append(told)
        _log.warning(
            f"files.{what}",
            session_id=session_id,
            file=file or None,
            reason=reason,
            kept=kept or None,
        )
        return told
