"""Acknowledgements that replicas confirm: waited for, reported when they fail, never blocking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError
from structlog.testing import capture_logs

from sessiond.config.options import Configuration, RedisOptions, SyncOptions
from sessiond.core import Core
from sessiond.store.outcome import Committed
from sessiond.store.replicas import ReplicaAcks
from tests.store.servers import Pair, in_step
from tests.store.support import appending, creating, real_servers, until

WAIT_SECONDS = 0.4

pytestmark = real_servers


@pytest.fixture(scope="module")
def pairs() -> Iterator[dict[str, Pair]]:
    started: dict[str, Pair] = {}
    yield started
    for pair in started.values():
        pair.stop()


@pytest.fixture
async def pair(kind: str, pairs: dict[str, Pair]) -> AsyncIterator[Pair]:
    """Shared by the tests that leave both alive."""
    found = pairs.get(kind) or pairs.setdefault(kind, Pair(kind))
    await in_step(found)
    yield found
    found.replica.resume()


@pytest.fixture
async def own_pair(kind: str) -> AsyncIterator[Pair]:
    """A pair that the test may break."""
    found = Pair(kind)
    await in_step(found)
    yield found
    found.stop()


def core_on(pair: Pair, namespace: str, durability: str = "replica", **more: Any) -> Core:
    options = RedisOptions(
        namespace=namespace,
        durability=durability,  # type: ignore[arg-type]
        replica_wait_seconds=WAIT_SECONDS,
        **more,
    )
    configuration = Configuration(redis=options, sync=SyncOptions(retry_seconds=2))
    return Core(pair.primary.url, configuration, instance="here")


@pytest.fixture
async def core(pair: Pair, namespace: str) -> AsyncIterator[Core]:
    started = core_on(pair, namespace)
    yield started
    await started.close()


def acks_of(core: Core) -> ReplicaAcks:
    assert core.replicas is not None
    return core.replicas


async def write(core: Core, *ids: str, session: str = "ses_1") -> list[Committed]:
    return [await core.committer.commit(session, [appending(name)]) for name in ids]


async def test_what_a_replica_confirms_is_acknowledged_without_a_remark(core: Core) -> None:
    created = await core.committer.commit("ses_1", [creating("ses_1")])
    done = await write(core, *(f"m-{number}" for number in range(20)))
    assert not any(committed.degraded for committed in [created, *done])
    assert acks_of(core).degraded_since is None
    assert acks_of(core).degraded_writes == 0


async def test_a_stalled_replica_costs_one_wait_and_then_nobody_waits(
    pair: Pair, core: Core
) -> None:
    await core.committer.commit("ses_1", [creating("ses_1")])
    pair.replica.halt()
    with capture_logs() as logs:
        began = time.monotonic()
        (first,) = await write(core, "m-0")
        waited = time.monotonic() - began
        began = time.monotonic()
        later = await write(core, *(f"m-{number}" for number in range(1, 101)))
        took = time.monotonic() - began
    assert first.degraded
    assert WAIT_SECONDS * 0.9 <= waited < WAIT_SECONDS + 2
    assert all(committed.degraded for committed in later)
    assert [committed.positions[0].offset for committed in later] == list(range(3, 103))
    assert took < 100 * WAIT_SECONDS / 10, "a hundred writes that do not wait"
    assert acks_of(core).degraded_since is not None
    assert acks_of(core).degraded_writes == 101
    assert [log["event"] for log in logs] == ["replicas.degraded"]


async def test_when_the_replica_is_back_it_is_noticed_and_told_once(pair: Pair, core: Core) -> None:
    await core.committer.commit("ses_1", [creating("ses_1")])
    pair.replica.halt()
    await write(core, "m-0", "m-1")
    pair.replica.resume()
    with capture_logs() as logs:
        await until(lambda: acks_of(core).degraded_since is None)
    (told,) = logs
    assert (told["event"], told["count"]) == ("replicas.confirming", 2)
    (done,) = await write(core, "m-2")
    assert not done.degraded
    assert acks_of(core).degraded_writes == 2


async def test_sessions_that_share_a_connection_do_not_wait_one_behind_the_other(
    pair: Pair, core: Core
) -> None:
    sessions = [f"ses_{number}" for number in range(64)]  # on 16 connections
    created = (core.committer.commit(name, [creating(name)]) for name in sessions)
    await asyncio.gather(*created)
    pair.replica.halt()
    began = time.monotonic()
    done = await asyncio.gather(*(write(core, "m-0", session=name) for name in sessions))
    took = time.monotonic() - began
    assert all(committed.degraded for (committed,) in done)
    assert took < 2.5 * WAIT_SECONDS, "four waits, one behind the other, take longer"


async def test_a_write_that_was_applied_before_is_confirmed_for_itself(
    pair: Pair, core: Core, namespace: str
) -> None:
    """WAIT alone would not tell: for a connection that wrote nothing it is always content."""
    local = core_on(pair, namespace, "local")
    await local.committer.commit("ses_1", [creating("ses_1")])
    assert await acks_of(core).confirm()
    pair.replica.halt()
    lost = await local.committer.commit("ses_1", [appending("m-1")])  # its reply, let us say
    core.committer.writer = local.committer.writer
    core.committer._sequence = 1
    again = await core.committer.commit("ses_1", [appending("m-1")])
    assert again.duplicate
    assert again.positions == lost.positions
    assert again.degraded
    assert acks_of(core).degraded_since is not None, "the next one need not wait"
    assert acks_of(core).degraded_writes == 1
    await local.close()


async def test_fewer_replicas_than_wanted_are_not_enough(pair: Pair, namespace: str) -> None:
    core = core_on(pair, namespace, replicas=2)
    created = await core.committer.commit("ses_1", [creating("ses_1")])
    assert created.degraded
    await core.close()


async def test_a_check_before_the_first_write_spares_it_the_wait(pair: Pair, core: Core) -> None:
    pair.replica.halt()
    await acks_of(core).check()
    began = time.monotonic()
    created = await core.committer.commit("ses_1", [creating("ses_1")])
    assert created.degraded
    assert time.monotonic() - began < WAIT_SECONDS / 2


async def test_what_was_confirmed_is_there_when_the_replica_is_promoted(
    own_pair: Pair, namespace: str
) -> None:
    core = core_on(own_pair, namespace)
    await core.committer.commit("ses_1", [creating("ses_1")])
    names = [f"m-{number}" for number in range(200)]
    done = await write(core, *names)
    assert not any(committed.degraded for committed in done)
    own_pair.primary.kill()
    async with Redis.from_url(own_pair.replica.url) as promoted:
        await promoted.execute_command("REPLICAOF", "NO", "ONE")
        kept: Any = await promoted.xrange(core.keys.conversation("ses_1"))
    assert [fields[b"id"].decode() for _, fields in kept][1:] == names
    await core.close()


async def test_a_user_who_may_not_wait_is_told_so_at_the_start(pair: Pair, namespace: str) -> None:
    async with Redis.from_url(pair.primary.url) as admin:
        rules = ("on", ">p", "~*", "&*", "+@all", "-wait")
        await admin.execute_command("ACL", "SETUSER", "nowait", *rules)
    options = RedisOptions(namespace=namespace, durability="replica")
    url = pair.primary.url.replace("unix://", "unix://nowait:p@")
    core = Core(url, Configuration(redis=options), instance="here")
    with pytest.raises(NoPermissionError):
        await acks_of(core).check()
    await core.close()


async def test_probes_leave_no_key_behind(pair: Pair, core: Core) -> None:
    async with Redis.from_url(pair.primary.url) as redis, redis.pubsub() as listener:
        await listener.subscribe(core.keys.replication)
        await listener.get_message(timeout=5)
        assert await acks_of(core).confirm()
        heard = await listener.get_message(timeout=5)
        assert heard is not None
        assert heard["data"] == b""
        assert not await redis.exists(core.keys.replication)
