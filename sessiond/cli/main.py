"""Where the command line begins and ends: arguments in, an exit code out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sessiond import __version__
from sessiond.cli import (
    archive,
    caching,
    cleanup,
    configuration,
    conflicts,
    demo,
    doctor,
    exchange,
    inspect_redis,
    journal,
    opencode,
    preferences,
    repair,
    run,
    sessions,
    status,
    trace,
)
from sessiond.cli.exits import INTERRUPTED, OK, exit_code
from sessiond.cli.terminal import paint
from sessiond.errors import SessiondError

_COMMANDS = (
    *(run, status, doctor, sessions, conflicts, exchange, opencode),
    *(archive, cleanup, repair, trace, journal, caching),
    *(inspect_redis, configuration, preferences, demo),
)


class _Parser(argparse.ArgumentParser):
    """A parser that also says where options stand, and which commands there are."""

    def error(self, message: str) -> NoReturn:
        """Tell what is wrong, and exit with 2."""
        if message.endswith("required: COMMAND"):
            self.print_help(sys.stderr)
            self.exit(2)
        if message.startswith("unrecognized arguments: -"):
            message += " (options stand behind their command: `sessiond status --json`)"
        super().error(message)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = _Parser(
        prog="sessiond",
        description="One conversation, many opencodes: sessions in Redis, in step everywhere.",
        epilog="`sessiond demo` shows two daemons sharing a conversation.",
    )
    root.add_argument("--version", action="version", version=f"sessiond {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        module.register(commands)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `cli.exits`)."""
    options = parser().parse_args(arguments)
    try:
        code = options.command(options)
        sys.stdout.flush()
    except SessiondError as error:
        print(f"{paint('error:', 'red', sys.stderr)} {error.detail}", file=sys.stderr)
        if error.hint:
            print(f"{paint('hint:', 'yellow', sys.stderr)}  {error.hint}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `sessiond show … | head`: nobody reads on, and nobody minds
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return int(code or OK)


if __name__ == "__main__":
    sys.exit(main())
