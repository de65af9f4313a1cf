"""What a look at a database says of its sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sessiond.opencode.saved import SavedShare
from sessiond.service.opencode.catalogue import Catalogue, Sighting
from sessiond.sync.position import Position
from tests.opencode.simulated import PROJECT, SimulatedOpencode
from tests.service.opencode.sharing import Seconds

AT = Position("a" * 14, 5)


class Looked:
    """A catalogue of a simulated opencode, and the notes beside its database."""

    def __init__(self) -> None:
        self.opencode = SimulatedOpencode()
        self.deleted: set[str] = set()
        self.identity = "memory"
        self.seconds = Seconds()
        self.stored: list[SavedShare] = []
        saved = SavedShare(
            replica="oc-1",
            machine="m",
            database="memory",
            project_id=PROJECT,
            worktree="/w",
            workspace="default",
            since_ms=0,
        )
        self.catalogue = Catalogue(saved, self._read, self.stored.append, self.seconds)

    async def _read(self, question: Callable[..., Any]) -> Any:
        database = self.opencode.database
        database.notes = lambda: {"private": set(), "deleted": set(self.deleted)}  # type: ignore[method-assign]
        database.identity = lambda: self.identity  # type: ignore[method-assign]
        return question(database)

    async def look(self, *, after: float = 0.0) -> Sighting:
        self.seconds.now += after
        return await self.catalogue.look()

    async def shared(self, *names: str) -> None:
        """Let sessions be known, and their logs be here."""
        for name in names:
            self.opencode.create(name)
        await self.look()
        for name in names:
            self.catalogue.note(name, AT)


@pytest.fixture
def looked() -> Iterator[Looked]:
    looked = Looked()
    yield looked
    looked.opencode.close()


async def test_a_session_is_missing_when_it_is_so_for_a_while(looked: Looked) -> None:
    await looked.shared("s1", "s2")
    looked.opencode.delete("s1")
    assert (await looked.look()).missing == []
    assert (await looked.look(after=4.9)).missing == []
    assert looked.catalogue.is_waiting
    assert (await looked.look(after=0.2)).missing == ["s1"]
    assert not looked.catalogue.is_waiting


async def test_a_session_is_not_missing_that_was_so_at_one_look_only(looked: Looked) -> None:
    await looked.shared("s1")
    looked.opencode.delete("s1")
    await looked.look()
    looked.opencode.create("s1")
    assert (await looked.look(after=60)).missing == []
    looked.opencode.delete("s1")
    assert (await looked.look()).missing == []


async def test_a_note_makes_it_deleted_whenever_it_comes(looked: Looked) -> None:
    await looked.shared("s1")
    looked.opencode.delete("s1")
    assert (await looked.look()).deleted == set()
    looked.deleted.add("s1")
    sighting = await looked.look(after=60)
    assert (sighting.deleted, sighting.missing) == ({"s1"}, [])


async def test_a_session_deleted_before_its_position_was_noted_is_deleted(looked: Looked) -> None:
    looked.opencode.create("s1")
    await looked.look()
    looked.opencode.delete("s1")
    await looked.look()
    looked.deleted.add("s1")
    assert (await looked.look()).deleted == {"s1"}


async def test_an_old_note_means_nothing_once_everybody_knows(looked: Looked) -> None:
    await looked.shared("s1")
    looked.opencode.delete("s1")
    looked.deleted.add("s1")
    assert (await looked.look()).deleted == {"s1"}
    looked.catalogue.forget("s1")
    for _ in range(2):
        assert (await looked.look(after=60)).deleted == set()


@pytest.mark.parametrize("how", ["another file", "an older state"])
async def test_a_database_that_went_back_makes_everything_be_compared_at_once(
    looked: Looked, how: str
) -> None:
    await looked.shared("s1", "s2")
    looked.opencode.message("s2", "m1")
    await looked.look()
    looked.opencode.delete("s1")
    await looked.look()
    if how == "another file":
        looked.identity = "other"
    else:
        looked.opencode.forget_events("s2")
    sighting = await looked.look()
    assert sighting.went_back
    assert not looked.catalogue.is_waiting
    assert looked.catalogue.saved.cursors == {}


async def test_only_what_was_brought_back_is_called_returned(looked: Looked) -> None:
    await looked.shared("s1")
    looked.deleted |= {"s1", "s2"}
    await looked.look()
    assert looked.catalogue.returned == set()
    looked.opencode.connection.execute("UPDATE event SET id = 'evt_sd1' WHERE aggregate_id = 's1'")
    await looked.look()
    assert looked.catalogue.returned == {"s1"}
    assert not looked.catalogue.is_shared("s1")
    looked.catalogue.keep_private("s1")
    await looked.look()
    assert looked.catalogue.returned == set()


async def test_a_session_that_is_distrusted_has_no_position_on_disk_either(looked: Looked) -> None:
    await looked.shared("s1", "s2")
    looked.catalogue.distrust("s1")
    looked.catalogue.save()
    assert looked.catalogue.position("s1").offset == 0
    assert looked.catalogue.position("s2") == AT
    assert looked.stored[-1].cursors["s1"].offset == 0
    assert looked.catalogue.is_shared("s1")
