"""`sessiond sessions`, `show` and `tail`: sessions, for people."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable

import msgspec
from msgspec import UNSET, UnsetType

from sessiond.backend import RawEvent
from sessiond.cli.caching import counts_of, summary_of
from sessiond.cli.conflicts import open_conflicts
from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.presence import people_at, person_lines
from sessiond.cli.terminal import local_time, one_line, paint, plain, print_json, print_table
from sessiond.cli.windows import add_window_options, asks_for_window, window_lines
from sessiond.client import DaemonClient
from sessiond.errors import InvalidInput
from sessiond.model import (
    CacheCounts,
    ConflictRecord,
    Message,
    Operation,
    Reset,
    Session,
    SessionPresence,
    SessionSummary,
    Window,
)

_OPERATION = msgspec.json.Decoder(Operation)
_RESET = msgspec.json.Decoder(Reset)
_LONGEST_LINE = 160
_RESETS = {
    "history-changed": "the log has another history at that position",
    "missing": "the log ends before that position",
    "trimmed": "the log begins after that position",
}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    listing = add_command(
        commands, "sessions", help="list sessions, the most recently active first"
    )
    for name in ("workspace", "status", "user-id"):
        listing.add_argument(f"--{name}", metavar="NAME", help=f"only sessions of this {name}")
    listing.add_argument("--limit", type=int, default=50, help="how many at most (default 50)")
    listing.set_defaults(command=_sessions)
    show = add_command(commands, "show", help="show a session and its conversation")
    add_window_options(show)
    show.set_defaults(command=_show)
    tail = add_command(commands, "tail", help="follow a session live; resumes when interrupted")
    tail.add_argument("--after", metavar="POSITION", help="begin after this position (0: all)")
    tail.set_defaults(command=_tail)
    for parser in (listing, show, tail):
        add_connection_options(parser)
        add_json_option(parser)
    for parser in (show, tail):
        parser.add_argument("id", help="the session's id")


def _sessions(options: argparse.Namespace) -> None:
    if options.limit < 1:
        raise InvalidInput(f"--limit is {options.limit}", hint="ask for at least 1 session")
    filters = {
        name: getattr(options, name)
        for name in ("workspace", "status", "user_id")
        if getattr(options, name)
    }

    async def fetch(client: DaemonClient) -> tuple[list[SessionSummary], float | UnsetType]:
        found: list[SessionSummary] = []
        cursor: str | None = None
        stale: float | UnsetType = UNSET
        while len(found) < options.limit:
            limit = min(500, options.limit - len(found))
            page = await client.list_sessions(cursor=cursor, limit=limit, **filters)
            found += page.sessions
            cursor, stale = page.cursor, page.stale_seconds
            if cursor is None:
                break
        return found, stale

    found, stale = with_client(options, fetch)
    _tell_age(stale)
    if options.json:
        print_json(found)
        return
    if not found:
        print("no sessions", file=sys.stderr)
        return
    rows = [
        (
            summary.metadata.session_id,
            summary.metadata.status,
            str(summary.total_messages),
            local_time(summary.metadata.last_activity),
            summary.metadata.workspace or "",
            one_line(summary.metadata.title or ""),
        )
        for summary in found
    ]
    print_table(("SESSION", "STATUS", "MESSAGES", "LAST ACTIVITY", "WORKSPACE", "TITLE"), rows)


def _show(options: argparse.Namespace) -> None:
    if asks_for_window(options):
        _show_window(options)
    else:
        _show_session(options)


def _show_window(options: argparse.Namespace) -> None:
    async def fetch(client: DaemonClient) -> Window:
        return await client.window(options.id, tokens=options.tokens, strategy=options.strategy)

    window = with_client(options, fetch)
    _tell_age(window.stale_seconds)
    if options.json:
        print_json(window)
        return
    for line in window_lines(window):
        print(line)
    _print_messages(window.messages)


def _show_session(options: argparse.Namespace) -> None:
    async def fetch(
        client: DaemonClient,
    ) -> tuple[Session, list[ConflictRecord], SessionPresence | None, CacheCounts | None]:
        session = await client.load(options.id)
        if session.stale_seconds is not UNSET:  # only Redis knows the rest
            return session, [], None, None
        undecided = await client.conflicts(options.id, state="open")
        people = await people_at(client, options.id)
        return session, undecided, people, await counts_of(client, options.id)

    session, undecided, present, cached = with_client(options, fetch)
    _tell_age(session.stale_seconds)
    if options.json:
        print_json(session)
        return
    for line in person_lines(present, width=14) if present else ():
        print(line)
    metadata = msgspec.to_builtins(session.metadata)
    for name, value in {**metadata, "position": session.position}.items():
        if value:
            print(f"{paint(name.ljust(14), 'dim')} {one_line(str(value))}")
    if cached:
        print(f"{paint('cache'.ljust(14), 'dim')} {summary_of(cached)}")
    for line in open_conflicts(undecided):
        print(line)
    _print_messages(session.conversation.messages)


def _print_messages(messages: Iterable[Message]) -> None:
    for message in messages:
        print()
        print(_heading(message))
        print("\n".join(_body(message)))


def _tell_age(seconds: float | UnsetType) -> None:
    """Say it where an answer came without Redis, beside the answer itself."""
    if seconds is not UNSET:
        age = f"Redis is away: this is what this machine knew {seconds:.0f} s ago"
        print(paint(age, "yellow"), file=sys.stderr)


def _tail(options: argparse.Namespace) -> None:
    async def follow(client: DaemonClient) -> None:
        async with client.events(options.id, options.after) as events:
            async for event in events:
                line = one_line(event.data.decode()) if options.json else _line(event)
                print(line, flush=True)
                if event.name == "session.delete":
                    return

    try:
        with_client(options, follow)
    except asyncio.CancelledError:  # Ctrl-C while waiting
        raise KeyboardInterrupt from None


def _line(event: RawEvent) -> str:
    if event.name == "reset":
        why = _RESETS.get(_RESET.decode(event.data).reason, "the log is another one now")
        return paint(f"reset  {why}; what it holds follows from its beginning", "yellow")
    if event.name in ("live", "journaled"):
        return paint(f"{event.name}  {plain(event.data.decode())[:_LONGEST_LINE]}", "dim")
    operation = _OPERATION.decode(event.data)
    time = local_time(operation.at)
    what = paint(f"{operation.op:16}", "cyan")
    text = one_line(_summary(operation))
    return f"{operation.position.partition(':')[2]:>6}  {time}  {what} {text[:_LONGEST_LINE]}"


def _summary(operation: Operation) -> str:
    body = operation.body if isinstance(operation.body, dict) else {}
    by = operation.origin.rpartition(":")[0]
    match operation.op:
        case "message.append" | "message.edit":
            return f"{body.get('role')}: {body.get('content')}  [{by}]"
        case "part.put":
            return f"{body.get('type')}: {body.get('text') or body.get('tool') or ''}  [{by}]"
        case "conflict.record":
            where = ".".join(map(str, body.get("path", ())))
            return f"{operation.id} {where}: {body.get('outcome')} stands, {body.get('strategy')}"
        case "conflict.resolve":
            return f"conflict {operation.id}: {body.get('take')}  [{by}]"
        case _:
            return f"{operation.id}  [{by}]"


def _heading(message: Message) -> str:
    colour = {"user": "green", "assistant": "blue"}.get(message.role, "yellow")
    return (
        f"{paint(message.role, colour)} {paint(local_time(message.timestamp), 'dim')} {message.id}"
    )


def _body(message: Message) -> Iterable[str]:
    if message.content:
        yield plain(message.content)
    for call in message.tool_calls:
        yield paint(f"  tool: {plain(str(call))}", "yellow")
