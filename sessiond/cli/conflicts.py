"""`sessiond conflicts`: what merges left out, for people to see and to decide."""

from __future__ import annotations

import argparse
import difflib
import secrets
import sys
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
from msgspec import UNSET

from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.terminal import (
    as_json,
    local_time,
    one_line,
    paint,
    plain,
    print_json,
    print_table,
)
from sessiond.client import DaemonClient
from sessiond.errors import InvalidInput
from sessiond.model import Choice, ConflictRecord, ConflictSide, ConflictState, Take

_FORMS = "conflicts [ID] | conflicts show ID NUMBER | conflicts resolve ID NUMBER --take WHAT"
_COLOURS = {"-": "red", "+": "green", "@": "dim", " ": "dim"}
_STATES = {"open": "yellow", "settled": "dim", "resolved": "green"}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    listing = add_command(
        commands, "conflicts", help="what merges left out: list it, show one, decide one"
    )
    listing.add_argument("words", nargs="*", metavar="ID | show ID NUMBER | resolve ID NUMBER")
    listing.add_argument(
        "--state", choices=get_args(ConflictState), help="only those in this state"
    )
    listing.set_defaults(command=_conflicts)
    resolve = add_command(commands, "resolve", help="decide a conflict")
    resolve.add_argument("id", help="the session's id")
    resolve.add_argument("number", help="the conflict's number")
    resolve.set_defaults(command=lambda options: _resolve(options, options.id, options.number))
    for parser in (listing, resolve):
        parser.add_argument(
            "--take",
            metavar="WHAT",
            help="ours, theirs, base, merged (what stands), or a JSON value",
        )
        add_connection_options(parser)
        add_json_option(parser)


def open_conflicts(records: list[ConflictRecord]) -> Iterator[str]:
    """Yield a line for each conflict that nobody decided yet."""
    for record in records:
        where = paint(one_line(subject_of(record)), "yellow")
        yield f"in conflict: {where}, `sessiond conflicts show {record.session_id} {record.number}`"


def subject_of(record: ConflictRecord) -> str:
    """Return what a conflict is about: `context state.phase`, `message msg_1 content`."""
    return " ".join(word for word in (record.document, record.id, ".".join(record.path)) if word)


def _conflicts(options: argparse.Namespace) -> None:
    match options.words:
        case [] | [_] if options.words not in (["show"], ["resolve"]):
            _list(options, *options.words)
        case ["show", session_id, number]:
            _show(options, session_id, number)
        case ["resolve", session_id, number]:
            _resolve(options, session_id, number)
        case _:
            raise InvalidInput(
                f"{' '.join(options.words)[:80]!r} is not understood", hint=f"sessiond {_FORMS}"
            )


def _list(options: argparse.Namespace, session_id: str | None = None) -> None:
    async def fetch(client: DaemonClient) -> list[ConflictRecord]:
        return await client.conflicts(session_id, state=options.state)

    found = with_client(options, fetch)
    if options.json:
        print_json(found)
        return
    if not found:
        print("no conflicts", file=sys.stderr)
        return
    rows = [
        (
            record.session_id,
            record.number,
            one_line(subject_of(record)),
            record.strategy,
            _stands(record),
            record.state,
            local_time(record.at),
        )
        for record in found
    ]
    print_table(("SESSION", "NUMBER", "WHERE", "STRATEGY", "STANDS", "STATE", "WHEN"), rows)


def _show(options: argparse.Namespace, session_id: str, number: str) -> None:
    async def fetch(client: DaemonClient) -> ConflictRecord:
        return await client.conflict(session_id, number)

    record = with_client(options, fetch)
    if options.json:
        print_json(record)
        return
    for line in _view(record):
        print(line)


def _resolve(options: argparse.Namespace, session_id: str, number: str) -> None:
    choice = _choice(options.take)

    async def resolve(client: DaemonClient) -> ConflictRecord:
        return await client.resolve(session_id, number, choice, key=secrets.token_hex(16))

    record = with_client(options, resolve)
    if options.json:
        print_json(record)
    else:
        print(f"conflict {record.number} is resolved: {_decided(record)}")


def _choice(text: str | None) -> Choice:
    if text is None:
        raise InvalidInput("nothing is taken", hint="add --take ours, theirs, base, merged or JSON")
    for take in get_args(Take):
        if text == take:
            return Choice(take=take)
    try:
        return Choice(value=msgspec.json.decode(text))
    except msgspec.DecodeError as error:
        raise InvalidInput(
            f"--take is {text[:80]!r}: neither a side nor JSON ({error})",
            hint="""take ours, theirs, base, merged, or a JSON value such as '"a text"'""",
        ) from None


def _view(record: ConflictRecord) -> Iterator[str]:
    """Yield a conflict as three ways: what each side made of the base, and what stands."""
    state = paint(record.state, _STATES[record.state])
    yield f"conflict {record.number} of session {record.session_id}: {one_line(subject_of(record))}"
    yield f"{state} by {record.strategy}: {_stands(record)}"
    if record.reason:
        yield f"refused: {one_line(record.reason)}"
    base = f"base, version {record.base_version}" if record.base_version else "base, not known"
    for name, side in (("theirs", record.theirs), ("ours", record.ours)):
        yield ""
        yield paint(f"--- {base}", "red")
        yield paint(f"+++ {name}, {one_line(_author(side))}", "green")
        yield from _difference(record.base, side.value)
    if record.merged is not UNSET:
        yield ""
        yield paint("=== merged", "cyan")
        yield from _lines(record.merged)
    yield ""
    if record.resolution:
        by = one_line(record.resolution.origin)
        yield f"resolved: {_decided(record)}, by {by}, {local_time(record.resolution.at)}"
    else:
        yield f"to decide: sessiond resolve {record.session_id} {record.number} --take ours|theirs"


def _author(side: ConflictSide) -> str:
    place = f", position {side.version}" if side.version else ""
    return f"{side.origin}, {local_time(side.at)}{place}"


def _difference(base: Any, value: Any) -> Iterator[str]:
    before, after = list(_lines(base)), list(_lines(value))
    lines = difflib.unified_diff(before, after, n=3, lineterm="")
    for line in list(lines)[2:]:  # without the heads, which have no names here
        if not line.startswith("@@"):
            yield paint(line, _COLOURS[line[0]])
    if before == after:
        yield paint(" as it was", "dim")


def _lines(value: Any) -> list[str]:
    """Return a value as lines: a text as it is, anything else as JSON; nothing if there is none."""
    if value is UNSET:
        return []
    return plain(value if isinstance(value, str) else as_json(value)).split("\n")


def _stands(record: ConflictRecord) -> str:
    if record.outcome == "merged":
        return "parts of both stand"
    return f"{record.outcome} stands"


def _decided(record: ConflictRecord) -> str:
    take = record.resolution.take if record.resolution else ""
    return {"merged": "what stood stays", "value": "another value was put in its place"}.get(
        take, f"{take} was taken"
    )
