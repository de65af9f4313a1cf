"""`sessiond cleanup`: archive the sessions over the limits now, or show which those are."""

from __future__ import annotations

import argparse
from datetime import datetime

from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.terminal import local_time, one_line, paint, print_json, print_table
from sessiond.client import DaemonClient
from sessiond.service.status import CleanedSession, CleanupReport, CleanupStatus


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "cleanup",
        help="archive the sessions over the limits of retention now",
        description="Archive the sessions over the limits of retention now, and delete archived "
        "ones if retention.delete_archived_days is set. A daemon does the same by itself, every "
        "retention.cleanup_interval_hours.",
    )
    add_connection_options(parser)
    add_json_option(parser)
    parser.add_argument("--dry-run", action="store_true", help="only show what would go, and why")
    parser.set_defaults(command=_cleanup)


def summary_of(status: CleanupStatus | None) -> str:
    """Return in one line when sessions were cleaned up last, and when that is due again."""
    if status is None:
        return ""
    if status.running:
        return f"{one_line(status.running)} cleans up now"
    if status.finished_at is None or status.next_at is None:
        return "not done yet, due some minutes after the start"
    done = ""
    if last := status.last:
        done = f": {last.archived} archived, {last.deleted} deleted, {last.left} left"
    return f"last {_local(status.finished_at)}{done}; next {_local(status.next_at)}"


def _cleanup(options: argparse.Namespace) -> None:
    query = {"dry_run": "true" if options.dry_run else "false"}

    async def clean_up(client: DaemonClient) -> CleanupReport:
        return (await client.call("POST", "/v1/cleanup", CleanupReport, query=query))[0]

    report = with_client(options, clean_up)
    if options.json:
        print_json(report)
        return
    if report.found:
        rows = [[found.session_id, _outcome(found), _why(found)] for found in report.found]
        print_table(("session", "would be" if report.dry_run else "outcome", "why"), rows)
    for session_id in report.damaged:
        print(f"{paint('damaged:', 'red')} {one_line(session_id)} cannot be judged, and stays")
    print(_summary(report))


def _outcome(found: CleanedSession) -> str:
    if found.outcome != "planned":
        return found.outcome
    return "deleted" if found.action == "delete" else "archived"


def _why(found: CleanedSession) -> str:
    return one_line(f"{found.reason}: {found.detail}" if found.detail else found.reason)


def _summary(report: CleanupReport) -> str:
    if not report.found:
        return f"nothing to do: {_count(report.sessions)}, all within the limits"
    counts: dict[str, int] = {}
    for found in report.found:
        outcome = _outcome(found)
        counts[outcome] = counts.get(outcome, 0) + 1
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    lead = "would be: " if report.dry_run else ""
    return f"{lead}{told}, of {_count(report.sessions)}"


def _count(sessions: int) -> str:
    return "1 session" if sessions == 1 else f"{sessions} sessions"


def _local(text: str) -> str:
    return local_time(datetime.fromisoformat(text))
