"""A process that changes a context, each time on what it knows: `… SOCKET SESSION NAME COUNT`.

It prints what it wrote, and what it saw before.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from sessiond.client import DaemonClient
from sessiond.errors import SessiondError
from sessiond.model import Document

_PATIENCE_SECONDS = 30.0


class Account(Struct):
    """What a process did: files opened, the sum counted, its greatest number, and its places.

    `seen` are the places that stood where it put one of its own, knowing them.
    """

    files: list[str] = []
    counted: int = 0
    highest: int = 0
    places: list[str] = []
    seen: list[str] = []


async def changed_surely(
    client: DaemonClient, session_id: str, patch: Mapping[str, Any], base: str, key: str
) -> Document:
    """Change the context as a careful client does: the same key until there is an answer."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return await client.change_document(session_id, "context", patch, base=base, key=key)
        except SessiondError as error:
            if not error.temporary or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


async def main(socket: str, session_id: str, name: str, count: int) -> None:
    client = DaemonClient(socket=socket, name=name)
    account = Account()
    known = await client.document(session_id, "context")
    for number in range(count):
        file, place, step = f"{name}-{number}.py", f"/{name}/{number}", 1 + number % 3
        value = msgspec.to_builtins(known.value)
        state = value["state"]
        highest = max(state["highest"] + 1, number)
        patch = {
            "active_files": [*value["active_files"], file],
            "working_directory": place,
            "state": {"edit_count": state["edit_count"] + step, "highest": highest},
        }
        account.files.append(file)
        account.places.append(place)
        account.seen.append(value["working_directory"])
        account.counted += step
        account.highest = max(account.highest, highest)
        known = await changed_surely(client, session_id, patch, known.version, f"{name}-{number}")
    await client.close()
    print(msgspec.json.encode(account).decode())  # noqa: T201 - read by the test


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
