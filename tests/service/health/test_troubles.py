"""What the doctor says of sessions in trouble: each trouble has a check, a finding and a remedy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

from sessiond.model import ConflictRecord, ConflictSide
from sessiond.service.finding import Finding
from sessiond.service.health.scanning import Damage
from sessiond.service.health.troubles import (
    Speed,
    conflicts_finding,
    growth_finding,
    process_finding,
    scan_finding,
    speed_findings,
)
from sessiond.store.workload import memory_of, slow_commands
from tests.service.support import create
from tests.store.support import Services, real_servers

MIB = 1024 * 1024
NOON = datetime(2026, 1, 13, 12, tzinfo=UTC)
Severity = Literal["damaged", "warning"]


def damage(session_id: str, severity: Severity = "damaged") -> Damage:
    return Damage(
        session_id=session_id, key="k", finding="is wrong", severity=severity, remedy="repair it"
    )


def conflict(
    state: Literal["open", "settled"] = "settled", minutes: int = 0, field: str = "theme"
) -> ConflictRecord:
    at = NOON + timedelta(minutes=minutes)
    side = ConflictSide(value=1, origin="a", at=at)
    return ConflictRecord(
        number="5", session_id=f"ses_{minutes}", document="preferences", path=[field],
        strategy="last-writer-wins", outcome="ours", ours=side, theirs=side, state=state, at=at,
    )  # fmt: skip


def speed(**more: Any) -> list[Finding]:
    usual = {"trip_ms": 0.2, "sync_ms": 1.0, "loop_ms": 2.0, "slow": {}}
    return speed_findings(Speed(**{**usual, **more}))


def test_where_nothing_is_wrong_each_check_says_what_it_saw() -> None:
    found = [
        scan_finding(12, [], finished=True),
        growth_finding({"ses_1": 2 * MIB, "ses_2": 3 * MIB}),
        process_finding(60 * MIB),
        conflicts_finding([]),
        *speed(),
    ]
    assert {finding.state for finding in found} == {"ok"}
    assert [finding.finding for finding in found] == [
        "the 12 newest are whole",
        "ses_2 3.0 MiB, ses_1 2.0 MiB",
        "the daemon takes 60.0 MiB",
        "there are none",
        "0.20 ms to Redis and back",
        "1.00 ms until the journal's disk has a write",
        "late by 2 ms at most within the last minute",
        "none above 100 ms within the last hour",
    ]


def test_damaged_sessions_are_named_and_can_be_repaired() -> None:
    found = scan_finding(9, [damage(f"ses_{n}") for n in range(5)], finished=True)
    assert (found.state, found.code) == ("failed", "store-damaged")
    assert "5 of the 9 newest" in found.finding
    assert "ses_0, ses_1, ses_2 and 2 more" in found.finding
    assert "sessiond repair" in found.remedy


def test_a_warning_of_a_scan_is_no_damage_and_little_time_is_told() -> None:
    assert scan_finding(9, [damage("ses_1", "warning")], finished=True).state == "ok"
    assert "no time for more" in scan_finding(9, [], finished=False).finding
    assert scan_finding(0, [], finished=True).finding == "there are none yet"


@pytest.mark.parametrize(
    ("finding", "says", "remedy"),
    [
        (growth_finding({"ses_1": 65 * MIB}), "ses_1 65.0 MiB", "new session"),
        (process_finding(600 * MIB), "600.0 MiB", "restart"),
        (
            conflicts_finding([conflict("open", 5), conflict("open", 2), conflict()]),
            "2 are open, of ses_2 since 2026-01-13T12:02:00.000Z",
            "sessiond resolve",
        ),
        (
            conflicts_finding([conflict(minutes=n) for n in range(5)]),
            "preferences theme conflicted 5 times",
            "sync.merge, for example preferences: {theme: union}",
        ),
        (speed(trip_ms=25)[0], "25.00 ms", "nearer"),
        (speed(sync_ms=80)[1], "80.00 ms", "journal.directory"),
        (speed(loop_ms=300)[2], "300 ms", "busy"),
        (speed(slow={"KEYS": 900.0, "GET": 1.0})[3], "KEYS took 900 ms", "slowlog"),
    ],
)
def test_each_trouble_is_a_warning_with_a_remedy(finding: Finding, says: str, remedy: str) -> None:
    assert finding.state == "warning"
    assert says in finding.finding
    assert remedy in finding.remedy


def test_what_a_user_may_not_know_is_skipped() -> None:
    assert growth_finding(None).state == "skipped"
    assert speed(slow=None)[3].state == "skipped"
    assert speed(sync_ms=None)[1].state == "skipped"


@real_servers
async def test_a_server_tells_the_memory_of_keys_and_its_slow_commands(core: Services) -> None:
    await create(core)
    small = [core.keys.metadata("ses_1"), core.keys.conversation("ses_1")]
    await core.redis.set("large", "x" * 100_000)
    sizes = await memory_of(core.redis, [small, ["large", "not-there"], []])
    assert sizes is not None
    assert 0 < sizes[0] < 100_000 < sizes[1]
    assert sizes[2] == 0
    before = await core.redis.config_get("slowlog-log-slower-than")
    await core.redis.config_set("slowlog-log-slower-than", 0)
    await core.redis.set("large", "secret")
    await core.redis.config_set("slowlog-log-slower-than", *before.values())
    seconds, _ = await core.redis.time()
    slow = await slow_commands(core.redis, seconds)
    assert slow is not None
    assert "SET" in slow
    assert "secret" not in str(slow)
    assert await slow_commands(core.redis, seconds + 4000) == {}
    await core.redis.delete("large")
