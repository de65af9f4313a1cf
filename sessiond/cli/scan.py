"""`sessiond doctor --scan [ID…]`: is anything in Redis, or in files, not what was written there?"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator

from sessiond.cli.connecting import with_client
from sessiond.cli.exits import DAMAGED, OK
from sessiond.cli.terminal import one_line, paint, print_json
from sessiond.client import DaemonClient
from sessiond.service.health.scanning import Damage, ScanPage, ScanRequest

_COLOURS = {"damaged": "red", "warning": "yellow"}


def scan(options: argparse.Namespace) -> int:
    """Scan the sessions that were named, or all; print what is found as it comes."""

    async def run(client: DaemonClient) -> tuple[int, list[Damage]]:
        sessions, damage = 0, []
        async for page in pages(client, options.scan):
            sessions += page.sessions
            damage += page.damage
            if not options.json:
                for each in page.damage:
                    _print(each)
        return sessions, damage

    sessions, damage = with_client(options, run)
    damaged = any(each.severity == "damaged" for each in damage)
    if options.json:
        print_json({"ok": not damaged, "sessions": sessions, "damage": damage})
    else:
        count = "1 session" if sessions == 1 else f"{sessions} sessions"
        print(f"{count} scanned, {len(damage) or 'nothing'} found")
    return DAMAGED if damaged else OK


async def pages(client: DaemonClient, session_ids: list[str]) -> AsyncIterator[ScanPage]:
    """Scan sessions, or all where none is named, and yield what is found page by page."""
    wanted = ScanRequest(session_ids=session_ids)
    while True:
        page: ScanPage = (await client.call("POST", "/v1/scan", ScanPage, body=wanted))[0]
        yield page
        wanted.cursor = page.cursor
        if not page.cursor:
            return


def _print(damage: Damage) -> None:
    """Print what is wrong, and below it the remedy."""
    state = paint(damage.severity.ljust(8), _COLOURS[damage.severity])
    print(f"{state} {one_line(damage.key)}: {one_line(damage.finding)}", flush=True)
    print(f"{'':8} {paint('→', 'yellow')} {one_line(damage.remedy)}", flush=True)
