"""How long a merge takes: documents of 100 KB, changed on both sides."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from typing import Any

from sessiond.codec.json import encode
from sessiond.sync.merge import merge
from sessiond.sync.rules import Rules
from sessiond.sync.sides import Side
from tests.bench.machinery import Figure, figure

_BYTES = 100_000
_ROUNDS = 50


def figures() -> Iterator[Figure]:
    """Measure merges of a context document."""
    base = large_context()
    few = [_changed(base, side, every=50) for side in ("a", "b")]
    all_of_it = [_changed(base, side, every=1) for side in ("a", "b")]
    yield figure(
        "merge a 100 KB context, each side changed 2 %, p50", _p50(base, *few), "ms", most=5
    )
    yield figure("the same, each side changed every field, p50", _p50(base, *all_of_it), "ms")


def large_context() -> dict[str, Any]:
    """Return a context of 100 KB."""
    context: dict[str, Any] = {
        "working_directory": "/home/user/project",
        "active_files": [f"src/module_{number}/main.py" for number in range(200)],
        "recent_commands": ["read", "grep", "bash", "edit"] * 25,
        "state": {"current_task": "codebase_analysis", "findings": [], "tasks": {}},
    }
    while len(encode(context)) < _BYTES:
        number = len(context["state"]["tasks"])
        context["state"]["findings"].append(f"finding {number}: a sentence of ordinary length")
        context["state"]["tasks"][f"task_{number}"] = {
            "title": f"look at module {number}",
            "done": False,
            "count": number,
            "steps": [{"id": f"step_{step}", "note": "something seen"} for step in range(4)],
        }
    return context


def _changed(base: dict[str, Any], side: str, *, every: int) -> Side:
    context = copy.deepcopy(base)
    context["active_files"].append(f"{side}.py")
    context["recent_commands"] = [*context["recent_commands"][1:], side]
    context["state"]["findings"].append(f"found by {side}")
    for task in list(context["state"]["tasks"].values())[::every]:
        task["title"] += f", says {side}"
        task["count"] += 1
        for step in task["steps"]:
            step["note"] += f", {side}"
    return Side(context, at=1, origin=side)


def _p50(base: dict[str, Any], ours: Side, theirs: Side) -> float:
    rules = Rules().of("context")
    times = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        merge(base, ours, theirs, rules)
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)
