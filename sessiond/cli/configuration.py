"""`sessiond config get` and `config set`: options, of the running daemon if there is one."""

from __future__ import annotations

import argparse
import difflib

from sessiond import config
from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    load_configuration,
    with_client,
)
from sessiond.cli.terminal import print_json
from sessiond.client import DaemonClient
from sessiond.errors import ConfigurationError, DaemonUnreachable


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    group = add_command(commands, "config", help="read options, change those of a running daemon")
    parts = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    get = add_command(parts, "get", help="print an option, or all")
    get.add_argument("key", nargs="?", help="for example debug.sessions")
    add_json_option(get)
    get.set_defaults(command=_get)
    change = add_command(parts, "set", help="change an option of the running daemon")
    change.add_argument("key", help="for example debug.sessions")
    change.add_argument("value", help="for example true")
    change.set_defaults(command=_set)
    for parser in (get, change):
        add_connection_options(parser)


def _get(options: argparse.Namespace) -> None:
    async def fetch(client: DaemonClient) -> dict[str, str]:
        return (await client.call("GET", "/v1/config", dict[str, str]))[0]

    try:
        values = with_client(options, fetch)
    except DaemonUnreachable:  # then what a daemon would start with
        loaded = load_configuration(options)
        values = {row.key: config.displayed(loaded, row.key) for row in config.option_table()}
    if options.key and options.key not in values:
        nearest = difflib.get_close_matches(options.key, values, n=1)
        raise ConfigurationError(
            f"there is no option {options.key!r}",
            hint=f"did you mean {nearest[0]}?"
            if nearest
            else "`sessiond config get` lists them all",
        )
    chosen = {options.key: values[options.key]} if options.key else values
    if options.json:
        print_json(chosen)
    elif options.key:
        print(chosen[options.key])
    else:
        print("\n".join(f"{name} = {value}" for name, value in chosen.items()))


def _set(options: argparse.Namespace) -> None:
    async def change(client: DaemonClient) -> dict[str, str]:
        body = {options.key: options.value}
        return (await client.call("PATCH", "/v1/config", dict[str, str], body=body))[0]

    values = with_client(options, change)
    print(f"{options.key} = {values[options.key]}, until the daemon restarts")
    print("to keep it, set it in sessions.yaml")
