"""The command line: `sessiond`. One module for each group of commands."""

from sessiond.cli.main import main

__all__ = ["main"]
