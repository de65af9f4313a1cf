"""Whatever happens on several machines, in any order: at the end all of them and the log agree."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any, TypeVar

from fakeredis import FakeServer
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from sessiond.config.options import Configuration, RedisOptions
from sessiond.errors import SessiondError
from sessiond.service.live.feed import operation_event
from sessiond.service.opencode import lane as lanes
from sessiond.store.sessions import End
from tests.conftest import _on_fakeredis
from tests.service.opencode.support import SESSION, Site, local_texts, texts
from tests.store.support import Services, TurnedClock, roll_back, take_copy

Outcome = TypeVar("Outcome")

ROUNDS = 8
SERVER = FakeServer(version=(7,))
"""One for all, as scripts are compiled for each; what keeps the runs apart is their namespace."""

which = st.integers(0, 2)
messages = st.sampled_from(["m0", "m1", "m2"])
numbers = st.integers(0, 1)
small = st.integers(1, 6)


class Machines(RuleBasedStateMachine):
    """Two or three machines that share a session, on a Redis of their own.

    A record's id is used once, as opencode's are: what was removed anywhere is not made anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pause, lanes._FIRST_PAUSE_SECONDS = lanes._FIRST_PAUSE_SECONDS, 0.001
        self.loop = asyncio.new_event_loop()
        self.clock = TurnedClock()
        self.words = 0
        self.asking: list[asyncio.Future[None]] = []
        self.removed: set[str] = set()
        self.copy: dict[str, bytes] | None = None
        self.cores: list[Services] = []
        self.sites: list[Site] = []
        self.told: list[int] = []
        self.run(self._start())

    async def _start(self) -> None:
        configuration = Configuration(redis=RedisOptions(namespace=secrets.token_hex(4)))
        for name in ("a", "b", "c"):
            core = _on_fakeredis(SERVER, configuration, name, self.clock)
            core.kind = "fakeredis"
            self.cores.append(core)
            self.sites.append(Site(core, f"oc-{name}", f"/{name}"))
            self.told.append(0)
        self.sites[0].opencode.create(SESSION)
        await self.sites[0].outbox.flush(SESSION)
        for site in self.sites:
            await site.catch_up()

    def run(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        self.clock.ms += 1
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def text(self, site: Site) -> str:
        self.words += 1
        return f"{self.words} by {site.replica}"

    # What people do

    @rule(at=which, name=messages)
    def write_message(self, at: int, name: str) -> None:
        site = self.sites[at]
        if name in site.opencode.records(SESSION) or name not in self.removed:
            site.opencode.message(SESSION, name, text=self.text(site))

    @rule(at=which, name=messages, number=numbers)
    def write_part(self, at: int, name: str, number: int) -> None:
        site = self.sites[at]
        records, part = site.opencode.records(SESSION), f"{name}p{number}"
        if name in records and (f"{name}/{part}" in records or part not in self.removed):
            site.opencode.part(SESSION, name, part, self.text(site))

    @rule(at=which, name=messages)
    def remove_message(self, at: int, name: str) -> None:
        site = self.sites[at]
        if name in site.opencode.records(SESSION):
            self.removed |= {name, f"{name}p0", f"{name}p1"}
            site.opencode.remove_message(SESSION, name)

    @rule(at=which, name=messages, number=numbers)
    def remove_part(self, at: int, name: str, number: int) -> None:
        site = self.sites[at]
        part = f"{name}p{number}"
        if f"{name}/{part}" in site.opencode.records(SESSION):
            self.removed.add(part)
            site.opencode.remove_part(SESSION, name, part)

    @rule(at=which, name=messages)
    def go_back(self, at: int, name: str) -> None:
        site = self.sites[at]
        if name in site.opencode.records(SESSION):
            site.opencode.revert(SESSION, name)

    @rule(at=which)
    def clean_up(self, at: int) -> None:
        site = self.sites[at]
        before = site.opencode.records(SESSION).keys()
        site.opencode.clean_up(SESSION)
        gone = before - site.opencode.records(SESSION).keys()
        self.removed |= {name.rpartition("/")[2] for name in gone}

    @rule(at=which)
    def rename(self, at: int) -> None:
        site = self.sites[at]
        site.opencode.update(SESSION, title=self.text(site))

    @rule()
    def rename_through_the_api(self) -> None:
        self.words += 1
        patch = {"title": f"{self.words} by the API"}
        self.run(self.cores[0].documents.change(SESSION, "metadata", patch))

    @rule(at=which)
    def begin_turn(self, at: int) -> None:
        self.sites[at].busy = True

    @rule(at=which)
    def end_turn(self, at: int) -> None:
        self.sites[at].busy = False
        self.run(self.sites[at].lane.ask("release"))

    # What machines do

    @rule(at=which)
    def flush(self, at: int) -> None:
        self.run(self._flush(self.sites[at]))

    @rule(at=which, most=small)
    def hear(self, at: int, most: int) -> None:
        """A feed tells what follows; the lane has not taken it yet."""
        self.run(self._hear(at, most))

    async def _hear(self, at: int, most: int) -> None:
        entries = await self.cores[at].entries(SESSION)
        for entry in entries:
            if self.told[at] < entry.offset <= self.told[at] + most:
                self.sites[at].lane.hear(operation_event(SESSION, entry))
        self.told[at] = min(self.told[at] + most, len(entries))

    @rule(turns=st.integers(1, 30))
    def pass_time(self, turns: int) -> None:
        async def wait() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(wait())

    @rule(at=which)
    def catch_up(self, at: int) -> None:
        self.run(self._catch_up(self.sites[at]))

    @precondition(lambda self: not any(site.busy for site in self.sites))
    @rule(at=which)
    def reconcile(self, at: int) -> None:
        self.run(self.sites[at].lane.ask("reconcile"))

    @rule(at=which)
    def restart(self, at: int) -> None:
        self.run(self._restart(self.sites[at]))
        self.told[at] = self.sites[at].position.offset

    @rule(at=which, times=st.integers(1, 2))
    def lose_the_plugin(self, at: int, times: int) -> None:
        self.sites[at].failures = times

    async def _catch_up(self, site: Site) -> None:
        """Catch up, but do not wait for the end of a turn: another history is taken after it."""
        asking = asyncio.ensure_future(site.lane.ask("catch-up"))
        self.asking.append(asking)
        await asyncio.wait([asking], timeout=0.05 if site.busy else None)

    async def _restart(self, site: Site) -> None:
        site.restart()

    async def _flush(self, site: Site) -> None:
        for _ in range(5):
            try:
                return await site.outbox.flush(SESSION)
            except SessiondError as error:
                if not error.temporary:
                    raise
        raise AssertionError("a flush never succeeds")

    # What must be true in the end

    def teardown(self) -> None:
        try:
            self.run(self._settle())
            self.run(self._agree())
        finally:
            self.run(self._stop())
            self.loop.close()
            lanes._FIRST_PAUSE_SECONDS = self.pause

    async def _settle(self) -> None:
        for site in self.sites:
            site.busy, site.failures = False, 0
        end: End | None = None
        for _ in range(ROUNDS):
            for site in self.sites:
                await self._flush(site)
                await site.catch_up()
                await site.lane.ask("release")
            now = await self.cores[0].store.end(SESSION)
            if now == end:
                return
            end = now
        raise AssertionError("it never comes to rest")

    async def _agree(self) -> None:
        expected = await texts(self.cores[0])
        record = await self.sites[0].session_record(SESSION) or {}
        titles = {(s.opencode.database.info(SESSION) or {}).get("title") for s in self.sites}
        for site in self.sites:
            assert local_texts(site) == expected, site.replica
        assert len(titles) == 1, (titles, record.get("title"))

    async def _stop(self) -> None:
        for site in self.sites:
            site.close()
        for asking in self.asking:
            asking.cancel()
        await asyncio.sleep(0)
        for core in self.cores:
            await core.close()


class ForgetfulRedis(Machines):
    """The same while Redis loses what was written last, again and again."""

    @rule()
    def remember(self) -> None:
        self.copy = self.run(take_copy(self.cores[0], SESSION))

    @precondition(lambda self: self.copy)
    @rule()
    def forget(self) -> None:
        if self.copy:
            self.run(roll_back(self.cores[0], SESSION, self.copy))
        for at, site in enumerate(self.sites):
            site.outbox.forget(SESSION)
            self.told[at] = 0


_settings = settings(
    max_examples=40,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes here
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
Machines.TestCase.settings = _settings
ForgetfulRedis.TestCase.settings = _settings

TestMachinesAgree = Machines.TestCase
TestMachinesAgreeAlthoughRedisForgets = ForgetfulRedis.TestCase
