"""What each operation asks of the session, and what it answers when that is not so."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sessiond.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    SessionDeleted,
    SessiondError,
    VersionMismatch,
)
from sessiond.store.draft import Draft
from sessiond.store.outcome import KeyUsed, SessionMissing
from tests.store.support import (
    AT,
    Services,
    appending,
    assert_contract,
    changing,
    contents,
    creating,
    deleting,
    editing,
    keys_of,
    putting_part,
    removing,
    removing_part,
)

VERBS = [
    pytest.param(creating("ses_1"), id="session.create"),
    pytest.param(appending("m7"), id="message.append"),
    pytest.param(editing("m1"), id="message.edit"),
    pytest.param(removing("m1"), id="message.remove"),
    pytest.param(putting_part("m1/p1"), id="part.put"),
    pytest.param(removing_part("m1/p1"), id="part.remove"),
    pytest.param(changing("context", {"state": "{}"}), id="document.change"),
    pytest.param(deleting("ses_1"), id="session.delete"),
]


@pytest.fixture
async def session(core: Services) -> str:
    """A session with message m1, its part p1, a removed message m2, and m3 without part p3."""
    for draft in (
        creating("ses_1"),
        appending("m1"),
        putting_part("m1/p1"),
        appending("m2"),
        removing("m2"),
        appending("m3"),
        putting_part("m3/p3"),
        removing_part("m3/p3"),
    ):
        await core.commit("ses_1", draft)
    return "ses_1"


async def assert_refused(
    core: Services, session: str, *group: Draft, by: type[SessiondError]
) -> SessiondError:
    """The error of a group that must be refused without a trace."""
    before = await contents(core)
    with pytest.raises(by) as error:
        await core.commit(session, *group)
    assert type(error.value) is by
    assert await contents(core) == before
    return error.value


@pytest.mark.parametrize("draft", VERBS[1:])
async def test_nothing_but_a_creation_begins_a_session(core: Services, draft: Draft) -> None:
    await assert_refused(core, "ses_1", draft, by=SessionMissing)


@pytest.mark.parametrize("draft", VERBS)
async def test_a_deleted_session_takes_nothing_ever_again(core: Services, draft: Draft) -> None:
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m1"))
    await core.commit("ses_1", deleting("ses_1"))
    error = await assert_refused(core, "ses_1", draft, by=SessionDeleted)
    assert "'ses_1'" in error.detail


async def test_a_session_is_created_once(core: Services, session: str) -> None:
    error = await assert_refused(
        core, session, creating("ses_1", workspace="other"), by=AlreadyExists
    )
    assert error.detail == "1"


async def test_a_message_id_is_taken_once_even_when_the_message_was_removed(
    core: Services, session: str
) -> None:
    for name, offset in (("m1", "2"), ("m2", "4")):
        error = await assert_refused(
            core, session, appending(name, b'{"other":1}'), by=AlreadyExists
        )
        assert error.detail == offset


@pytest.mark.parametrize(
    "draft",
    [
        editing("m9"),
        editing("m2"),
        removing("m9"),
        removing("m2"),
        putting_part("m9/p1"),
        putting_part("m2/p1"),
        putting_part("m3/p3"),
        removing_part("m9/p1"),
        removing_part("m2/p1"),
        removing_part("m3/p3"),
    ],
    ids=lambda draft: f"{draft.op} {draft.id}",
)
async def test_what_is_not_there_or_no_more_cannot_be_changed(
    core: Services, session: str, draft: Draft
) -> None:
    await assert_refused(core, session, draft, by=NotFound)


async def test_an_edit_makes_a_new_version_and_an_older_one_is_refused(
    core: Services, session: str
) -> None:
    (first, *_) = [entry for entry in await core.entries(session) if entry.id == "m1"]
    edited = (await core.commit(session, editing("m1", expected=str(first.position)))).positions[0]
    for stale in (str(first.position), str(first.offset), f"00000000000000:{edited.offset}"):
        error = await assert_refused(
            core, session, editing("m1", expected=stale), by=VersionMismatch
        )
        assert str(edited) in error.detail
        await assert_refused(core, session, removing("m1", expected=stale), by=VersionMismatch)
    for current in (str(edited), str(edited.offset + 1)):
        await core.commit(session, editing("m1", expected=current))


async def test_a_part_has_a_version_of_its_own(core: Services, session: str) -> None:
    (first,) = [entry for entry in await core.entries(session) if entry.id == "m1/p1"]
    await core.commit(session, editing("m1"))
    put = putting_part("m1/p1", expected=str(first.position))
    second = (await core.commit(session, put)).positions[0]
    error = await assert_refused(core, session, put, by=VersionMismatch)
    assert str(second) in error.detail
    stale = removing_part("m1/p1", expected=str(first.position))
    await assert_refused(core, session, stale, by=VersionMismatch)
    await core.commit(session, removing_part("m1/p1", expected=str(second)))


async def test_a_version_expected_of_a_part_that_was_never_written_is_not_the_current_one(
    core: Services, session: str
) -> None:
    for draft in (putting_part("m1/new", expected="999"), removing_part("m1/new", expected="999")):
        await assert_refused(core, session, draft, by=VersionMismatch)


@pytest.mark.parametrize("document", ["metadata", "context", "preferences"])
async def test_each_document_has_a_version_of_its_own(
    core: Services, session: str, document: str
) -> None:
    first = (await core.store.snapshot(session)).versions[document]
    others = {"metadata", "context", "preferences"} - {document}
    for other in others:
        await core.commit(session, changing(other, {"environment": '"x"'}))
    change = changing(document, {"title": '"t"'}, expected=first)
    second = (await core.commit(session, change)).positions[0]
    error = await assert_refused(core, session, change, by=VersionMismatch)
    assert str(second) in error.detail
    await core.commit(session, changing(document, {"title": None}, expected=str(second.offset)))


async def test_a_change_sets_fields_and_an_empty_value_unsets_one(
    core: Services, session: str
) -> None:
    await core.commit(session, changing("preferences", {"a": "1", "b": '"2"', "c": "null"}))
    await core.commit(session, changing("preferences", {"a": None, "b": '""', "never": None}))
    assert (await core.store.snapshot(session)).preferences == {"b": b'""', "c": b"null"}


async def test_a_session_is_deleted_at_the_position_expected_only(
    core: Services, session: str
) -> None:
    end = (await core.store.end(session)).position
    for stale in ("1", f"00000000000000:{end.offset}", str(end.offset - 1)):
        error = await assert_refused(
            core, session, deleting(session, expected=stale), by=VersionMismatch
        )
        assert str(end) in error.detail
    await core.commit(session, deleting(session, expected=str(end)))


async def test_a_deletion_leaves_a_tombstone_and_itself_in_the_log(
    core: Services, session: str
) -> None:
    await core.commit(session, editing("m1", key="k"))
    deleted = (await core.commit(session, deleting(session))).positions[0]
    left = await keys_of(core, session)
    assert set(left) == {"metadata", "conversation", "applied"}
    metadata = await core.redis.hgetall(left["metadata"])
    assert metadata[b"status"] == b"deleted"
    assert metadata[b"session_id"] == b"ses_1"
    assert metadata[b"deleted_at"] == AT.encode()
    assert metadata[b"deleted_by"] == f"{core.committer.writer}:10".encode()
    assert list(await core.redis.hgetall(left["applied"])) == [core.committer.writer.encode()]
    entries = await core.entries(session)
    assert [(entry.op, entry.position) for entry in entries] == [("session.delete", deleted)]
    assert_contract(entries, first=10)


async def test_an_idempotency_key_is_used_once_whatever_for(core: Services, session: str) -> None:
    done = await core.commit(session, editing("m1", key="k"))
    await assert_refused(core, session, editing("m1", key="k"), by=KeyUsed)
    await assert_refused(core, session, changing("context", {"state": "{}"}, key="k"), by=KeyUsed)
    assert await core.store.used_key(session, "key:k") == ("d1", done.positions[0].offset)
    assert await core.store.used_key(session, "key:other") is None


@pytest.mark.parametrize(
    "group",
    [
        [removing("m1"), editing("m1")],
        [removing("m1"), removing("m1")],
        [removing("m1"), putting_part("m1/p1")],
        [deleting("ses_1"), appending("m9")],
    ],
    ids=lambda group: " then ".join(draft.op for draft in group),
)
async def test_a_group_that_contradicts_itself_is_refused(
    core: Services, session: str, group: Sequence[Draft]
) -> None:
    before = await contents(core)
    with pytest.raises(SessiondError):
        await core.commit(session, *group)
    assert await contents(core) == before


async def test_changes_of_a_document_go_together_and_the_first_one_is_compared(
    core: Services, session: str
) -> None:
    first = (await core.commit(session, changing("context", {"a": "1"}))).positions[0]
    group = [
        changing("context", {"a": "2"}, expected=str(first)),
        changing("context", {"a": "3", "b": "1"}),
    ]
    second = (await core.commit(session, *group)).positions[-1]
    snapshot = await core.store.snapshot(session)
    assert (snapshot.context["a"], snapshot.context["b"]) == (b"3", b"1")
    assert snapshot.versions["context"] == str(second)
    await assert_refused(core, session, *group, by=VersionMismatch)


@pytest.mark.parametrize(
    "group",
    [
        [appending("m9"), changing("context", {"a": "1"})],
        [changing("context", {"a": "1"}), appending("m9")],
        [removing("m1"), changing("context", {"a": "1"})],
        [changing("context", {"a": "1"}), removing("m1")],
    ],
)
async def test_changes_of_a_document_go_with_nothing_else(
    core: Services, session: str, group: list[Draft]
) -> None:
    await assert_refused(core, session, *group, by=InvalidInput)
