"""The troubles that sessions can get into: damage, growth, conflicts, slowness.

Facts in, findings out. Each is a check with a remedy; `sessiond/troubleshooting.py` gathers the
facts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from sessiond.model import ConflictRecord
from sessiond.service.clock import timestamp
from sessiond.service.finding import Finding, failed, ok, skipped, warning
from sessiond.service.health.checks import size
from sessiond.service.health.scanning import Damage
from sessiond.sync.globs import dotted

_MUCH_RESIDENT = 512 * 1024 * 1024
_LARGE_SESSION = 64 * 1024 * 1024
_SHOWN = 3
_NOISY = 5
_SLOW_TRIP_MS = 10.0
_SLOW_SYNC_MS = 50.0
_SLOW_COMMAND_MS = 100.0
_LATE_LOOP_MS = 100.0


class Speed(Struct, frozen=True, kw_only=True):
    """How fast this daemon's surroundings are, in milliseconds; None where that is not known.

    Attributes:
        trip_ms: to Redis and back, the middle of several.
        sync_ms: until this disk has a small write, the middle of several.
        loop_ms: the most that the daemon's event loop was late within the last minute.
        slow: Redis's slow commands of the last hour: name → the longest of them.
    """

    trip_ms: float
    sync_ms: float | None
    loop_ms: float
    slow: Mapping[str, float] | None


def scan_finding(sessions: int, damage: Sequence[Damage], *, finished: bool) -> Finding:
    """Tell whether the newest sessions are whole, as far as there was time to look."""
    check = "sessions"
    damaged = sorted({each.session_id for each in damage if each.severity == "damaged"})
    if damaged:
        return failed(
            check,
            f"{len(damaged)} of the {sessions} newest are damaged: {_several(damaged)}",
            "`sessiond doctor --scan` tells what is wrong, `sessiond repair --all` what helps",
            code="store-damaged",
        )
    if not sessions:
        return ok(check, "there are none yet")
    rest = "" if finished else "; there was no time for more: sessiond doctor --scan"
    return ok(check, f"the {sessions} newest are whole{rest}")


def growth_finding(sizes: Mapping[str, int] | None) -> Finding:
    """Tell which sessions take the most memory in Redis; `sizes`: bytes by session id."""
    check = "largest"
    if sizes is None:
        return skipped(check, "how much memory a session takes is not told to this user")
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:_SHOWN]
    text = ", ".join(f"{name} {size(count)}" for name, count in largest) or "no sessions"
    if largest and largest[0][1] > _LARGE_SESSION:
        return warning(
            check,
            f"of the newest sessions {text}",
            "go on in a new session, and delete what is not needed: sessiond sessions",
        )
    return ok(check, text)


def process_finding(resident: int) -> Finding:
    """Tell how much memory the daemon itself takes; `resident`: bytes."""
    check, text = "process", f"the daemon takes {size(resident)}"
    if resident > _MUCH_RESIDENT:
        return warning(
            check, text, "restart it, nothing is lost; if it grows again, report what it did"
        )
    return ok(check, text)


def conflicts_finding(conflicts: Sequence[ConflictRecord]) -> Finding:
    """Tell what nobody has decided yet, and which fields conflict again and again."""
    check = "conflicts"
    open_ones = [record for record in conflicts if record.state == "open"]
    noisy = [
        (field, count) for field, count in _fields(conflicts).most_common(1) if count >= _NOISY
    ]
    parts, remedies = [], []
    if open_ones:
        oldest = min(open_ones, key=lambda record: record.at)
        since = timestamp(round(oldest.at.timestamp() * 1000))
        parts.append(f"{len(open_ones)} are open, of {oldest.session_id} since {since}")
        remedies.append("sessiond conflicts --state open, then sessiond resolve")
    for (document, field), count in noisy:
        parts.append(f"{document} {field} conflicted {count} times")
        remedies.append(
            "a strategy of its own may spare that: sync.merge, for example "
            f"{document}: {{{field}: union}}, or append(100), max, counter"
        )
    if parts:
        return warning(check, "; ".join(parts), "; ".join(remedies))
    return ok(check, f"{len(conflicts)} kept, none is open" if conflicts else "there are none")


def speed_findings(speed: Speed) -> list[Finding]:
    """Tell what is slow, and why that may be."""
    return [_trip(speed.trip_ms), _sync(speed.sync_ms), _loop(speed.loop_ms), _slow(speed.slow)]


def _trip(trip_ms: float) -> Finding:
    check, text = "round trip", f"{trip_ms:.2f} ms to Redis and back"
    if trip_ms > _SLOW_TRIP_MS:
        return warning(
            check, text, "each write waits for it: use a Redis nearer to this machine, or look at "
            "what else the network and that server do"
        )  # fmt: skip
    return ok(check, text)


def _sync(sync_ms: float | None) -> Finding:
    check = "disk sync"
    if sync_ms is None:
        return skipped(check, "could not be measured: the journal's folder takes no file now")
    text = f"{sync_ms:.2f} ms until the journal's disk has a write"
    if sync_ms > _SLOW_SYNC_MS:
        return warning(
            check, text, "put journal.directory on a faster disk, one that is not on a network"
        )
    return ok(check, text)


def _loop(loop_ms: float) -> Finding:
    check, text = "event loop", f"late by {loop_ms:.0f} ms at most within the last minute"
    if loop_ms > _LATE_LOOP_MS:
        return warning(
            check, text, "the machine is busy, or the daemon loads something large: see top, and "
            "the largest sessions"
        )  # fmt: skip
    return ok(check, text)


def _slow(slow: Mapping[str, float] | None) -> Finding:
    check = "slow commands"
    if slow is None:
        return skipped(check, "SLOWLOG is not told to this user; redis-cli slowlog get does")
    worst = max(slow.items(), key=lambda item: item[1], default=None)
    if worst and worst[1] > _SLOW_COMMAND_MS:
        return warning(
            check,
            f"{worst[0]} took {worst[1]:.0f} ms in Redis within the last hour",
            "look with redis-cli slowlog get: KEYS, a large key, a fork or a disk that is slow "
            "stop all others meanwhile",
        )
    return ok(check, f"none above {_SLOW_COMMAND_MS:.0f} ms within the last hour")


def _fields(conflicts: Iterable[ConflictRecord]) -> Counter[tuple[str, str]]:
    return Counter((record.document, dotted(record.path) or "**") for record in conflicts)


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
