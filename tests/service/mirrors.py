"""A mirror of one process's sessions, moved step by step, whose files a test may change."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sessiond.files.layout import MOST_CACHED
from sessiond.files.root import FilesRoot
from sessiond.service.durable.performing import Performed, Performer
from sessiond.service.mirrored.hand_edits import Source
from sessiond.service.mirrored.mirroring import Mirror
from sessiond.service.offline.reachability import Reachability
from sessiond.service.writes import Write, completed
from tests.service.cached.test_caching import caches_on
from tests.store.support import Services


class Mirrored:
    """A mirror and its folder. Time passes only in `step`: each lasts as long as a pause."""

    def __init__(self, core: Services, folder: Path, *, restores: bool) -> None:
        self.core = core
        self.folder = folder
        self.seconds = 0.0
        self.waiting: list[Write] = []
        self.caches = caches_on(core)
        self.redis = Reachability(core.redis.ping)
        self.redis.note_answer()
        self.performer = Performer(
            core.store.log,
            sessions=core.sessions,
            messages=core.messages,
            records=core.records,
            documents=core.documents,
            conflicts=core.conflicts,
            preferences=core.preferences,
        )
        source = Source(
            store=core.store,
            load=core.sessions.load,
            submit=self._submit,
            perform=self.performer.perform,
            cached=lambda session_id, seen: self.caches.newest(session_id, MOST_CACHED, seen),
            waiting=lambda _: self.waiting,
            redis=self.redis,
            clock=core.clock,
        )
        root = FilesRoot.open(folder)
        self.mirror = Mirror(root, source, restores=restores, now=lambda: self.seconds)
        core.store.on_commit.append(self.mirror.note_written)
        self.caches.on_change.append(self.mirror.note_cached)

    async def _submit(self, write: Write) -> Performed:
        write = completed(write, self.core.clock(), secrets.token_bytes)
        return await self.performer.perform(write)

    async def step(self, times: int = 1) -> None:
        """Let the mirror do its work, a thousand seconds later each time."""
        for _ in range(times):
            self.seconds += 1000.0
            await self.mirror.step()

    def path(self, name: str, session_id: str = "ses_1") -> Path:
        return self.folder / session_id / f"{name}.json"

    def read(self, name: str, session_id: str = "ses_1") -> Any:
        return json.loads(self.path(name, session_id).read_bytes())

    def edit(self, name: str, value: Any, session_id: str = "ses_1") -> None:
        """Change a file as an editor does: in its place, at another time."""
        text = value if isinstance(value, str) else json.dumps(value)
        path = self.path(name, session_id)
        before = path.stat().st_mtime_ns
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(before, before + 1_000_000))

    def flip(self, name: str) -> None:
        """Change a bit of a file as a bad disk does: at no time."""
        path = self.path(name)
        before, content = path.stat().st_mtime_ns, bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(before, before))


@asynccontextmanager
async def mirrored(
    core: Services, folder: Path, *, restores: bool = True
) -> AsyncIterator[Mirrored]:
    """Run a mirror as one life of a daemon does: first it reads what lies there."""
    running = Mirrored(core, folder, restores=restores)
    await running.mirror.check_all()
    try:
        await running.step()
        yield running
    finally:
        core.store.on_commit.remove(running.mirror.note_written)
        await running.mirror.close()
