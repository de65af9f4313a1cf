"""A writer process: `python -m tests.system.writer SOCKET SESSION NAME COUNT`."""

from __future__ import annotations

import asyncio
import sys

from sessiond.client import DaemonClient
from tests.system.observing import append_surely


async def main(socket: str, session_id: str, name: str, count: int) -> None:
    client = DaemonClient(socket=socket, name=name)
    for number in range(count):
        await append_surely(client, session_id, f"{name}-{number}")
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
