"""The scripts: known by their digest, and complete for the operations they are made for."""

from __future__ import annotations

from itertools import combinations

import pytest

from sessiond.store.scripts import (
    FACTS,
    JANITOR,
    NOTE_READ,
    OPERATIONS,
    SNAPSHOT,
    commit_script,
)
from tests.store.support import Services

PAIRS = [frozenset(pair) for pair in combinations(sorted(OPERATIONS), 2)]


def test_the_operations_are_those_of_the_log() -> None:
    assert {
        *("session.create", "session.delete", "document.change"),
        *("message.append", "message.edit", "message.remove", "part.put", "part.remove"),
        *("conflict.record", "conflict.resolve"),
    } == OPERATIONS


@pytest.mark.parametrize("operations", [*PAIRS, OPERATIONS])
def test_a_commit_script_has_the_verbs_of_its_operations_and_no_others(
    operations: frozenset[str],
) -> None:
    text = commit_script(operations).text
    assert {op for op in OPERATIONS if f"verbs['{op}'] = " in text} == operations
    assert commit_script(operations) is commit_script(frozenset(operations))


def test_different_operations_give_different_scripts() -> None:
    assert len({commit_script(pair).digest for pair in PAIRS}) == len(PAIRS)


async def test_servers_compile_the_scripts_and_know_them_by_our_digest(core: Services) -> None:
    for script in (
        SNAPSHOT,
        FACTS,
        NOTE_READ,
        JANITOR,
        *(commit_script(frozenset({op})) for op in OPERATIONS),
    ):
        loaded = await core.redis.execute_command("SCRIPT", "LOAD", script.text)
        assert loaded in (script.digest, script.digest.encode())
