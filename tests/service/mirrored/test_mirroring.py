"""The JSON files are what the sessions are, and people may edit them; damage never wins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sessiond.files.layout import FILES
from sessiond.files.root import FilesRoot
from sessiond.model import Context, NewMessage, Part
from sessiond.service.status import FileProblem
from sessiond.service.writes import Remove
from tests.service.mirrors import Mirrored, mirrored
from tests.service.support import create, load, said
from tests.store.support import Services

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


async def begin(core: Services) -> None:
    await create(core, preferences={"theme": "dark"}, context=Context(active_files=["a"]))
    await core.messages.append("ses_1", [said("one", "m1"), said("two", "m2")])


def problems(here: Mirrored) -> list[FileProblem]:
    status = here.mirror.status()
    return [*status.rejected, *status.recent]


def content_of(problem: FileProblem) -> bytes:
    return Path(problem.kept).read_bytes()


async def lose(core: Services) -> None:
    """Take away what Redis has of a session, its tombstone too."""
    await core.redis.delete(*await core.redis.keys(b"*ses_1*"))
    await core.redis.delete(core.keys.sessions, core.keys.workspace("default"))


async def test_the_files_follow_the_session(core: Services, folder: Path) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        assert [message["content"] for message in here.read("conversation")["messages"]] == [
            "one",
            "two",
        ]
        assert here.read("context")["active_files"] == ["a"]
        await core.messages.append("ses_1", [said("three", "m3")])
        await here.step()
        assert here.read("conversation")["total_messages"] == 3
        assert here.mirror.status().behind == 0
        assert problems(here) == []


async def test_what_others_wrote_is_found(core: Services, folder: Path) -> None:
    async with mirrored(core, folder) as here:
        core.store.on_commit.remove(here.mirror.note_written)
        await begin(core)
        await here.step()
        assert here.read("preferences") == {"theme": "dark"}
        core.store.on_commit.append(here.mirror.note_written)


async def test_an_edited_document_is_a_change_merged_with_what_others_made(
    core: Services, folder: Path
) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        here.edit("preferences", {"theme": "light"})
        await core.documents.change("ses_1", "preferences", {"language": "en"})
        await here.step(3)
        assert (await load(core)).preferences == {"theme": "light", "language": "en"}
        assert here.read("preferences") == {"theme": "light", "language": "en"}
        assert problems(here) == []


async def test_what_two_changed_at_once_becomes_a_conflict(core: Services, folder: Path) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        here.edit("preferences", {"theme": "light"})
        core.clock.ms += 10_000
        await core.documents.change("ses_1", "preferences", {"theme": "pink"})
        await here.step(3)
        (conflict,) = await core.conflicts.of_session("ses_1", None, 10)
        values = {conflict.ours.value, conflict.theirs.value}
        assert (conflict.path, values) == (["theme"], {"light", "pink"})
        assert here.read("preferences") == (await load(core)).preferences


async def test_an_edited_conversation_becomes_edits_removals_and_new_messages(
    core: Services, folder: Path
) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        conversation = here.read("conversation")
        first, _ = conversation["messages"]
        first["content"] = "one, put better"
        conversation["messages"] = [first, {"role": "user", "content": "by hand"}]
        here.edit("conversation", conversation)
        await core.messages.append("ses_1", [said("meanwhile", "m3")])
        await here.step(3)
        found = [message.content for message in (await load(core)).conversation.messages]
        assert found == ["one, put better", "meanwhile", "by hand"]
        assert [each["content"] for each in here.read("conversation")["messages"]] == found
        operations = [entry.op for entry in await core.entries("ses_1")]
        assert operations.count("message.remove") == operations.count("message.edit") == 1
        assert operations.count("message.append") == 4


async def test_an_edited_text_of_a_message_with_parts_is_its_part_s(
    core: Services, folder: Path
) -> None:
    await create(core)
    parts: list[Part] = [
        {"id": "p1", "type": "text", "text": "long"},
        {"id": "p2", "type": "file", "x": None},
    ]
    await core.messages.append("ses_1", [NewMessage(role="user", id="m1", parts=parts)])
    async with mirrored(core, folder) as here:
        conversation = here.read("conversation")
        conversation["messages"][0]["content"] = "short"
        here.edit("conversation", conversation)
        await here.step(3)
        (message,) = (await load(core)).conversation.messages
        assert message.content == "short"
        assert message.parts == [{"id": "p1", "type": "text", "text": "short"}, parts[1]]


async def test_an_edit_made_while_no_daemon_ran_comes_in(core: Services, folder: Path) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        pass
    here.edit("metadata", {**here.read("metadata"), "title": "mine"})
    await core.messages.append("ses_1", [said("meanwhile", "m3")])
    async with mirrored(core, folder) as here:
        await here.step(3)
        assert (await load(core)).metadata.title == "mine"
        assert here.read("conversation")["total_messages"] == 3


async def test_the_same_edit_is_made_once_whenever_the_process_ends(
    core: Services, folder: Path
) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        saved = (here.path("context").parent / ".state.json").read_bytes()
        conversation = here.read("conversation")
        conversation["messages"].append({"role": "user", "content": "by hand"})
        here.edit("conversation", conversation)
        edited = here.path("conversation").read_bytes()
        stamp = here.path("conversation").stat().st_mtime_ns
        await here.step(3)
    (folder / "ses_1" / ".state.json").write_bytes(saved)  # as if it had ended right after
    here.path("conversation").write_bytes(edited)
    os.utime(here.path("conversation"), ns=(stamp, stamp))
    async with mirrored(core, folder) as here:
        await here.step(3)
    contents = [message.content for message in (await load(core)).conversation.messages]
    assert contents == ["one", "two", "by hand"]


OTHER_ID = """{
  "session_id": "other",
  "created_at": "2026-01-13T10:30:00Z",
  "last_activity": "2026-01-13T10:30:00Z"
}"""


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("preferences", '{"theme": ', "not valid JSON"),
        ("preferences", '{"_mine": 1}', "begins with an underscore"),
        ("metadata", OTHER_ID, "'session_id' cannot be changed"),
        ("cache", '{"entries": {}, "more": 1}', "for reading only"),
    ],
)
async def test_an_edit_that_cannot_be_taken_stays_and_is_told(
    core: Services, folder: Path, name: str, text: str, reason: str
) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        here.edit(name, text)
        await here.step(3)
        assert here.path(name).read_text(encoding="utf-8") == text
        (problem,) = problems(here)
        assert (problem.what, problem.file) == ("rejected", f"{name}.json")
        assert reason in problem.reason
        here.path(name).unlink()
        await here.step(2)
        assert here.read(name)
        assert problems(here) == []


async def test_a_rejected_edit_is_kept_beside_when_the_session_goes_on(
    core: Services, folder: Path
) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        here.edit("conversation", "{")
        await here.step(3)
        await core.messages.append("ses_1", [said("three", "m3")])
        await here.step(2)
        assert here.read("conversation")["total_messages"] == 3
        (problem,) = problems(here)
        assert problem.what == "set_aside"
        assert Path(problem.kept).name.startswith("conversation.json.rejected-")
        assert content_of(problem) == b"{"


@pytest.mark.parametrize("name", FILES)
async def test_a_damaged_file_is_moved_away_and_written_from_redis(
    core: Services, folder: Path, name: str
) -> None:
    await begin(core)
    await create(core, "ses_2")
    async with mirrored(core, folder) as here:
        right = here.path(name).read_bytes()
        here.flip(name)
        wrong = here.path(name).read_bytes()
        await here.mirror.scan()
        await here.step()
        assert here.path(name).read_bytes() == right
        (problem,) = problems(here)
        assert (problem.session_id, problem.what) == ("ses_1", "quarantined")
        assert content_of(problem) == wrong
        assert here.path(name, "ses_2").exists()
    assert len(await core.entries("ses_1")) == 3, "damage is no edit"


async def test_a_folder_that_is_none_is_moved_away(core: Services, folder: Path) -> None:
    await begin(core)
    FilesRoot.open(folder).close()
    (folder / "ses_1").symlink_to("/")
    (folder / "ses_3").write_text("not a folder", encoding="utf-8")
    async with mirrored(core, folder) as here:
        assert {problem.what for problem in problems(here)} == {"quarantined"}
        assert not (folder / "ses_1").is_symlink()
        assert here.read("preferences") == {"theme": "dark"}


async def test_without_the_state_files_that_agree_are_taken_over_and_others_moved_away(
    core: Services, folder: Path
) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        pass
    (folder / "ses_1" / ".state.json").write_bytes(b"damaged")
    here.edit("context", {"working_directory": "/elsewhere"})
    inode = here.path("preferences").stat().st_ino
    async with mirrored(core, folder) as here:
        assert here.path("preferences").stat().st_ino == inode
        assert here.read("context")["working_directory"] == ""
        assert sorted(problem.file for problem in problems(here)) == [".state.json", "context.json"]


async def test_a_deleted_session_s_files_go(core: Services, folder: Path) -> None:
    await begin(core)
    await create(core, "ses_2")
    async with mirrored(core, folder) as here:
        await core.sessions.delete("ses_1")
        await here.step(2)
        assert not (folder / "ses_1").exists()
    await core.sessions.delete("ses_2")
    async with mirrored(core, folder) as here:
        await here.step(2)
        assert not (folder / "ses_2").exists()


async def test_a_session_that_redis_lost_is_made_again_from_its_files(
    core: Services, folder: Path
) -> None:
    await begin(core)
    await core.records.put_part("ses_1", "m1", "p1", {"type": "text", "text": "more"})
    await core.documents.change("ses_1", "metadata", {"status": "archived"})
    async with mirrored(core, folder) as here:
        before = await load(core)
    await lose(core)
    core.clock.ms += 60_000
    async with mirrored(core, folder) as here:
        await here.step(2)
        after = await load(core)
        assert after.conversation == before.conversation
        assert (after.context, after.preferences) == (before.context, before.preferences)
        assert after.metadata.created_at == before.metadata.created_at
        assert after.metadata.status == "archived"
        assert [problem.what for problem in problems(here)] == ["restored"]


@pytest.mark.parametrize("name", ["conversation", "preferences"])
async def test_a_damaged_file_of_a_lost_session_gives_way_to_its_backup(
    core: Services, folder: Path, name: str
) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        await core.documents.change("ses_1", "preferences", {"theme": "light"})
        await core.messages.append("ses_1", [said("three", "m3")])
        await here.step()
    here.flip(name)
    await lose(core)
    async with mirrored(core, folder) as here:
        await here.step(2)
        after = await load(core)
        ids = [message.id for message in after.conversation.messages]
        assert ids == (["m1", "m2"] if name == "conversation" else ["m1", "m2", "m3"])
        assert after.preferences == {"theme": "dark" if name == "preferences" else "light"}
        assert here.read("conversation")["total_messages"] == len(ids)


async def test_an_archived_session_is_left_in_its_archive(core: Services, folder: Path) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        await core.messages.append("ses_1", [said("three", "m3")])
        await core.redis.hset(core.keys.metadata("ses_1"), "archive", "elsewhere")
        await here.step(2)
        assert here.mirror.status().behind == 0
        assert here.read("conversation")["total_messages"] == 2
        await core.redis.hdel(core.keys.metadata("ses_1"), "archive")
        await here.step(2)
        assert here.read("conversation")["total_messages"] == 3


async def test_what_is_wrong_with_one_session_does_not_concern_the_others(
    core: Services, folder: Path
) -> None:
    await begin(core)
    await create(core, "ses_2")
    async with mirrored(core, folder) as here:
        await core.redis.hset(core.keys.metadata("ses_1"), "created_at", "never")
        for name in ("ses_1", "ses_2"):
            await core.messages.append(name, [said("more", "m9")])
        await here.step(2)
        assert here.read("conversation", "ses_2")["total_messages"] == 1
        assert here.read("conversation")["total_messages"] == 2, "what was right is still there"
        assert here.mirror.status().behind == 1


async def test_beside_somebody_else_s_redis_nothing_is_made_again(
    core: Services, folder: Path
) -> None:
    await begin(core)
    async with mirrored(core, folder, restores=False):
        pass
    await lose(core)
    async with mirrored(core, folder, restores=False) as here:
        await here.step(2)
        assert await core.store.count() == 0
        assert here.read("preferences") == {"theme": "dark"}
        assert {problem.what for problem in problems(here)} == {"unknown"}


async def test_what_is_journaled_is_waited_for(core: Services, folder: Path) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        here.waiting = [Remove(session_id="ses_1", message_id="m9")]
        await core.messages.append("ses_1", [said("three", "m3")])
        await here.step(2)
        assert here.read("conversation")["total_messages"] == 2
        here.waiting = []
        await here.step()
        assert here.read("conversation")["total_messages"] == 3


async def test_a_file_that_somebody_took_away_is_written_again(
    core: Services, folder: Path
) -> None:
    await begin(core)
    async with mirrored(core, folder) as here:
        here.path("conversation").unlink()
        await here.step(2)
        assert here.read("conversation")["total_messages"] == 2
        shutil.rmtree(folder / "ses_1")
        await here.step(2)
        assert here.read("metadata")["session_id"] == "ses_1"
