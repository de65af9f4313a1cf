"""What follows from who is at a session. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from sessiond.model import Presence


def shared_files(present: Iterable[Presence]) -> dict[str, list[str]]:
    """Return each file that two or more instances have open, and their names, in given order."""
    instances: dict[str, list[str]] = {}
    for who in present:
        for file in dict.fromkeys(who.active_files):
            instances.setdefault(file, []).append(who.instance)
    return {file: names for file, names in sorted(instances.items()) if len(names) > 1}
