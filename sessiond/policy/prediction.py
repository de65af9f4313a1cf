"""Which answers will be asked for next, from those that were asked for near one another. Pure.

What follows upon what is counted: less the more came between, and less the longer ago it was, by a
clock that counts what is asked. What is known is bounded: of each name the strongest followers, and
those names that were asked for last.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable

_NEAR = 6
_HALF_LIFE = 500
_MOST_FOLLOWERS = 24
_MOST_NAMES = 2048


class CoReads:
    """What is asked for near what, in one session.

    Args:
        near: how many names count as near, before each.
        half_life: after so many more names a count is worth half.
        followers: of each name, at most.
        names: that anything is known of, at most.
    """

    def __init__(
        self,
        *,
        near: int = _NEAR,
        half_life: int = _HALF_LIFE,
        followers: int = _MOST_FOLLOWERS,
        names: int = _MOST_NAMES,
    ) -> None:
        self._half_life = half_life
        self._most_followers = followers
        self._most_names = names
        self._now = 0
        self._recent: deque[str] = deque(maxlen=near)
        self._counts: OrderedDict[str, dict[str, tuple[float, int]]] = OrderedDict()

    def note(self, name: str) -> None:
        """Take note that a name was asked for. The same again at once says nothing new."""
        if self._recent and self._recent[-1] == name:
            return
        self._now += 1
        for distance, before in enumerate(reversed(self._recent), start=1):
            if before != name:
                self._count(before, name, 1 / distance)
        self._recent.append(name)
        self._counts.setdefault(name, {})
        self._counts.move_to_end(name)
        while len(self._counts) > self._most_names:
            self._counts.popitem(last=False)

    def begin_again(self) -> None:
        """Take note that what is asked for now does not follow upon what was before."""
        self._recent.clear()

    def likely(
        self, most: int, *, active: Iterable[str] = (), known: Collection[str] = ()
    ) -> list[str]:
        """Return the names that will be asked for next, the likeliest first, ties by name.

        What was asked for last is none of them.

        Args:
            most: how many at most.
            active: names that somebody works on: each counts as if it had followed once.
            known: names that are not wanted, as they are there already.
        """
        scores = dict.fromkeys(active, 1.0)
        for distance, name in enumerate(reversed(self._recent), start=1):
            for follower in self._counts.get(name, ()):
                worth = self._worth(name, follower) / distance
                scores[follower] = scores.get(follower, 0.0) + worth
        last = self._recent[-1] if self._recent else None
        wanted = [name for name in scores if name not in known and name != last]
        return sorted(wanted, key=lambda name: (-scores[name], name))[:most]

    def _count(self, before: str, name: str, weight: float) -> None:
        followers = self._counts.setdefault(before, {})
        followers[name] = (self._worth(before, name) + weight, self._now)
        if len(followers) > self._most_followers:
            others = [follower for follower in followers if follower != name]
            del followers[min(others, key=lambda follower: self._worth(before, follower))]

    def _worth(self, before: str, name: str) -> float:
        count, at = self._counts[before].get(name, (0.0, 0))
        return float(count * 0.5 ** ((self._now - at) / self._half_life))
