"""Which sessions a project has in one opencode database, which are shared, and how far each is."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from sessiond.opencode.database import Database
from sessiond.opencode.records import SessionRow
from sessiond.opencode.saved import Cursor, SavedShare
from sessiond.service.opencode.reading import Read
from sessiond.sync.position import START, Position

_NEVER_SEEN = -1
_MISSING_SECONDS = 5.0


class Sighting(Struct, frozen=True):
    """What changed since the last look.

    `grown`: sessions whose log grew. `deleted`: sessions that somebody here deleted. `missing`:
    sessions that are here no more for a while, though nobody deleted them. `went_back`: the
    database is another one, or an older one, than it was.
    """

    grown: list[str]
    deleted: set[str]
    missing: list[str]
    went_back: bool


class _Found(Struct, frozen=True):
    """What a look at the database found; `returned` are sessions noted as deleted."""

    identity: str
    notes: dict[str, set[str]]
    rows: dict[str, SessionRow]
    returned: set[str]


class Catalogue:
    """The sessions of one project in one database.

    Args:
        saved: what is remembered of them over restarts.
        read: how to read the database.
        save: writes down what is to be remembered.
        seconds: a clock that is never set.
    """

    def __init__(
        self,
        saved: SavedShare,
        read: Read,
        save: Callable[[SavedShare], None],
        seconds: Callable[[], float],
    ) -> None:
        self.saved = saved
        self.rows: dict[str, SessionRow] = {}
        self.returned: set[str] = set()
        """Sessions that somebody here deleted, and that were brought in again all the same."""
        self._read = read
        self._save = save
        self._seconds = seconds
        self._absent: dict[str, float] = {}  # sessions nobody knows about → missed since when
        self._changed = False
        self._notes: dict[str, set[str]] = {"private": set(), "deleted": set()}

    async def look(self) -> Sighting:
        """See which sessions there are.

        Only what opencode's plugin noted as deleted counts as deleted. A session may also be
        missing because a backup took the place of the database. The plugin's note comes a moment
        after the deletion: what is not noted is only called missing when it is so for a while.

        Raises:
            DatabaseUnreadable: nothing can be said now.
        """
        found = await self._read(self._found)
        known = {name for name in self.rows if self.is_shared(name)}
        before, self.rows, self._notes = self.rows, found.rows, found.notes
        went_back = self._went_back(found.identity)
        if went_back:  # what is not in it is brought in at once, by comparing everything
            known.clear()
            self._absent.clear()
            self.saved.cursors.clear()
            self.saved.written.clear()
        self._changed |= found.identity != self.saved.identity
        self.saved.identity = found.identity
        self.returned = {name for name in found.returned if not self.is_private(name)}
        deleted, missing = self._gone(known)
        for name, row in self.rows.items():
            if name in self.saved.cursors:
                self.saved.cursors[name].seq = row.seq
        seqs = {name: row.seq for name, row in before.items()}
        return Sighting(
            grown=[name for name, row in self.rows.items() if seqs.get(name) != row.seq],
            deleted=deleted,
            missing=missing,
            went_back=went_back,
        )

    def _found(self, database: Database) -> _Found:
        rows, notes = database.sessions(self.saved.project_id), database.notes()
        noted = notes["deleted"] & rows.keys()
        returned = {name for name in noted if database.is_brought(name)}
        return _Found(database.identity(), notes, rows, returned)

    def _gone(self, known: set[str]) -> tuple[set[str], list[str]]:
        """Return what was deleted, and what is missing for long, of the sessions once here."""
        cursors, now = self.saved.cursors, self._seconds()
        seen = {name for name, cursor in cursors.items() if cursor.seq != _NEVER_SEEN}
        gone = (known | seen | self._absent.keys()) - self.rows.keys()
        deleted = self._notes["deleted"] & (gone | cursors.keys()) - self.rows.keys()
        self._absent = {name: self._absent.get(name, now) for name in gone - deleted}
        missing = [name for name, at in self._absent.items() if now - at >= _MISSING_SECONDS]
        for name in missing:
            del self._absent[name]
        return deleted, missing

    @property
    def is_waiting(self) -> bool:
        """Whether another look is due though nothing changes: some sessions may be missing."""
        return bool(self._absent)

    def is_unsettled(self, session_id: str) -> bool:
        """Tell whether a session vanished just now, so that nobody knows yet what that means."""
        return session_id in self._absent

    def is_deleted(self, session_id: str) -> bool:
        """Tell whether somebody here deleted a session: nothing of it comes in, or goes out."""
        return session_id in self._notes["deleted"]

    def is_private(self, session_id: str) -> bool:
        """Tell whether nothing of a session may leave this machine, or come to it."""
        noted = session_id in self._notes["private"] and session_id not in self.saved.public
        return noted or session_id in self.saved.private

    def is_shared(self, session_id: str) -> bool:
        """Tell whether a session in the database is to be shared."""
        row = self.rows.get(session_id)
        if row is None or self.is_private(session_id) or self.is_deleted(session_id):
            return False
        known = self.saved.imported or session_id in self.saved.cursors
        return known or row.updated_ms >= self.saved.since_ms

    def shared_before(self) -> set[str]:
        """Return the sessions in the database that were shared when it was last looked at."""
        known = self.saved.cursors.keys() & self.rows.keys()
        return {session_id for session_id in known if not self.is_private(session_id)}

    def position(self, session_id: str) -> Position:
        """Return up to where a session's log is in the database, as far as is remembered."""
        return self.seen(session_id) if session_id in self.rows else START

    def seen(self, session_id: str) -> Position:
        """Return up to where a session's log was in the database, also of one that is gone."""
        cursor = self.saved.cursors.get(session_id)
        return cursor.position if cursor else START

    def distrust_positions(self) -> None:
        """Have every session compared anew: what lies in the database may be out of date."""
        for session_id in self.saved.cursors:
            self.distrust(session_id)

    def distrust(self, session_id: str) -> None:
        """Have a session compared anew, also by a sidecar that is started later."""
        cursor = self.saved.cursors.get(session_id)
        if cursor:
            cursor.epoch, cursor.offset = "", 0
            self._changed = True

    def note(self, session_id: str, position: Position) -> None:
        """Remember that a session's log is in the database up to a position."""
        row = self.rows.get(session_id)
        seq = row.seq if row else _NEVER_SEEN
        self.saved.cursors[session_id] = Cursor(position.epoch, position.offset, seq)
        self._changed = True

    def note_progress(self) -> None:
        """Take note that more of what `saved.written` tells was written."""
        self._changed = True

    def forget(self, session_id: str) -> None:
        """Forget a session that is gone, when everybody knows."""
        self.saved.cursors.pop(session_id, None)
        self.saved.written.pop(session_id, None)
        self._changed = True

    def include_older(self) -> None:
        """Share the sessions from before sharing began, too."""
        self.saved.imported = True
        self._changed = True

    def keep_private(self, session_id: str) -> None:
        """Share a session no more."""
        if not self.is_private(session_id):
            self.saved.private.append(session_id)
        self.saved.public = [name for name in self.saved.public if name != session_id]
        self._changed = True

    def include(self, session_id: str) -> None:
        """Share a session, from its beginning."""
        self.saved.private = [name for name in self.saved.private if name != session_id]
        if session_id in self._notes["private"] and session_id not in self.saved.public:
            self.saved.public.append(session_id)
        self.saved.cursors.setdefault(session_id, Cursor("", 0, _NEVER_SEEN))
        self._changed = True

    def save(self) -> None:
        """Write down what is to be remembered, if it changed."""
        if self._changed:
            self._changed = False
            self._save(self.saved)

    def _went_back(self, identity: str) -> bool:
        """Tell whether the database is another one, or an older one, than it was."""
        if self.saved.identity not in ("", identity):
            return True
        cursors = self.saved.cursors.items()
        return any(name in self.rows and self.rows[name].seq < one.seq for name, one in cursors)
