"""How commands find the daemon and talk to it."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from sessiond import config
from sessiond.client import DaemonClient
from sessiond.config import Configuration
from sessiond.paths import api_socket

Result = TypeVar("Result")


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    *,
    help: str,  # noqa: A002 - argparse's word
    description: str = "",
) -> argparse.ArgumentParser:
    """Add a command; its own help begins with what the list of commands says of it."""
    return commands.add_parser(
        name, help=help, description=description or f"{help[0].upper()}{help[1:]}."
    )


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the daemon listens."""
    parser.add_argument("--socket", metavar="PATH", help="the daemon's socket (api.socket)")
    parser.add_argument("--config", metavar="FILE", help="the configuration file to read")


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def load_configuration(options: argparse.Namespace, **flags: object) -> Configuration:
    """Return the configuration that the command line, environment and file make.

    Raises:
        ConfigurationError: something in it is wrong.
    """
    named = getattr(options, "config", None)
    file = Path(named) if named else config.find_file(os.environ)
    given = {name.replace("__", "."): value for name, value in flags.items()}
    return config.load(
        file=file,
        environ=os.environ,
        flags={"api.socket": getattr(options, "socket", None), **given},
    )


def with_client(
    options: argparse.Namespace, action: Callable[[DaemonClient], Awaitable[Result]]
) -> Result:
    """Run an action with a client of the local daemon."""
    socket = api_socket(load_configuration(options).api.socket, os.environ)

    async def run() -> Result:
        client = DaemonClient(socket=str(socket))
        try:
            return await action(client)
        finally:
            await client.close()

    return asyncio.run(run())
