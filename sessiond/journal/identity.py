"""Who writes: a word for each incarnation of this machine's journal.

An incarnation's sequences are given away once. It goes on only where it is sure that nobody else
has been given them: in the life of the process in which it began, and in those in which Redis was
asked and knew of none that the journal does not know. Else, and after damage, a new one begins.
So a journal that was restored from a backup never takes what Redis has for its own, however often
it is started before it reaches Redis.
"""

from __future__ import annotations

from sessiond.journal.connection import Connection, insert
from sessiond.journal.options import JournalOptions
from sessiond.journal.record import Identity, sealed

NEW = "new"
DAMAGED = "damaged"
OLDER = "older copy"
NOT_COMPARED = "not compared with Redis"
"""Why an incarnation began."""

_INCARNATION_BYTES = 6


def add_identity(connection: Connection, options: JournalOptions, reason: str) -> Identity:
    """Begin a new incarnation, in the connection's transaction."""
    (last,) = connection.execute("SELECT max(number) FROM identities").fetchone()
    incarnation = options.entropy(_INCARNATION_BYTES).hex()
    identity = Identity((last or 0) + 1, incarnation, options.clock(), reason)
    columns = (identity.number, incarnation, identity.at_ms, reason)
    insert(connection, "identities", [sealed("identities", *columns)])
    return identity
