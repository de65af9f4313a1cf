"""The process is killed while it writes, again and again: what it was told is there."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

from sessiond.journal import Entry, Journal
from tests.journal.support import entries_of

KILLS = 20

_WRITER = """
import asyncio, itertools, os, sys
from pathlib import Path
from sessiond.journal import Journal
from sessiond.journal import ledger
from sessiond.sync.position import Position

ledger._LOG_BYTES = 50_000

async def write(journal, writer):
    for number in itertools.count():
        body = b"%d %d " % (writer, os.getpid()) + str(number).encode()
        span = await journal.append(f"ses_{writer}", [body, b"y" * 2000])
        os.write(1, b"%s %s %d\\n" % (body, span.incarnation.encode(), span.first))
        if number % 2:
            journal.confirm(span, Position("0" * 14, number))

async def main():
    journal = await Journal.open(Path(sys.argv[1]))
    assert journal.recoveries == []
    await asyncio.gather(*(write(journal, writer) for writer in range(8)))

asyncio.run(main())
"""


async def everything_in(folder: Path) -> list[Entry]:
    journal = await Journal.open(folder)
    assert journal.recoveries == []
    assert (await journal.verify()).faults == []
    found = await entries_of(journal)
    await journal.close()
    return found


def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    chance = Random(20)
    acknowledged: dict[tuple[str, int], bytes] = {}
    for _ in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "j")], stdout=subprocess.PIPE
        )
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(chance.randint(1, 400))]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        for line in lines:
            if line.endswith(b"\n"):
                writer, pid, number, incarnation, first = line.split()
                body = b"%s %s %s" % (writer, pid, number)
                assert (incarnation.decode(), int(first)) not in acknowledged
                acknowledged[incarnation.decode(), int(first)] = body
    found = asyncio.run(everything_in(tmp_path / "j"))
    bodies = {(entry.span.incarnation, entry.span.first): entry.operations[0] for entry in found}
    assert len(bodies) == len(found) >= len(acknowledged) > KILLS
    assert {place: bodies.get(place) for place in acknowledged} == acknowledged
    assert len({entry.operations[0] for entry in found}) == len(found)
