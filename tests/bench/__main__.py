"""Measure everything and print one table: `python -m tests.bench [store|durability|daemon …]`."""

from __future__ import annotations

import os
import platform
import sys

from tests.bench import (
    archive,
    caching,
    daemons,
    documents,
    durability,
    files,
    journal,
    merge,
    opencode,
    outbox,
    recovery,
    replica,
    store,
    windows,
)
from tests.bench.machinery import Figure

_GROUPS = {
    "store": store.figures,
    "durability": durability.figures,
    "daemon": daemons.figures,
    "opencode": opencode.figures,
    "merge": merge.figures,
    "documents": documents.figures,
    "journal": journal.figures,
    "outbox": outbox.figures,
    "replica": replica.figures,
    "archive": archive.figures,
    "cache": caching.figures,
    "recovery": recovery.figures,
    "files": files.figures,
    "windows": windows.figures,
}


def main(chosen: list[str]) -> None:
    """Measure the chosen groups, or all."""
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}\n")
    print("| what | measured | target | |\n|---|---|---|---|")
    for name, measure in _GROUPS.items():
        if not chosen or name in chosen:
            for found in measure():
                print(_row(found), flush=True)


def _row(found: Figure) -> str:
    mark = {None: "", True: "✓", False: "✗"}[found.reached]
    return f"| {found.name} | {found.measured} | {found.target} | {mark} |"


if __name__ == "__main__":
    main(sys.argv[1:])
