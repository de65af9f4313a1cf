"""A scan of all that is kept of sessions: first what Redis has, then their JSON files, if any.

Files are healed as they are scanned: what is damaged is moved aside and written anew, as always.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from pathlib import Path

from sessiond.service.health.scanning import Damage, Scanner, ScanPage
from sessiond.service.mirrored.mirroring import Mirror
from sessiond.service.status import FileProblem

_FILES_PHASE = "files:"
_FILES_CURSOR = re.compile(r"files:([A-Za-z0-9_-]{0,64})", re.ASCII)

_MOVED = "it is {kept} now, and is written anew; check the disk if nobody touched the file"
_REMEDIES = {
    "rejected": "put it right, or delete it: then it is written anew",
    "damaged": "look at this folder, at .quarantine beside it, and at the disk; then scan again",
}


class WholeScan:
    """Scans sessions and their files.

    Args:
        scanner: scans what Redis has.
        mirror: keeps the files; None where there are none.
    """

    def __init__(self, scanner: Scanner, mirror: Mirror | None) -> None:
        self._scanner = scanner
        self._mirror = mirror

    async def sessions(self, session_ids: list[str]) -> ScanPage:
        """Scan these sessions.

        Raises:
            NotFound: Redis has nothing of one of them.
        """
        page = await self._scanner.sessions(session_ids)
        page.damage += await self._file_damage(session_ids)
        return page

    async def page(self, cursor: str, limit: int) -> ScanPage:
        """Scan a stretch of all sessions, or of all files, those of `limit` sessions at most.

        Raises:
            InvalidInput: the cursor is not one that a scan gave.
        """
        if self._mirror and (match := _FILES_CURSOR.fullmatch(cursor)):
            return await self._files_page(self._mirror, match[1], limit)
        page = await self._scanner.page(cursor, limit)
        if self._mirror and not page.cursor:
            page.cursor = _FILES_PHASE
        return page

    async def _files_page(self, mirror: Mirror, after: str, limit: int) -> ScanPage:
        kept = mirror.sessions()
        first = bisect_right(kept, after)
        turn = kept[first : first + limit]
        more = first + limit < len(kept)
        damage = await self._file_damage(turn)
        return ScanPage(sessions=0, damage=damage, cursor=_FILES_PHASE + turn[-1] if more else "")

    async def _file_damage(self, session_ids: list[str]) -> list[Damage]:
        if self._mirror is None:
            return []
        return [
            self._damage(self._mirror, problem)
            for session_id in session_ids
            for problem in await self._mirror.scan_session(session_id)
        ]

    def _damage(self, mirror: Mirror, problem: FileProblem) -> Damage:
        is_rejected = problem.what == "rejected"
        return Damage(
            session_id=problem.session_id,
            key=str(Path(mirror.directory, problem.session_id, problem.file)),
            finding=f"cannot be taken: {problem.reason}" if is_rejected else problem.reason,
            severity="warning" if is_rejected else "damaged",
            remedy=_REMEDIES.get(problem.what, _MOVED.format(kept=problem.kept)),
            is_file=True,
        )
