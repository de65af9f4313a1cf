"""Attempts to get a stale answer: other processes edit while several daemons look up and put."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from sessiond.model import CacheCall, NewCacheValue
from sessiond.service.cached import fingerprints
from sessiond.service.cached.caching import Caches
from sessiond.service.cached.fingerprints import Fingerprints
from tests.service.cached.test_caching import caches_on, look
from tests.service.support import create
from tests.store.support import Services

EDITOR = """
import os, random, sys, time
folder, limit, chance = sys.argv[1], time.monotonic() + float(sys.argv[2]), random.Random(5)
number = 0
print("begun", flush=True)
while time.monotonic() < limit:
    for _ in range(chance.choice([1, 1, 2, 20])):
        number += 1
        for name in ("one", "two"):
            path, text = os.path.join(folder, name), b"%08d" % number
            before = os.stat(path)
            target = path if chance.random() < 0.5 else path + ".new"
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT)
            os.pwrite(descriptor, text, 0)
            os.close(descriptor)
            os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
            if target != path:
                os.rename(target, path)
    time.sleep(chance.choice([0, 0.05, 0.15]))
"""


async def test_no_answer_is_older_than_the_question_while_another_process_edits(
    core: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All contents are numbered: a hit must lie between what is there before and after it.

    They are as long as each other, and each keeps the time of the one before it.
    """
    monkeypatch.setattr(fingerprints, "SETTLED_NS", 30_000_000)  # else nothing would be cached
    await create(core)
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"{0:08d}")
    editor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", EDITOR, str(tmp_path), "4"), stdout=subprocess.PIPE
    )
    assert editor.stdout
    await editor.stdout.readline()
    readers = [
        _read_while(editor, caches_on(core, str(number), Fingerprints()), tmp_path)
        for number in range(3)
    ]
    counts = await asyncio.gather(*readers)
    assert await editor.wait() == 0
    hits, stored = (sum(each) for each in zip(*counts, strict=True))
    assert hits > 20
    assert stored > 5


async def _read_while(
    editor: asyncio.subprocess.Process, caches: Caches, root: Path
) -> tuple[int, int]:
    hits = stored = 0
    calls = [CacheCall(tool="cat", path=name) for name in ("one", "two")]
    calls.append(CacheCall(tool="cat *", path=".", scope="tree"))
    while editor.returncode is None:
        for call in calls:
            before = _numbers(root, call)
            (found,) = await look(caches, root, call)
            after = _numbers(root, call)
            if found.outcome == "hit":
                hits += 1
                for first, given, last in zip(before, found.value, after, strict=True):
                    assert first <= given <= last
            elif found.stamp:
                new = NewCacheValue(
                    root=str(root), call=call, stamp=found.stamp, value=_numbers(root, call)
                )
                stored += (await caches.put("ses_1", found.key, new)).stored
        await asyncio.sleep(0)
    return hits, stored


def _numbers(root: Path, call: CacheCall) -> list[int]:
    names = ("one", "two") if call.scope == "tree" else (call.path,)
    return [int((root / name).read_text()) for name in names]
