"""`sessiond trace`: what happened to an operation, across two daemons on one Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sessiond.client import DaemonClient
from sessiond.model import NewMessage, NewSession
from tests.api.client import Client
from tests.api.streams import EventStream
from tests.cli.commands import ask, called, sessiond
from tests.daemons import RunningDaemon, running_daemon, wait_for


@pytest.fixture(scope="module")
def daemons() -> Iterator[tuple[RunningDaemon, RunningDaemon]]:
    with running_daemon() as laptop:
        url = f"unix://{laptop.redis_socket}"
        with running_daemon("--redis-url", url, start=False) as desktop:
            desktop.environ["SESSIOND_SYNC_INSTANCE"] = "desktop"
            desktop.start()
            yield laptop, desktop


def told(place: RunningDaemon, *arguments: str) -> Any:
    return json.loads(called(place, "trace", "ses_1", "--json", *arguments).stdout)


def test_without_debug_mode_nothing_is_traced_and_it_says_how_to_begin(
    daemons: tuple[RunningDaemon, RunningDaemon],
) -> None:
    laptop, _ = daemons
    ask(laptop, create)
    done = sessiond(laptop, "trace", "ses_1")
    assert done.stdout.startswith("nothing was traced\n")
    assert "sessiond config set debug.sessions true" in done.stdout


async def create(client: DaemonClient) -> None:
    await client.create(NewSession(session_id="ses_1"))


def test_an_operation_is_traced_from_one_daemon_to_the_other(
    daemons: tuple[RunningDaemon, RunningDaemon],
) -> None:
    laptop, desktop = daemons
    for daemon in daemons:
        called(daemon, "config", "set", "debug.sessions", "true")
    with EventStream(Client(desktop.socket).socket, "/v1/sessions/ses_1/events") as events:

        async def append(client: DaemonClient) -> None:
            await client.append("ses_1", [NewMessage(role="user", content="hidden", id="m1")])

        ask(laptop, append)
        events.until("message.append")
    wait_for(lambda: "seen" in called(desktop, "trace", "ses_1").stdout)
    found = told(laptop, "--operation", "m1")
    assert (found["tracing"], found["complete"]) == (True, True)
    stages = {(event["daemon"] == "desktop", event["stage"]) for event in found["events"]}
    assert stages == {
        *((False, stage) for stage in ("received", "journaled", "sent", "committed")),
        (True, "seen"),
    }
    shown = called(laptop, "trace", "ses_1", "--operation", "m1").stdout
    assert "passed to 1 reader" in shown
    assert "hidden" not in shown + json.dumps(found)
    assert told(laptop, "--operation", "other")["events"] == []


def test_the_trace_is_ended_while_the_daemon_runs(
    daemons: tuple[RunningDaemon, RunningDaemon],
) -> None:
    laptop, _ = daemons
    called(laptop, "config", "set", "debug.sessions", "false")
    assert told(laptop)["tracing"] is False


def test_a_limit_must_be_one(daemons: tuple[RunningDaemon, RunningDaemon]) -> None:
    called(daemons[0], "trace", "ses_1", "--limit", "0", code=3)
