"""Eight processes change one document through two daemons: no change is lost, none counts twice."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest

from sessiond.client import DaemonClient
from sessiond.model import ConflictRecord, Context, NewSession
from tests.daemons import RunningDaemon, running_daemon
from tests.system.changer import Account
from tests.system.observing import settled

ROOT = Path(__file__).parents[2]
PROCESSES = 8
EACH = 200
OPTIONS = "sync:\n  merge:\n    context:\n      state.highest: max\n"


@contextmanager
def two_daemons(module: str, *, wait_seconds: float = 1.0) -> Iterator[list[RunningDaemon]]:
    """Run two daemons on the embedded server of the first."""
    with ExitStack() as stack:
        daemons: list[RunningDaemon] = []
        for name in ("laptop", "desktop"):
            flags = ("--redis-url", f"unix://{daemons[0].redis_socket}") if daemons else ()
            daemon = stack.enter_context(running_daemon("--instance", name, *flags, start=False))
            daemon.module = module
            daemon.configure(f"{OPTIONS}journal:\n  wait_seconds: {wait_seconds}\n")
            daemon.start()
            daemons.append(daemon)
        yield daemons


async def contend(
    daemons: list[RunningDaemon], each: int
) -> tuple[list[Account], Context, list[ConflictRecord]]:
    """Let the processes change one context; return what they did, and what became of it."""
    client = DaemonClient(socket=str(daemons[0].socket))
    context = Context(state={"edit_count": 0, "highest": 0})
    session_id = (await client.create(NewSession(context=context))).metadata.session_id
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.system.changer",
            str(daemons[number % 2].socket), session_id, f"w{number}", str(each),
            cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        )
        for number in range(PROCESSES)
    ]  # fmt: skip
    told = [(await process.communicate())[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES
    for daemon in daemons:
        other = DaemonClient(socket=str(daemon.socket))
        await settled(other)
        await other.close()
    accounts = [msgspec.json.decode(text, type=Account) for text in told]
    final = msgspec.convert((await client.document(session_id, "context")).value, Context)
    conflicts = await client.conflicts(session_id)
    await client.close()
    return accounts, final, conflicts


def check(accounts: list[Account], final: Context, conflicts: list[ConflictRecord]) -> None:
    """Both sides of every race are there, by the meaning of the field's strategy."""
    opened = sorted(file for account in accounts for file in account.files)
    assert sorted(final.active_files) == opened
    assert final.state["edit_count"] == sum(account.counted for account in accounts)
    assert final.state["highest"] == max(account.highest for account in accounts)
    places = {place for account in accounts for place in account.places}
    replaced = {place for account in accounts for place in account.seen}
    kept = {
        side.value
        for conflict in conflicts
        for side in (conflict.ours, conflict.theirs)
        if conflict.path == ["working_directory"]
    }
    assert places <= {final.working_directory} | replaced | kept
    assert {conflict.path[0] for conflict in conflicts} <= {"working_directory"}


@pytest.mark.parametrize(("each", "wait_seconds"), [(EACH, 1.0), (50, 0.005)])
async def test_eight_processes_change_one_document_and_every_change_is_in_it(
    each: int, wait_seconds: float
) -> None:
    """Also those that were only journaled when their process went on from what it was told."""
    with two_daemons("sessiond", wait_seconds=wait_seconds) as daemons:
        accounts, final, conflicts = await contend(daemons, each)
    assert sum(len(account.files) for account in accounts) == PROCESSES * each
    assert conflicts, "nobody met anybody: this proves nothing"
    check(accounts, final, conflicts)


async def test_daemons_that_do_not_compare_versions_would_be_found_out() -> None:
    with two_daemons("tests.system.careless") as daemons:
        done = await contend(daemons, 25)
    with pytest.raises(AssertionError):
        check(*done)
