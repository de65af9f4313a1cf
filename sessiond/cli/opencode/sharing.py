"""`sessiond opencode status`, `import`, `share` and `unshare`: what is shared, and with whom."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from datetime import UTC, datetime
from urllib.parse import quote

from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.terminal import one_line, paint, print_json, print_table
from sessiond.client import DaemonClient
from sessiond.service.opencode.overview import OpencodeStatus, Overview, SharedSession

_SHORT_ID = 12


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    status = add_command(commands, "status", help="show the opencodes that share their sessions")
    status.add_argument(
        "--sessions", action="store_true", help="and which sessions of this machine are shared"
    )
    status.set_defaults(command=_status)
    bring_in = add_command(
        commands,
        "import",
        help="share the sessions from before the plugin was installed",
        description="Share the sessions from before the plugin was installed, in all projects "
        "that an opencode with the plugin was used in. Private ones stay private.",
    )
    bring_in.set_defaults(command=_import)
    share = add_command(commands, "share", help="share a session that is older or private")
    share.set_defaults(command=_set_sharing, shared=True)
    unshare = add_command(
        commands,
        "unshare",
        help="send nothing more of a session from this machine",
        description="Send nothing more of a session from this machine. What was shared of it "
        "before stays with the others; `sessiond opencode share` undoes this.",
    )
    unshare.set_defaults(command=_set_sharing, shared=False)
    for parser in (share, unshare):
        parser.add_argument("session", metavar="SESSION", help="the session's id: ses_…")
    for parser in (status, bring_in, share, unshare):
        add_connection_options(parser)
        add_json_option(parser)


async def overview(client: DaemonClient) -> Overview:
    """Ask a daemon for the opencodes that are attached, and what is shared."""
    return (await client.call("GET", "/v1/opencode", Overview))[0]


def turn_of(status: OpencodeStatus) -> str:
    """Return what an opencode does at this moment, in a word or two."""
    if not status.turns:
        return "idle"
    return "answering…" if len(status.turns) == 1 else f"answering… ({len(status.turns)})"


def workspace_of(name: str) -> str:
    """Return a workspace as a table shows it: root commits are cut as git does it."""
    is_commit = len(name) >= 40 and set(name) <= set("0123456789abcdef")  # noqa: PLR2004 - SHA-1
    return name[:_SHORT_ID] if is_commit else one_line(name)


def _status(options: argparse.Namespace) -> None:
    found = with_client(options, overview)
    if options.json:
        print_json(found)
        return
    if found.instances:
        _print_instances(found.instances)
    else:
        print("no opencode is attached", file=sys.stderr)
        print(
            "start one; if it does not appear here, `sessiond opencode doctor` says why",
            file=sys.stderr,
        )
    if options.sessions:
        print()
        _print_sessions(found.sessions)
    _print_counts(found.sessions)


def _print_instances(instances: list[OpencodeStatus]) -> None:
    rows = [
        (
            one_line(status.instance),
            one_line(status.machine),
            one_line(status.version),
            one_line(status.mode),
            workspace_of(status.workspace) or "not shared",
            str(status.sessions),
            str(status.lag),
            turn_of(status),
            "yes" if status.live else "no",
            one_line(status.directory),
        )
        for status in instances
    ]
    headings = (
        *("INSTANCE", "MACHINE", "VERSION", "MODE", "WORKSPACE", "SESSIONS", "LAG", "TURN"),
        *("LIVE", "FOLDER"),
    )
    print_table(headings, rows)


def _print_sessions(sessions: list[SharedSession]) -> None:
    rows = [
        (
            session.session_id,
            session.state,
            f"{datetime.fromtimestamp(session.updated_ms / 1000, UTC).astimezone():%Y-%m-%d %H:%M}",
            workspace_of(session.workspace),
            one_line(session.title),
        )
        for session in sessions
    ]
    print_table(("SESSION", "STATE", "UPDATED", "WORKSPACE", "TITLE"), rows)


def _print_counts(sessions: list[SharedSession]) -> None:
    count = Counter(session.state for session in sessions)
    states = ", ".join(f"{count[state]} {state}" for state in ("shared", "private", "older"))
    if sessions:
        print(paint(f"sessions of this machine: {states}", "dim"))
    if count["older"]:
        print("older ones are shared when somebody goes on with them; all at once with")
        print("`sessiond opencode import`, one with `sessiond opencode share SESSION`")


def _import(options: argparse.Namespace) -> None:
    async def bring_in(client: DaemonClient) -> dict[str, int]:
        return (await client.call("POST", "/v1/opencode/import", dict[str, int]))[0]

    imported = with_client(options, bring_in)
    if options.json:
        print_json(imported)
        return
    print(f"shared now, of this machine's opencodes: {imported['sessions']} sessions")
    if not imported["sessions"]:
        print("start opencode once in each project whose sessions are to be shared")


def _set_sharing(options: argparse.Namespace) -> None:
    path = f"/v1/opencode/sessions/{quote(options.session, safe='')}/sharing"

    async def change(client: DaemonClient) -> None:
        await client.call("PUT", path, None, body={"shared": options.shared})

    with_client(options, change)
    if options.json:
        print_json({"session_id": options.session, "shared": options.shared})
    elif options.shared:
        print(f"{options.session} is shared, from its beginning")
    else:
        print(f"{options.session} is private: nothing more of it is sent from this machine")
        print("what was shared of it before stays with the others")
