"""Sessions with something that a person is to decide."""

from __future__ import annotations

from sessiond.config.merging import merge_rules
from sessiond.config.options import MergeOptions
from sessiond.service.content.documents import Documents
from sessiond.service.writing import Request, Surroundings
from sessiond.store.conflicts import ConflictStore
from tests.store.support import Services


async def leave_open_conflict(core: Services, name: str) -> None:
    """Change a field twice from one version that only a person can merge."""
    around = Surroundings(
        core.store,
        ConflictStore(core.redis, core.keys),
        rules=merge_rules(MergeOptions(context={"working_directory": "manual"})),
        clock=core.clock,
    )
    documents = Documents(around)
    base = str((await documents.read(name, "context")).version)
    for folder in ("/theirs", "/ours"):
        change = {"working_directory": folder}
        await documents.change(name, "context", change, Request(base=base))
    assert await core.conflicts.of_session(name, "open")
