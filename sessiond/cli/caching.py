"""`sessiond cache show | clear`: what a session has cached of its tools' answers."""

from __future__ import annotations

import argparse
import contextlib

from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.terminal import local_time, one_line, print_json, print_table
from sessiond.client import DaemonClient
from sessiond.errors import SessiondError
from sessiond.model import CacheContents, CacheCounts, CacheDropped

_MIB = 1024 * 1024


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    group = add_command(commands, "cache", help="what a session has cached of its tools' answers")
    parts = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = add_command(parts, "show", help="show what is cached, and how well that serves")
    show.set_defaults(command=_show)
    clear = add_command(parts, "clear", help="drop all that is cached; nothing else is lost")
    clear.add_argument("--dry-run", action="store_true", help="say what would go, and keep it")
    clear.set_defaults(command=_clear)
    for parser in (show, clear):
        add_connection_options(parser)
        add_json_option(parser)
        parser.add_argument("id", help="the session's id")


async def counts_of(client: DaemonClient, session_id: str) -> CacheCounts | None:
    """Ask how well a session's cache serves; None if it has none, or that cannot be told."""
    with contextlib.suppress(SessiondError):  # the rest is worth telling without it
        counts = (await client.cached(session_id)).counts
        return counts if counts.entries or counts.hits or counts.misses else None
    return None


def summary_of(counts: CacheCounts) -> str:
    """Return in one line how well a cache serves."""
    size = f"{counts.bytes / _MIB:.1f} of {counts.limit_bytes / _MIB:.0f} MiB"
    asked = f"{counts.hits} hits, {counts.misses} misses, {counts.stale} stale"
    return f"{counts.entries} answers, {size}; {asked}, {counts.evicted} evicted"


def _show(options: argparse.Namespace) -> None:
    contents = with_client(options, lambda client: client.cached(options.id))
    if options.json:
        print_json(contents)
        return
    print(summary_of(contents.counts))
    rows = [
        (
            one_line(entry.tool),
            one_line(f"{entry.path}/**" if entry.scope == "tree" else entry.path),
            one_line(entry.machine),
            str(entry.bytes),
            local_time(entry.expires_at),
            entry.key,
        )
        for entry in contents.entries
    ]
    if rows:
        print_table(("TOOL", "OF", "FROM", "BYTES", "EXPIRES", "KEY"), rows)


def _clear(options: argparse.Namespace) -> None:
    async def clear(client: DaemonClient) -> CacheDropped:
        if not options.dry_run:
            return await client.clear_cached(options.id)
        contents: CacheContents = await client.cached(options.id)
        return CacheDropped(dropped=len(contents.entries))

    dropped = with_client(options, clear)
    if options.json:
        print_json(dropped)
        return
    verb = "would be dropped" if options.dry_run else "dropped"
    print(f"{dropped.dropped} cached answers {verb}")
