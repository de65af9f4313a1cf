"""`sessiond conflicts` and `resolve`, and what `show` and `tail` say of conflicts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from uuid import uuid4

import pytest

from sessiond.client import DaemonClient
from sessiond.model import ConflictRecord, NewMessage, NewSession
from tests.cli.commands import EVIL, ask, called, on_terminal, sessiond
from tests.daemons import RunningDaemon, running_daemon


@pytest.fixture(scope="module")
def deciding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon by whose rules people decide about the phase."""
    file = tmp_path_factory.mktemp("config") / "sessions.yaml"
    file.write_text("sync: {merge: {context: {state.phase: manual}}}")
    with running_daemon("--config", str(file)) as daemon:
        yield daemon


async def _contested(client: DaemonClient) -> ConflictRecord:
    session_id = f"ses_{uuid4().hex}"
    await client.create(NewSession(session_id=session_id))
    base = (await client.document(session_id, "context")).version
    for phase in ("theirs", f"{EVIL}ours\nmore"):
        patch = {"state": {"phase": phase}}
        changed = await client.change_document(session_id, "context", patch, base=base)
    assert changed.conflicts
    return await client.conflict(session_id, changed.conflicts[0])


@pytest.fixture
def conflict(deciding: RunningDaemon) -> ConflictRecord:
    return ask(deciding, _contested)


def test_conflicts_are_listed_for_people_and_for_programs(
    deciding: RunningDaemon, conflict: ConflictRecord
) -> None:
    row = rf"{conflict.session_id} +4 +context state\.phase +manual +ours stands +open +[\d: -]+"
    for words in ((), (conflict.session_id,), ("--state", "open")):
        heading, *rows = sessiond(deciding, "conflicts", *words).stdout.splitlines()
        assert heading.split() == [
            *("SESSION", "NUMBER", "WHERE", "STRATEGY", "STANDS", "STATE", "WHEN")
        ]
        assert any(re.fullmatch(row, each) for each in rows)
    (told,) = json.loads(called(deciding, "conflicts", conflict.session_id, "--json").stdout)
    assert (told["number"], told["theirs"]["value"]) == ("4", "theirs")
    none = called(deciding, "conflicts", conflict.session_id, "--state", "resolved")
    assert (none.stdout, none.stderr) == ("", "no conflicts\n")


def test_one_conflict_is_shown_three_ways(
    deciding: RunningDaemon, conflict: ConflictRecord
) -> None:
    words = ("conflicts", "show", conflict.session_id, conflict.number)
    shown = called(deciding, *words).stdout
    assert EVIL not in shown
    assert re.search(
        r"^open by manual: ours stands\n\n--- base, version \S+\n\+\+\+ theirs, test@\S+, .*\n"
        r"\+theirs\n\n--- base, version \S+\n\+\+\+ ours, test@.*\n\+.*ours\n\+more\n\nto decide: ",
        shown,
        re.MULTILINE,
    )
    assert "\x1b[32m+theirs\x1b[0m" in on_terminal(deciding, *words)
    told = json.loads(called(deciding, *words, "--json").stdout)
    assert told["path"] == ["state", "phase"]


@pytest.mark.parametrize("words", [("resolve",), ("conflicts", "resolve")])
def test_a_conflict_stays_visible_until_it_is_decided(
    deciding: RunningDaemon, conflict: ConflictRecord, words: tuple[str, ...]
) -> None:
    shown = called(deciding, "show", conflict.session_id).stdout
    assert (
        f"in conflict: context state.phase, `sessiond conflicts show {conflict.session_id} 4`"
        in (shown)
    )
    done = called(deciding, *words, conflict.session_id, "4", "--take", "theirs")
    assert done.stdout == "conflict 4 is resolved: theirs was taken\n"
    shown = called(deciding, "show", conflict.session_id, "--json").stdout
    assert json.loads(shown)["context"]["state"] == {"phase": "theirs"}
    assert "in conflict" not in called(deciding, "show", conflict.session_id).stdout
    words = ("conflicts", "show", conflict.session_id, "4")
    assert "resolved: theirs was taken, by " in called(deciding, *words).stdout


def test_a_value_takes_the_place(deciding: RunningDaemon, conflict: ConflictRecord) -> None:
    words = ("resolve", conflict.session_id, "4", "--json", "--take", '["a"]')
    told = json.loads(called(deciding, *words).stdout)
    assert (told["state"], told["resolution"]["value"]) == ("resolved", ["a"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("conflicts", "show"), 3, "conflicts show ID NUMBER"),
        (("conflicts", "show", "{id}"), 3, "conflicts show ID NUMBER"),
        (("conflicts", "a", "b"), 3, "conflicts [ID]"),
        (("conflicts", "show", "{id}", "99"), 8, "no conflict '99'"),
        (("conflicts", "show", "{id}", "x"), 3, "conflict is 'x'"),
        (("conflicts", "ses_none"), 8, "no session"),
        (("conflicts", "--state", "lost"), 2, "invalid choice"),
        (("resolve", "{id}", "4"), 3, "--take ours, theirs"),
        (("resolve", "{id}", "4", "--take", "their"), 3, "neither a side nor JSON"),
        (("resolve", "{id}", "99", "--take", "ours"), 8, "no conflict"),
        (("resolve", "../x", "4", "--take", "ours"), 3, "session_id"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    deciding: RunningDaemon,
    conflict: ConflictRecord,
    words: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    meant = [word.format(id=conflict.session_id) for word in words]
    assert said in sessiond(deciding, *meant, code=code).stderr


def test_what_came_for_a_deleted_session_is_shown(deciding: RunningDaemon) -> None:
    async def late(client: DaemonClient) -> str:
        session_id = (await client.create(NewSession())).metadata.session_id
        await client.delete(session_id)
        with pytest.raises(Exception, match="kept as conflict 2"):
            await client.append(session_id, [NewMessage(role="user", content="late")])
        return session_id

    session_id = ask(deciding, late)
    assert '"content": "late"' in called(deciding, "conflicts", "show", session_id, "2").stdout
    said = called(deciding, "resolve", session_id, "2", "--take", "ours", code=8).stderr
    assert "was deleted" in said
