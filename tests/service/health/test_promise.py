"""What is promised on which installation, word for word."""

from __future__ import annotations

import pytest

from sessiond.service.health.promise import (
    COMMITTED,
    DELIVERY,
    FAILOVER,
    JOURNALED,
    Installation,
    promises,
    promises_without_redis,
)
from sessiond.store.probe import ReplicaFacts, ServerFacts, ServerSettings

SINGLE = ServerFacts(version="redis 7.0.15")
REPLICATED = ServerFacts(
    version="redis 7.0.15", replicas=(ReplicaFacts("10.0.0.2:6379", "online", 0, 0),)
)
ALWAYS, EVERYSEC = ServerSettings(appendfsync="always"), ServerSettings(appendfsync="everysec")
BASE = ["journaled", "delivery", "committed", "here"]


@pytest.mark.parametrize(
    ("here", "of", "because"),
    [
        (
            Installation(server=SINGLE, settings=EVERYSEC, owned=True),
            BASE,
            "the embedded server runs with appendfsync everysec",
        ),
        (
            Installation(server=SINGLE, settings=ALWAYS),
            BASE,
            "this server runs with appendfsync always",
        ),
        (
            Installation(server=SINGLE),
            BASE,
            "this server runs with an appendfsync that it does not tell: take it for everysec",
        ),
        (
            Installation(server=ServerFacts(version="redis 7.0.15", aof=False)),
            BASE,
            (
                "this server runs with appendonly no: what was written since its last snapshot is "
                "lost in a crash"
            ),
        ),
        (
            Installation(server=REPLICATED, settings=EVERYSEC),
            [*BASE, "failover"],
            "this server runs with appendfsync everysec",
        ),
        (
            Installation(server=REPLICATED, settings=EVERYSEC, wanted_replicas=1),
            [*BASE, "failover"],
            (
                "this server runs with appendfsync everysec; 1 replica confirms each write before "
                "it is acknowledged, or the answer says that it is degraded"
            ),
        ),
        (
            Installation(server=SINGLE, settings=ALWAYS, wanted_replicas=2),
            [*BASE, "failover"],
            (
                "this server runs with appendfsync always; 2 replicas confirm each write before it "
                "is acknowledged, or the answer says that it is degraded"
            ),
        ),
        (
            Installation(server=ServerFacts(version="redis 7.0.15")),
            BASE,
            "this server runs with an appendfsync that it does not tell: take it for everysec",
        ),
    ],
)
def test_each_installation_has_its_promise(here: Installation, of: list[str], because: str) -> None:
    said = {promise.of: promise.promise for promise in promises(here)}
    assert list(said) == of
    assert said["here"] == because
    assert (said["journaled"], said["committed"]) == (JOURNALED, COMMITTED)
    assert said["delivery"] == DELIVERY
    assert said.get("failover", FAILOVER) == FAILOVER


def test_without_redis_only_the_journal_promises() -> None:
    assert [promise.of for promise in promises_without_redis()] == ["journaled", "delivery"]


def test_the_sentences_are_those_that_were_weighed() -> None:
    """Whoever changes one changes what people rely on: the README quotes them too."""
    assert JOURNALED == (
        "survives process and power failure of this machine if its disk honours fdatasync; enters "
        "the session's order once Redis is reachable; lost only if this journal is lost first."
    )
    assert COMMITTED == (
        "appends to a session are linearizable within one epoch. A crash of Redis may roll back a "
        "recent suffix (none with `appendfsync always`); rolled-back operations are re-inserted "
        "from their writers' journals, perhaps at new offsets, and observers see a new epoch."
    )
    assert FAILOVER == (
        "eventually consistent across a failover; acknowledged commits may be reordered and are "
        "restored from surviving journals."
    )
    assert DELIVERY == "effectively once while journal and dedupe window are kept"


@pytest.mark.parametrize("words", ["exactly once", "no data loss", "never lost"])
def test_nothing_is_promised_that_nobody_can_keep(words: str) -> None:
    assert all(words not in text.lower() for text in (JOURNALED, COMMITTED, FAILOVER, DELIVERY))
