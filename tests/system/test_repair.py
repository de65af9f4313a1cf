"""A session that was damaged in Redis is whole again: with a daemon, its copy, its journal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from sessiond.client import DaemonClient
from sessiond.model import NewMessage, NewSession
from sessiond.service.status import Status
from tests.cli.commands import ask, called
from tests.daemons import RunningDaemon, running_daemon, wait_for

LOG = "sessiond:{ses_1}:conversation"


@pytest.fixture
def daemon() -> Iterator[RunningDaemon]:
    """A daemon with a session of three messages."""
    with running_daemon() as daemon:

        async def fill(client: DaemonClient) -> None:
            await client.create(NewSession(session_id="ses_1"))
            for number in range(3):
                message = NewMessage(role="user", content=f"words {number}", id=f"m{number}")
                await client.append("ses_1", [message])

        ask(daemon, fill)
        yield daemon


def damage_log(daemon: RunningDaemon) -> None:
    """Change one letter of the second message, and nothing else."""
    with Redis(unix_socket_path=str(daemon.redis_socket)) as redis:
        entries: Any = redis.xrange(LOG)
        redis.delete(LOG)
        for stream_id, fields in entries:
            fields[b"json"] = fields[b"json"].replace(b"words 1", b"wordz 1")
            redis.xadd(LOG, fields, id=stream_id)


def shown(daemon: RunningDaemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(called(daemon, "show", "ses_1", "--json").stdout)
    return found


def test_from_the_copy_of_this_machine_a_session_is_exactly_what_it_was(
    daemon: RunningDaemon,
) -> None:
    before = shown(daemon)

    def is_copied() -> bool:
        async def status(client: DaemonClient) -> Status:
            return (await client.call("GET", "/v1/status", Status))[0]

        replica = ask(daemon, status).replica
        return replica is not None and (replica.sessions, replica.behind) == (1, 0)

    wait_for(is_copied)
    damage_log(daemon)
    called(daemon, "show", "ses_1", code=12)
    called(daemon, "doctor", "--scan", code=12)
    assert "3 from the copy" in called(daemon, "repair", "ses_1", "--apply").stdout
    assert shown(daemon) == before, "with the same position"
    called(daemon, "doctor", "--scan")


def test_what_only_the_journal_has_is_written_again(daemon: RunningDaemon) -> None:
    daemon.stop()
    daemon.environ["SESSIOND_REPLICA_LIMIT_MIB"] = "0"
    daemon.start()
    before = shown(daemon)["conversation"]["messages"]
    damage_log(daemon)
    offer = called(daemon, "repair", "ses_1", code=12).stdout
    assert "again: operation 3 is in this machine's journal, which writes it again" in offer
    assert "lost:" not in offer
    assert "again: operation 3" in called(daemon, "repair", "ses_1", "--apply").stdout

    def messages() -> list[Any]:
        found: list[Any] = shown(daemon)["conversation"]["messages"]
        return sorted(found, key=lambda message: str(message["id"]))

    wait_for(lambda: messages() == before)
    called(daemon, "doctor", "--scan")
    called(daemon, "doctor")
