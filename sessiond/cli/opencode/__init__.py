"""`sessiond opencode …`: sharing the sessions of the opencodes on this machine."""

from __future__ import annotations

import argparse

from sessiond.cli.connecting import add_command
from sessiond.cli.opencode import doctor, installing, sharing


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    group = add_command(
        commands,
        "opencode",
        help="share the sessions of opencode: plugin, state, checks",
        description="Share the sessions of the opencodes on this machine. `install` puts a plugin "
        "into opencode, `status` shows who is attached, `doctor` finds what is wrong.",
    )
    parts = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (installing, sharing, doctor):
        module.register(parts)
