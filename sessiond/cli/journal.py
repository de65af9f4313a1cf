"""`sessiond journal status | verify | export`: what this machine holds for Redis."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec

from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.exits import DAMAGED, OK
from sessiond.cli.terminal import local_time, one_line, paint, print_json
from sessiond.client import DaemonClient
from sessiond.journal.reports import EntryPage, Verdict
from sessiond.service.status import OutboxStatus

_MIB = 1024 * 1024


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    group = add_command(commands, "journal", help="what this machine holds for Redis")
    parts = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    status = add_command(parts, "status", help="show what waits, and how much is kept")
    status.set_defaults(command=_status)
    verify = add_command(parts, "verify", help="read all of it and check every row")
    verify.set_defaults(command=_verify)
    export = add_command(parts, "export", help="print its entries, a line of JSON each")
    export.set_defaults(command=_export)
    for parser in (status, verify, export):
        add_connection_options(parser)
    for parser in (status, verify):
        add_json_option(parser)


def summary_of(outbox: OutboxStatus) -> str:
    """Return in one line what waits for Redis."""
    if not outbox.waiting:
        return "nothing waits for Redis"
    writes = "1 write waits" if outbox.waiting == 1 else f"{outbox.waiting} writes wait"
    sessions = "1 session" if outbox.sessions == 1 else f"{outbox.sessions} sessions"
    return paint(f"{writes} for Redis, of {sessions}", "yellow")


def _status(options: argparse.Namespace) -> None:
    async def fetch(client: DaemonClient) -> OutboxStatus:
        return (await client.call("GET", "/v1/journal", OutboxStatus))[0]

    outbox = with_client(options, fetch)
    if options.json:
        print_json(outbox)
        return
    journal = outbox.journal
    print(summary_of(outbox))
    for session_id, reason in outbox.held.items():
        print(f"held: {session_id}: {one_line(reason)}")
    oldest = ""
    if journal.oldest_pending_ms is not None:
        since = local_time(datetime.fromtimestamp(journal.oldest_pending_ms / 1000, UTC))
        oldest = f", the oldest since {since}"
    pending = journal.pending_bytes / _MIB
    print(f"journal: {journal.pending} entries not confirmed, {pending:.1f} MiB{oldest}")
    kept = journal.kept_bytes / _MIB
    print(f"         {journal.kept} kept in case Redis goes back, {kept:.1f} MiB")
    print(f"         written as {journal.incarnation}, up to {journal.last_sequence}")


def _verify(options: argparse.Namespace) -> int:
    async def verify(client: DaemonClient) -> Verdict:
        return (await client.call("POST", "/v1/journal/verification", Verdict))[0]

    verdict = with_client(options, verify)
    if options.json:
        print_json(verdict)
    elif not verdict.faults:
        print(f"{verdict.entries} entries, every one as it was written")
    for fault in () if options.json else verdict.faults:
        print(f"{paint('damaged:', 'red')} {one_line(fault)}")
    if verdict.faults and not options.json:
        print("restart the daemon: it moves the damaged journal aside and saves what can be read")
    return DAMAGED if verdict.faults else OK


def _export(options: argparse.Namespace) -> None:
    async def export(client: DaemonClient) -> None:
        async for page in _pages(client):
            for entry in page.entries:
                sys.stdout.write(msgspec.json.encode(entry).decode() + "\n")

    with_client(options, export)


async def _pages(client: DaemonClient) -> AsyncIterator[EntryPage]:
    after = 0
    while True:
        page: EntryPage
        page, _ = await client.call("GET", "/v1/journal/entries", EntryPage, query={"after": after})
        if not page.entries:
            return
        yield page
        after = page.next
