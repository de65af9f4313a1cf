"""Time passes in Redis: what it holds of presence becomes older, instead of anybody waiting."""

from __future__ import annotations

from tests.store.support import Services


async def later(core: Services, ms: int, *session_ids: str) -> None:
    """Make everything that sessions hold of presence this much older."""
    for session_id in session_ids:
        key = core.keys.presence(session_id)
        for name, value in (await core.redis.hgetall(key)).items():
            since, seen, until, rest = value.split(b" ", 3)
            times = [str(int(time) - ms).encode() for time in (since, seen, until)]
            await core.redis.hset(key, name, b" ".join([*times, rest]))
        score = await core.redis.zscore(core.keys.present, session_id)
        if score is not None:
            await core.redis.zadd(core.keys.present, {session_id: score - ms})
