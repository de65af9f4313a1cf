"""What a revert takes out of a session.

opencode only notes a revert in the session's record. With the next prompt it removes every message
from the reverted one on, also what came from others meanwhile and was never in view. The rule here:
a revert takes out what was there when it was made; what others wrote after it stays.
"""

from __future__ import annotations

from sessiond.opencode.database import Database
from sessiond.opencode.mapping import REPLAYED
from sessiond.opencode.records import Writing


def outlives_revert(database: Database, session_id: str, record_id: str, removed_at: int) -> bool:
    """Tell whether the removal of a record is not meant: it came in after the revert was made.

    A message that is older goes with all its parts, also with those that came later.

    Args:
        database: whose log tells it.
        session_id: the session.
        record_id: the message, or `<message>/<part>`.
        removed_at: the sequence of the removal.
    """
    since = database.reverted_since(session_id, removed_at)
    return since is not None and came_after(since, database.first_writing(session_id, record_id))


def came_after(since: int, first: Writing | None) -> bool:
    """Tell whether others wrote a record after a place of the log. Pure.

    Args:
        since: the place, a sequence.
        first: the record's first writing here; None when the log does not know of it.
    """
    return first is not None and first.id.startswith(REPLAYED) and first.seq > since
