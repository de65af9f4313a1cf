"""What a user's preferences are made of: the merge patches of all machines, in order of time. Pure.

Machines may have a patch later than others, or twice: while Redis was away, or lost what it had.
So of each path the newest change is kept with its stamp, and the preferences are what all of them
make when they are applied from the oldest to the newest, whatever the order they came in.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

from sessiond.model import Preferences
from sessiond.sync.position import START, Position

MOST_REMOVALS = 1000
"""So many removals are remembered, so that what is older than one does not come back."""

MOST_WRITES = 256
"""So many writes are known again when they come once more."""

_MARK_BYTES = 7

Path: TypeAlias = tuple[str, ...]
"""The names that lead to a field, the outermost first."""


class Setting(Struct, frozen=True, omit_defaults=True, array_like=True):
    """What a path was set to, and when; without a value it was removed.

    `stamp` orders settings: see `stamp_of`.
    """

    path: Annotated[Path, Meta(min_length=1)]
    stamp: Annotated[str, Meta(pattern=r"^(\d{15} .+)?$")]
    value: Any = None


class KnownWrite(Struct, frozen=True, array_like=True):
    """A write that was applied: as which one, and the digest of its content."""

    number: Annotated[int, Meta(ge=1)]
    digest: str


class PreferenceChanges(Struct):
    """All that is known of the changes of a user's preferences.

    Attributes:
        settings: from the oldest to the newest.
        writes: the newest writes by their marks, in the order in which they were applied.
    """

    settings: list[Setting] = []
    writes: dict[Annotated[str, Meta(pattern="^[0-9a-f]{14}$")], KnownWrite] = {}

    @property
    def position(self) -> Position:
        """What stands for the last write that was applied."""
        if not self.writes:
            return START
        mark = next(reversed(self.writes))
        return Position(mark, self.writes[mark].number)

    def has(self, position: Position) -> bool:
        """Tell whether a write was applied; one that is too old to be known counts as applied."""
        oldest = next(iter(self.writes.values()), None)
        if position.epoch in self.writes:
            return True
        return oldest is not None and oldest.number > 1 and position.offset < oldest.number

    def next_ms(self, now_ms: int) -> int:
        """Return the time of a change by somebody who saw these: it is later than all of them.

        Clocks of several machines differ: what was seen must not win over what came of it.
        """
        newest = self.settings[-1].stamp.partition(" ")[0] if self.settings else ""
        return max(now_ms, int(newest or 0) + 1)

    def preferences(self) -> Preferences:
        """Return what the settings make together."""
        value: Preferences = {}
        for setting in self.settings:
            _set(value, setting)
        return value

    def with_patch(self, patch: Preferences, stamp: str) -> PreferenceChanges:
        """Return the changes with a merge patch (RFC 7396) among them, wherever its time is."""
        new = [Setting(path, stamp, value) for path, value in _leaves(patch)]
        return PreferenceChanges(_bounded(_merged(self.settings, new)), self.writes)

    def with_write(self, mark: str, digest: str) -> PreferenceChanges:
        """Return the changes with a write known as applied."""
        known = list(self.writes.items())[1 - MOST_WRITES :]
        number = self.position.offset + 1
        return PreferenceChanges(self.settings, {**dict(known), mark: KnownWrite(number, digest)})


def changes_of(preferences: Preferences) -> PreferenceChanges:
    """Return what preferences are made of whose history is not known."""
    return PreferenceChanges().with_patch(preferences, "")


def stamp_of(at_ms: int, key: str) -> str:
    """Return what orders a write among others: when it was asked for, then its key."""
    return f"{at_ms:015d} {key}"


def mark_of(key: str) -> str:
    """Return what a write is known by; unlike a journaled one's, it begins with a zero."""
    return "0" + blake2b(key.encode(), digest_size=_MARK_BYTES).hexdigest()[1:]


def _leaves(patch: Preferences, path: Path = ()) -> Iterable[tuple[Path, Any]]:
    """Yield the paths that a merge patch sets, and to what; None removes, `{}` makes an object."""
    for name, value in patch.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _set(preferences: Preferences, setting: Setting) -> None:
    """Do to preferences what a merge patch of this one setting does."""
    *parents, name = setting.path
    target: dict[str, Any] = preferences
    for parent in parents:
        below = target.get(parent)
        if not isinstance(below, dict):
            below = target[parent] = {}
        target = below
    if setting.value is None:
        target.pop(name, None)
    elif setting.value != {}:
        target[name] = setting.value
    elif not isinstance(target.get(name), dict):
        target[name] = {}


def _merged(settings: list[Setting], new: list[Setting]) -> list[Setting]:
    """Return settings with those of one patch among them, without what is void."""
    patch = {setting.path: setting for setting in new}
    kept = [
        setting
        for setting in settings
        if not any(_voids(patch[path], setting) for path in _above(setting) if path in patch)
    ]
    there: dict[Path, list[Setting]] = {}
    for setting in kept:
        there.setdefault(setting.path, []).append(setting)
    added = [
        setting
        for setting in new
        if not any(_voids(old, setting) for path in _above(setting) for old in there.get(path, ()))
    ]
    return sorted([*kept, *added], key=lambda setting: (setting.stamp, setting.path))


def _above(setting: Setting) -> Iterable[Path]:
    """Yield the paths of which a setting's own is a part, its own last."""
    return (setting.path[: length + 1] for length in range(len(setting.path)))


def _voids(later: Setting, earlier: Setting) -> bool:
    """Tell whether nothing is left of a setting because of one at its path, or above it.

    An empty object leaves what is below it, and voids only another one.
    """
    if later.stamp < earlier.stamp:
        return False
    return later.value != {} or (later.path == earlier.path and earlier.value == {})


def _bounded(settings: list[Setting]) -> list[Setting]:
    removals = sum(setting.value is None for setting in settings)
    if removals <= MOST_REMOVALS:
        return settings
    kept = []
    for setting in settings:
        if setting.value is None and removals > MOST_REMOVALS:
            removals -= 1
        else:
            kept.append(setting)
    return kept
