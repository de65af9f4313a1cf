"""`sessiond redis keys`, `redis cat` and `redis cli`: what lies in Redis, and the way there."""

from __future__ import annotations

import argparse

from sessiond.cli.connecting import (
    add_command,
    add_connection_options,
    add_json_option,
    with_client,
)
from sessiond.cli.terminal import paint, print_json, print_table
from sessiond.client import DaemonClient
from sessiond.service.status import KeyContent, Status
from sessiond.store.keys import TABLE


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    group = add_command(commands, "redis", help="look into Redis: keys and what they hold")
    parts = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    keys = add_command(parts, "keys", help="explain every key and channel")
    add_json_option(keys)
    keys.set_defaults(command=_keys)
    cat = add_command(parts, "cat", help="print what a key holds, decoded")
    cat.add_argument("key", help="for example 'sessiond:{ses_…}:metadata'")
    add_json_option(cat)
    cat.add_argument("--limit", type=int, default=100, help="items at most (default 100)")
    cli = add_command(parts, "cli", help="print the redis-cli command that reaches the server")
    cli.set_defaults(command=_cli)
    add_connection_options(cat)
    add_connection_options(cli)
    cat.set_defaults(command=_cat)


def _keys(options: argparse.Namespace) -> None:
    if options.json:
        print_json(list(TABLE.values()))
        return
    rows = [(kind.pattern, kind.type, kind.meaning) for kind in TABLE.values()]
    print_table(("KEY", "TYPE", "WHAT"), rows)


def _cat(options: argparse.Namespace) -> None:
    async def fetch(client: DaemonClient) -> KeyContent:
        query = {"key": options.key, "limit": options.limit}
        return (await client.call("GET", "/v1/redis", KeyContent, query=query))[0]

    found = with_client(options, fetch)
    if not options.json:
        print(paint(f"# {found.type}, {found.items} items", "dim"))
    print_json(found.content)


def _cli(options: argparse.Namespace) -> None:
    async def fetch(client: DaemonClient) -> Status:
        return (await client.call("GET", "/v1/status", Status))[0]

    print(with_client(options, fetch).server.redis_cli)
