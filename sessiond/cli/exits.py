"""Exit codes: the one table. The README shows it."""

from __future__ import annotations

from sessiond import errors

OK = 0
FAILED = 1
USAGE = 2
CONFLICT = 9
DAMAGED = 12
INTERRUPTED = 130

_CODES: dict[type[errors.SessiondError], tuple[int, str]] = {
    errors.InvalidInput: (3, "invalid input"),
    errors.ConfigurationError: (4, "configuration, or another daemon holds the folder"),
    errors.EmbeddedServerFailed: (5, "the embedded Redis server failed"),
    errors.StoreUnavailable: (6, "Redis does not answer, or is full"),
    errors.ReplicaUnavailable: (6, "Redis does not answer, or is full"),
    errors.StoreDamaged: (DAMAGED, "what was checked is damaged"),
    errors.DaemonUnreachable: (7, "no daemon answers"),
    errors.NotFound: (8, "not found, or deleted"),
    errors.SessionDeleted: (8, "not found, or deleted"),
    errors.VersionMismatch: (CONFLICT, "conflict: a version or an id is taken"),
    errors.AlreadyExists: (CONFLICT, "conflict: a version or an id is taken"),
    errors.SessionInUse: (13, "the session is in use"),
    errors.ArchiveUnavailable: (14, "the archive cannot be read or written"),
    errors.ArchiveDamaged: (12, "what was checked is damaged"),
    errors.CleanupHeld: (15, "another daemon does it at this moment"),
    errors.Unauthenticated: (10, "refused: token or permission"),
    errors.Forbidden: (10, "refused: token or permission"),
    errors.JournalUnavailable: (11, "the journal's disk, or the journal itself, is full"),
    errors.JournalFull: (11, "the journal's disk, or the journal itself, is full"),
}


def exit_code(error: errors.SessiondError) -> int:
    """Return the exit code of an error: that of its nearest class in the table, else 1."""
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind][0]
    return FAILED


def table() -> list[tuple[int, str]]:
    """Return every exit code and its meaning, in order."""
    fixed = [
        (OK, "done"),
        (FAILED, "an unexpected error"),
        (USAGE, "wrong use of the command line"),
        (DAMAGED, "what was checked is damaged"),
        (INTERRUPTED, "interrupted with Ctrl-C"),
    ]
    return sorted({*fixed, *_CODES.values()})
