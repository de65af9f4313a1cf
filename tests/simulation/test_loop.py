from __future__ import annotations

import asyncio
import time

import pytest

from tests.simulation.loop import Endless, VirtualLoop, run_virtually


def test_hours_pass_in_no_time() -> None:
    async def sleep(loop: VirtualLoop) -> float:
        await asyncio.sleep(3600)
        return loop.time()

    began = time.monotonic()
    assert run_virtually(sleep) == 3600
    assert time.monotonic() - began < 60


def test_who_sleeps_less_wakes_first() -> None:
    woken: list[tuple[float, str]] = []

    async def sleep(loop: VirtualLoop) -> None:
        async def one(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append((loop.time(), name))

        await asyncio.gather(one("late", 2), one("early", 1), one("now", 0))

    run_virtually(sleep)
    assert woken == [(0, "now"), (1, "early"), (2, "late")]


def test_a_limit_of_time_is_reached() -> None:
    async def wait(_: VirtualLoop) -> None:
        async with asyncio.timeout(5):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        run_virtually(wait)


def test_who_waits_for_ever_is_told() -> None:
    async def wait(_: VirtualLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Endless):
        run_virtually(wait)


def test_who_never_comes_to_rest_is_told() -> None:
    async def spin(_: VirtualLoop) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Endless):
        run_virtually(spin)


def test_what_is_left_at_the_end_is_cancelled() -> None:
    ended: list[str] = []

    async def leave(_: VirtualLoop) -> asyncio.Task[None]:
        async def stay() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("stay")

        task = asyncio.create_task(stay())
        await asyncio.sleep(0)
        return task

    assert run_virtually(leave).cancelled()
    assert ended == ["stay"]
