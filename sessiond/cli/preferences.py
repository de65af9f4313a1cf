"""`sessiond preferences`: what new sessions of a user begin with."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.terminal import plain, print_json
from sessiond.client import DaemonClient
from sessiond.errors import NotFound
from sessiond.model import Preferences


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    about = "what new sessions of a user begin with"
    group = add_command(commands, "preferences", help=about)
    parts = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    get = add_command(parts, "get", help="print a user's preferences, or one of them")
    get.set_defaults(command=_get)
    change = add_command(parts, "set", help="set a preference; sessions that exist keep theirs")
    change.set_defaults(command=_set)
    unset = add_command(parts, "unset", help="remove a preference")
    unset.set_defaults(command=_unset)
    for parser in (get, change, unset):
        parser.add_argument("user", help="the user's id, as sessions have it")
        add_connection_options(parser)
        add_json_option(parser)
    get.add_argument("name", nargs="?", help="for example theme")
    for parser in (change, unset):
        parser.add_argument("name", help="for example theme")
    change.add_argument("value", help="JSON such as true or 4; anything else is a text")


def _get(options: argparse.Namespace) -> None:
    async def fetch(client: DaemonClient) -> Preferences:
        return await client.user_preferences(options.user)

    found = with_client(options, fetch)
    if options.name and options.name not in found:
        raise NotFound(
            f"{options.user!r} has no preference {options.name!r}",
            hint="`sessiond preferences get USER` lists them all",
        )
    _print(options, {options.name: found[options.name]} if options.name else found)


def _set(options: argparse.Namespace) -> None:
    _change(options, _value(options.value))


def _unset(options: argparse.Namespace) -> None:
    _change(options, None)


def _change(options: argparse.Namespace, value: Any) -> None:
    async def change(client: DaemonClient) -> Preferences:
        return await client.change_user_preferences(options.user, {options.name: value})

    _print(options, with_client(options, change))


def _value(text: str) -> Any:
    """Return what a person typed: JSON, or the text itself."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _print(options: argparse.Namespace, preferences: Preferences) -> None:
    if options.json:
        print_json(preferences)
        return
    for name, value in preferences.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        print(plain(f"{name} = {text}"))
