"""`sessiond trace ID`: what happened to the operations of a session, from daemon to daemon."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.terminal import one_line, print_json, print_table
from sessiond.client import DaemonClient
from sessiond.service.health.tracing import SessionTrace, TraceEvent

_SWITCH = "sessiond config set debug.sessions true"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "trace",
        help="what happened to each operation of a session, while debug.sessions is on",
        description="Show when each operation of a session was received, journaled, sent to Redis "
        "and committed, and when other daemons saw it, passed it on and applied it, while "
        f"debug.sessions was on there: {_SWITCH}.",
    )
    parser.add_argument("session_id", metavar="ID", help="the session")
    parser.add_argument("--operation", metavar="ID", default="", help="of this message or document")
    parser.add_argument("--limit", type=int, default=1000, help="the newest events (1000)")
    add_connection_options(parser)
    add_json_option(parser)
    parser.set_defaults(command=_trace)


def _trace(options: argparse.Namespace) -> None:
    async def fetch(client: DaemonClient) -> SessionTrace:
        path = f"/v1/sessions/{options.session_id}/trace"
        query = {"operation": options.operation, "limit": options.limit}
        return (await client.call("GET", path, SessionTrace, query=query))[0]

    trace = with_client(options, fetch)
    if options.json:
        print_json(trace)
        return
    if trace.events:
        headings = ("time (UTC)", "+ms", "daemon", "stage", "operation", "position", "")
        print_table(headings, [_row(event, trace.events[0].at_ms) for event in trace.events])
    else:
        print("nothing was traced")
    if not trace.complete:
        print("Redis is away: this is what happened at this daemon")
    if not trace.tracing:
        print(f"this daemon traces nothing now; to begin: {_SWITCH}")


def _row(event: TraceEvent, began_ms: float) -> tuple[str, ...]:
    at = datetime.fromtimestamp(event.at_ms / 1000, UTC)
    told = (event.daemon, event.stage, f"{event.op} {event.id}", event.position, event.detail)
    return (f"{at:%H:%M:%S.%f}"[:-3], f"{event.at_ms - began_ms:.1f}", *map(one_line, told))
