"""`sessiond demo`: two daemons, one conversation."""

from __future__ import annotations

import argparse


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("demo", help="show two daemons sharing a conversation")
    parser.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> None:
    """TODO."""
