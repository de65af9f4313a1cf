"""Every error of sessiond: one short hierarchy with stable codes.

A code never changes once released: programs match on it. What HTTP status or exit code an
error becomes is decided elsewhere (`api/problems.py`, `cli/exits.py`).
"""

from __future__ import annotations

from typing import ClassVar


class SessiondError(Exception):
    """Base of all errors.

    Args:
        detail: what happened, in one sentence.
        hint: what to do next, in one sentence; may be empty.
    """

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    temporary: ClassVar[bool] = False

    def __init__(self, detail: str, *, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.detail} ({self.hint})" if self.hint else self.detail


class InvalidInput(SessiondError):
    """The request itself is wrong; sending it again unchanged will fail again."""

    code = "invalid-input"
    title = "Invalid input"


class TooLarge(InvalidInput):
    """A body, a batch or a field is over its limit."""

    code = "too-large"
    title = "Too large"


class IncompleteBody(InvalidInput):
    """A body that did not arrive, or stopped being one."""

    code = "incomplete-body"
    title = "Incomplete body"


class UnsupportedMediaType(InvalidInput):
    """A body that is not declared as JSON."""

    code = "unsupported-media-type"
    title = "Unsupported media type"


class MethodNotAllowed(InvalidInput):
    """The path exists, but not for this method."""

    code = "method-not-allowed"
    title = "Method not allowed"


class ExpectationFailed(InvalidInput):
    """An Expect header that asks for something else than 100-continue."""

    code = "expectation-failed"
    title = "Expectation failed"


class Unauthenticated(SessiondError):
    """No token, or a wrong one."""

    code = "unauthenticated"
    title = "Unauthenticated"


class Forbidden(SessiondError):
    """The caller is known but may not do this."""

    code = "forbidden"
    title = "Forbidden"


class NotFound(SessiondError):
    """No such session, message, part, document or route."""

    code = "not-found"
    title = "Not found"


class SessionDeleted(SessiondError):
    """The session was deleted; its id is not used again."""

    code = "session-deleted"
    title = "Session deleted"


class VersionMismatch(SessiondError):
    """The version a change was based on is no longer the current one."""

    code = "version-mismatch"
    title = "Version mismatch"


class Contended(SessiondError):
    """A change without a stated version kept losing against others and gave up."""

    code = "contended"
    title = "Too much contention"
    temporary = True


class CleanupHeld(SessiondError):
    """Another daemon cleans up at this moment, or took over from this one."""

    code = "cleanup-held"
    title = "Another daemon cleans up"
    temporary = True


class AlreadyExists(SessiondError):
    """The id is taken by something with other content."""

    code = "already-exists"
    title = "Already exists"


class SequenceReused(SessiondError):
    """A writer used one of its sequence numbers for two different operations."""

    code = "sequence-reused"
    title = "Sequence reused"


class Superseded(SessiondError):
    """An operation arrived after a later one of the same writer and was not applied."""

    code = "superseded"
    title = "Superseded"


class DatabaseUnreadable(SessiondError):
    """opencode's database cannot be read now: missing, busy, damaged or of another version."""

    code = "opencode-database-unreadable"
    title = "opencode's database cannot be read"
    temporary = True


class InstanceGone(SessiondError):
    """An attached opencode process went away, or does not answer."""

    code = "instance-gone"
    title = "Instance gone"
    temporary = True


class StoreUnavailable(SessiondError):
    """Redis did not answer in time. The operation may or may not have been applied.

    Retrying with the same ids or the same Idempotency-Key is safe.
    """

    code = "store-unavailable"
    title = "Store unavailable"
    temporary = True


class StoreFull(StoreUnavailable):
    """Redis takes no writes, because its memory or its disk is full; it still answers reads."""

    code = "store-full"
    title = "Store full"


class StoreWentBack(StoreUnavailable):
    """Redis does not have what it confirmed to this process before. Nothing was written now.

    The next try is taken. A daemon first writes again what was lost.
    """

    code = "store-went-back"
    title = "Store went back"


class ReplicaUnavailable(SessiondError):
    """The copies of sessions on this machine's disk cannot be read or written now."""

    code = "replica-unavailable"
    title = "Replica unavailable"
    temporary = True


class JournalUnavailable(SessiondError):
    """The journal's disk is full, or fails. Nothing was acknowledged that is not durable.

    Where syncing itself failed, the write may still turn out to be there after a crash: retrying
    with the same Idempotency-Key is safe.
    """

    code = "journal-unavailable"
    title = "Journal unavailable"
    temporary = True


class JournalFull(SessiondError):
    """As much waits for Redis as the journal may hold."""

    code = "journal-full"
    title = "Journal full"
    temporary = True


class SlowSubscriberCut(SessiondError):
    """A subscriber did not take its events in time; it may come back and resume."""

    code = "slow-subscriber"
    title = "Slow subscriber cut"
    temporary = True


class StoreDamaged(SessiondError):
    """Something in Redis is not what sessiond wrote there."""

    code = "store-damaged"
    title = "Store damaged"

    def __init__(
        self,
        detail: str,
        *,
        hint: str = "`sessiond doctor --scan` tells what is damaged, `sessiond repair` mends it",
    ) -> None:
        super().__init__(detail, hint=hint)


class SessionInUse(SessiondError):
    """Somebody is at the session, or was a moment ago: it is not archived now."""

    code = "session-in-use"
    title = "Session in use"


class ArchiveUnavailable(SessiondError):
    """The session is archived, and its archive cannot be read or written here and now."""

    code = "archive-unavailable"
    title = "Archive unavailable"
    temporary = True


class ArchiveDamaged(StoreDamaged):
    """The archive of a session is not what was written."""

    code = "archive-damaged"
    title = "Archive damaged"


class ConfigurationError(SessiondError):
    """The configuration, or the machine it meets, does not allow a start."""

    code = "configuration"
    title = "Configuration error"


class StoreRefusesUser(ConfigurationError):
    """Redis refuses our user, or a command to it."""

    code = "store-refuses-user"
    title = "Redis refuses the user"


class FolderHeld(ConfigurationError):
    """Another daemon owns the data folder."""

    code = "folder-held"
    title = "Data folder in use"


class EmbeddedServerFailed(SessiondError):
    """The embedded Redis server did not start or would not stop."""

    code = "embedded-server-failed"
    title = "Embedded server failed"


class DaemonUnreachable(SessiondError):
    """No daemon answers at the local API's address."""

    code = "daemon-unreachable"
    title = "Daemon unreachable"
    temporary = True


def _all_errors(base: type[SessiondError]) -> list[type[SessiondError]]:
    return [base, *(found for child in base.__subclasses__() for found in _all_errors(child))]


BY_CODE: dict[str, type[SessiondError]] = {
    error.code: error for error in _all_errors(SessiondError)
}
"""Code → class, for clients that rebuild an error from a problem document."""
