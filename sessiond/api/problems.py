"""Errors as problem documents (RFC 9457): the one place where an error gets an HTTP status."""

from __future__ import annotations

from msgspec import UNSET

from sessiond import errors
from sessiond.codec.json import encode
from sessiond.model import Problem

CONTENT_TYPE = "application/problem+json"

_STATUS: dict[type[errors.SessiondError], int] = {
    errors.InvalidInput: 400,
    errors.ConfigurationError: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.AlreadyExists: 409,
    errors.Contended: 409,
    errors.CleanupHeld: 409,
    errors.SequenceReused: 409,
    errors.Superseded: 409,
    errors.SessionInUse: 409,
    errors.SessionDeleted: 410,
    errors.VersionMismatch: 412,
    errors.TooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.ExpectationFailed: 417,
    errors.StoreDamaged: 502,
    errors.StoreRefusesUser: 502,
    errors.DatabaseUnreadable: 502,
    errors.InstanceGone: 410,
    errors.StoreUnavailable: 503,
    errors.JournalUnavailable: 503,
    errors.StoreFull: 507,
    errors.ReplicaUnavailable: 503,
    errors.ArchiveUnavailable: 503,
    errors.JournalFull: 507,
}


def status_of(error: errors.SessiondError) -> int:
    """Return the HTTP status of an error: that of its nearest class in the table, else 500."""
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    return 500


def problem_of(error: errors.SessiondError) -> Problem:
    """Return the document that tells a client of an error."""
    return Problem(
        type=f"urn:sessiond:problem:{error.code}",
        title=error.title,
        status=status_of(error),
        detail=error.detail,
        code=error.code,
        hint=error.hint or UNSET,
        retryable=error.temporary,
    )


def problem_body(error: errors.SessiondError) -> bytes:
    """Return that document in JSON."""
    return encode(problem_of(error))
