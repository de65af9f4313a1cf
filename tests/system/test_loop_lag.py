"""How late an event loop is, measured with a clock that the test turns."""

from __future__ import annotations

import asyncio

import pytest

from sessiond.daemon.troubleshooting import LoopLag


async def test_the_worst_delay_of_the_last_minute_is_told() -> None:
    now = 0.0
    delays = iter([0.0, 0.25, 0.01, *[0.0] * 120, None])
    told: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        told.append(lag.worst_ms)
        late = next(delays)
        if late is None:
            raise asyncio.CancelledError
        now += seconds + late

    lag = LoopLag(lambda: now, sleep)
    with pytest.raises(asyncio.CancelledError):
        await lag.run()
    assert told[:2] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert told[2:100] == pytest.approx([250.0] * 98)
    assert told[-1] == pytest.approx(0.0, abs=1e-6), "that was more than a minute ago"
