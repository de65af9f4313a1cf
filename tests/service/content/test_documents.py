"""Documents: merged or replaced, by version, and read back as they were answered."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessiond.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    SessionDeleted,
    StoreDamaged,
    VersionMismatch,
)
from sessiond.model import Context, DocumentName, Metadata
from sessiond.service.writing import Request
from sessiond.sync.documents import merge_patch
from tests.service.support import create, load, said
from tests.store.support import Services, StartServices, contents

KEY = Request(key="k1")
numbers = itertools.count()
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)
patches = st.lists(
    st.dictionaries(st.sampled_from(["a", "b", "", "version", "é"]), values, max_size=3),
    min_size=1,
    max_size=4,
)
short_texts = st.text(st.characters(codec="utf-8"), max_size=5)

pytestmark = pytest.mark.usefixtures("session")


@pytest.fixture
async def session(core: Services) -> str:
    return await create(core, preferences={"theme": "dark", "deep": {"a": 1}}, title="t")


async def value_of(core: Services, name: DocumentName) -> Any:
    return msgspec.to_builtins((await core.documents.read("ses_1", name)).value)


async def test_a_patch_is_merged_into_the_document(core: Services) -> None:
    patch: Any = {"theme": None, "deep": {"b": [], "a": None}, "new": {"x": None, "y": 1}}
    changed = await core.documents.change("ses_1", "preferences", patch)
    assert changed.value == {"deep": {"b": []}, "new": {"y": 1}}
    read = await core.documents.read("ses_1", "preferences")
    assert (read.value, read.version) == (changed.value, changed.version)
    assert (await load(core)).versions["preferences"] == changed.version


async def test_a_replacement_leaves_nothing_of_what_was(core: Services) -> None:
    changed = await core.documents.change(
        "ses_1", "preferences", {"deep": None, "new": 1}, replace=True
    )
    assert changed.value == {"deep": None, "new": 1}
    assert await value_of(core, "preferences") == {"deep": None, "new": 1}


async def test_each_document_is_changed_for_itself(core: Services) -> None:
    await core.documents.change("ses_1", "context", {"working_directory": "/w", "state": {"a": 1}})
    await core.documents.change("ses_1", "metadata", {"title": "T", "status": "archived"})
    session = await load(core)
    assert session.context == Context(working_directory="/w", state={"a": 1})
    assert (session.metadata.title, session.metadata.status) == ("T", "archived")
    assert session.preferences == {"theme": "dark", "deep": {"a": 1}}
    assert len(set(session.versions.values())) == 3


async def test_the_log_tells_which_fields_changed(core: Services) -> None:
    await core.documents.change("ses_1", "preferences", {"theme": None, "new": 1, "deep": {"a": 1}})
    last = (await core.entries("ses_1"))[-1]
    assert (last.op, last.id) == ("document.change", "preferences")
    assert msgspec.json.decode(last.json) == {"set": {"new": 1}, "unset": ["theme"]}


async def test_a_change_that_changes_nothing_is_not_written(core: Services) -> None:
    before = await contents(core)
    version = (await core.documents.read("ses_1", "preferences")).version
    same = await core.documents.change("ses_1", "preferences", {"theme": "dark", "gone": None})
    assert same.version == version
    assert await contents(core) == before


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("metadata", {"session_id": "x"}),
        ("metadata", {"created_at": "2026-01-01T00:00:00Z"}),
        ("metadata", {"workspace": "w"}),
        ("metadata", {"user_id": "u"}),
        ("metadata", {"unknown": 1}),
        ("metadata", {"status": "deleted"}),
        ("metadata", {"status": "asleep"}),
        ("metadata", {"status": None, "title": 5}),
        ("metadata", {"title": "x" * 1025}),
        ("context", {"unknown": 1}),
        ("context", {"active_files": "x"}),
        ("context", {"active_files": [1]}),
        ("context", {"state": []}),
        ("preferences", []),
        ("preferences", None),
        ("preferences", "x"),
    ],
)
async def test_a_change_that_leaves_no_such_document_is_refused(
    core: Services, name: DocumentName, patch: Any
) -> None:
    before = await contents(core)
    with pytest.raises(InvalidInput):
        await core.documents.change("ses_1", name, patch)
    assert await contents(core) == before


async def test_a_change_expects_the_version_it_is_based_on(core: Services) -> None:
    first = await core.documents.read("ses_1", "preferences")
    based = Request(expected=first.version)
    second = await core.documents.change("ses_1", "preferences", {"a": 1}, based)
    for stale in (first.version, first.version.partition(":")[2], "00000000000001:2"):
        with pytest.raises(VersionMismatch) as refused:
            await core.documents.change("ses_1", "preferences", {"a": 2}, Request(expected=stale))
        assert second.version in refused.value.detail
    offset = second.version.partition(":")[2]
    await core.documents.change("ses_1", "preferences", {"a": 3}, Request(expected=offset))
    assert (await value_of(core, "preferences"))["a"] == 3


async def test_changes_without_a_version_are_all_applied_however_many_race(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    await asyncio.gather(
        *(
            (core, there)[n % 2].documents.change("ses_1", "context", {"state": {f"k{n}": n}})
            for n in range(12)
        )
    )
    assert (await value_of(core, "context"))["state"] == {f"k{n}": n for n in range(12)}


async def test_of_racing_changes_of_one_version_one_is_applied(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    based = Request(expected=(await core.documents.read("ses_1", "context")).version)
    outcomes = await asyncio.gather(
        *(
            (core, there)[n % 2].documents.change("ses_1", "context", {"state": {"n": n}}, based)
            for n in range(6)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, VersionMismatch) for outcome in outcomes) == 5


async def test_appends_do_not_disturb_a_change(core: Services) -> None:
    based = Request(expected=(await core.documents.read("ses_1", "context")).version)
    await core.messages.append("ses_1", [said("hi")])
    await core.documents.change("ses_1", "preferences", {"a": 1})
    await core.documents.change("ses_1", "context", {"state": {"n": 1}}, based)


async def test_a_change_with_a_key_is_done_once(core: Services) -> None:
    first = await core.documents.change("ses_1", "preferences", {"a": 1}, KEY)
    again = await core.documents.change("ses_1", "preferences", {"a": 1}, KEY)
    assert again == first
    await core.documents.change("ses_1", "preferences", {"a": 2})
    await core.documents.change("ses_1", "preferences", {"a": 1}, KEY)
    assert (await value_of(core, "preferences"))["a"] == 2
    for other in ({"a": 9}, {}):
        with pytest.raises(AlreadyExists):
            await core.documents.change("ses_1", "preferences", other, KEY)
    with pytest.raises(AlreadyExists):
        await core.documents.change("ses_1", "preferences", {"a": 1}, KEY, replace=True)
    with pytest.raises(AlreadyExists):
        await core.documents.change("ses_1", "context", {"a": 1}, KEY)


async def test_documents_of_no_session_are_not_found(core: Services) -> None:
    await core.sessions.delete("ses_1")
    for session_id, error in (("ses_none", NotFound), ("ses_1", SessionDeleted)):
        with pytest.raises(error):
            await core.documents.read(session_id, "context")
        with pytest.raises(error):
            await core.documents.change(session_id, "context", {})


@pytest.mark.parametrize(
    ("name", "field", "text"),
    [
        ("context", "state", "not json"),
        ("context", "state", "[]"),
        ("context", "strange", "1"),
        ("preferences", "theme", b"\xff"),
        ("metadata", "created_at", "yesterday"),
        ("metadata", "status", "asleep"),
    ],
)
async def test_a_document_that_somebody_damaged_is_told_as_damage(
    core: Services, name: DocumentName, field: str, text: str | bytes
) -> None:
    await core.redis.hset(core.keys.document("ses_1", name), field, text)
    with pytest.raises(StoreDamaged):
        await core.documents.read("ses_1", name)
    with pytest.raises(StoreDamaged):
        await core.sessions.load("ses_1")


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(patches)
async def test_preferences_read_back_as_rfc_7396_says_whatever_is_in_them(
    core: Services, given_patches: list[dict[str, Any]]
) -> None:
    session_id = await create(core, f"ses_p{next(numbers)}")
    expected: Any = {}
    for patch in given_patches:
        expected = merge_patch(expected, patch)
        changed = await core.documents.change(session_id, "preferences", patch)
        read = await core.documents.read(session_id, "preferences")
        assert changed.value == read.value == expected
        assert changed.version == read.version


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries(
        {}, optional={"title": short_texts, "environment": short_texts, "user_agent": short_texts}
    )
)
async def test_metadata_reads_back_as_the_change_answered(
    core: Services, patch: dict[str, str]
) -> None:
    session_id = await create(core, f"ses_m{next(numbers)}")
    changed = await core.documents.change(session_id, "metadata", patch)
    read = await core.documents.read(session_id, "metadata")
    assert isinstance(changed.value, Metadata)
    assert changed.value == read.value
    assert msgspec.to_builtins(read.value).items() >= patch.items()


@pytest.mark.parametrize("field", ["title", "environment", "user_agent"])
async def test_an_empty_text_in_the_metadata_is_kept_as_one(core: Services, field: str) -> None:
    changed = await core.documents.change("ses_1", "metadata", {field: ""})
    assert getattr(changed.value, field) == ""
    assert getattr((await core.documents.read("ses_1", "metadata")).value, field) == ""


async def test_preferences_given_at_the_creation_are_kept_whatever_their_names(
    core: Services,
) -> None:
    odd = {"version": 1, "": 2, "expected": 3, "key": 4, "metadata": {"status": "deleted"}}
    await create(core, "ses_odd", preferences=odd)
    assert (await load(core, "ses_odd")).preferences == odd


async def test_names_of_preferences_that_are_ours_are_refused(core: Services) -> None:
    before = await contents(core)
    for replace in (False, True):
        with pytest.raises(InvalidInput, match="'_version'"):
            await core.documents.change("ses_1", "preferences", {"_version": 1}, replace=replace)
    with pytest.raises(InvalidInput, match="'_version'"):
        await create(core, "ses_odd", preferences={"a": 1, "_version": 2})
    assert await contents(core) == before
    await core.documents.change("ses_1", "preferences", {"deep": {"_version": 1}})
