"""`sessiond archive` and `restore`: sessions leave Redis, and come back."""

from __future__ import annotations

import argparse

from msgspec import UNSET

from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.terminal import print_json
from sessiond.client import DaemonClient
from sessiond.errors import InvalidInput
from sessiond.model import ArchivedSession


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    archive = add_command(
        commands, "archive", help="let a session leave Redis; it comes back when it is loaded"
    )
    archive.add_argument(
        "--idle",
        type=int,
        metavar="SECONDS",
        help="for how long nobody must have written to it (default 300)",
    )
    archive.set_defaults(command=_archive)
    restore = add_command(commands, "restore", help="bring an archived session back")
    restore.set_defaults(command=_restore)
    for parser in (archive, restore):
        parser.add_argument("id", help="the session's id")
        add_connection_options(parser)
        add_json_option(parser)


def _archive(options: argparse.Namespace) -> None:
    if options.idle is not None and options.idle < 0:
        raise InvalidInput(f"--idle is {options.idle}", hint="give a number of seconds, 0 or more")

    async def archive(client: DaemonClient) -> ArchivedSession:
        return await client.archive(options.id, idle_seconds=options.idle)

    archived = with_client(options, archive)
    if options.json:
        print_json(archived)
    elif archived.bytes is UNSET:
        print(f"{archived.session_id} was archived before")
    else:
        print(f"{archived.session_id} is archived, {archived.bytes:,} bytes")


def _restore(options: argparse.Namespace) -> None:
    async def restore(client: DaemonClient) -> ArchivedSession:
        return await client.restore(options.id)

    restored = with_client(options, restore)
    if options.json:
        print_json(restored)
    else:
        print(f"{restored.session_id} is in Redis, up to {restored.position}")
