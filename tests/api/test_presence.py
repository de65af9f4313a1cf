"""Presence over HTTP: who is at a session, what both work on, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.client import Client
from tests.api.streams import EventStream

pytestmark = pytest.mark.usefixtures("_quiet")

MISSING = "/v1/sessions/never-was"


def announce(client: Client, path: str, instance: str, *files: str, **headers: str) -> Any:
    """Say that an instance is at a session, and return the answer."""
    body = {"active_files": list(files)}
    answer = client.call("PUT", f"{path}/presence/{instance}", body, **headers)
    assert answer.status == 200, answer
    return answer.json


def test_who_is_there_is_told_to_who_announces_and_to_who_asks(
    client: Client, session: str
) -> None:
    announce(client, session, "ann", "a.py", "b.py", Sessiond_Client="editor")
    told = announce(client, session, "bob", "b.py")
    assert told == client.get(f"{session}/presence")
    assert told["session_id"] == session.rpartition("/")[2]
    assert told["valid_seconds"] == 20
    assert told["shared_files"] == {"b.py": ["ann", "bob"]}
    ann, bob = told["present"]
    assert (ann["instance"], ann["client"], ann["active_files"]) == (
        *("ann", "editor"),
        ["a.py", "b.py"],
    )
    assert (bob["instance"], bob["client"], bob["has_turn"]) == ("bob", "", False)
    assert ann["until_ms"] == ann["seen_ms"] + 20_000
    assert ann["machine"] == bob["machine"] != ""


def test_leaving_takes_an_instance_out_and_may_be_repeated(client: Client, session: str) -> None:
    announce(client, session, "ann")
    for _ in range(2):
        assert client.call("DELETE", f"{session}/presence/ann").status == 204
    assert client.get(f"{session}/presence")["present"] == []


def test_an_announcement_may_leave_the_files_out(client: Client, session: str) -> None:
    announce(client, session, "ann", "a.py")
    answer = client.call("PUT", f"{session}/presence/ann", {})
    assert answer.json["present"][0]["active_files"] == []


def test_presence_is_no_document_and_no_part_of_the_log(client: Client, session: str) -> None:
    before = client.get(session)
    announce(client, session, "ann", "a.py")
    assert client.get(session) == before
    client.assert_refused("PUT", f"{session}/presence", {}, status=404)
    client.assert_refused("PATCH", f"{session}/presence", {}, status=404)


def test_sessions_where_somebody_is_are_listed(client: Client, session: str) -> None:
    announce(client, session, "ann")
    listed = client.get("/v1/presence")["sessions"]
    assert client.get(f"{session}/presence") in listed
    assert all(each["present"] for each in listed)
    assert len(client.get("/v1/presence?limit=1")["sessions"]) == 1
    client.call("DELETE", f"{session}/presence/ann")
    assert session.rpartition("/")[2] not in [
        each["session_id"] for each in client.get("/v1/presence")["sessions"]
    ]


def test_changes_are_live_events(client: Client, session: str) -> None:
    with EventStream(client.socket, f"{session}/events") as stream:
        assert stream.head.status == 200
        announce(client, session, "ann", "a.py")
        announce(client, session, "ann", "a.py")
        client.call("DELETE", f"{session}/presence/ann")
        came, left = (stream.next() for _ in range(2))
    for event, change in ((came, "came"), (left, "left")):
        assert event.name == "live"
        presence = event.json["body"]["presence"]
        assert presence["change"] == change
        assert presence["who"]["instance"] == "ann"
        assert presence["who"]["active_files"] == ["a.py"]


def test_a_session_that_is_not_there_has_nobody(client: Client) -> None:
    gone = client.create("ses_presence_gone")
    announce(client, gone, "ann")
    client.call("DELETE", gone)
    for path, status in ((MISSING, 404), (gone, 410)):
        client.assert_refused("GET", f"{path}/presence", status=status)
        client.assert_refused("PUT", f"{path}/presence/ann", {}, status=status)
        client.assert_refused("DELETE", f"{path}/presence/ann", status=status)


@pytest.mark.parametrize(
    "body",
    [
        {"active_files": None},
        {"active_files": "a.py"},
        {"active_files": {}},
        {"active_files": [1]},
        {"active_files": [""]},
        {"active_files": [None]},
        {"active_files": [["a.py"]]},
        {"active_files": ["x" * 1025]},
        {"active_files": ["a.py"] * 257},
        {"activefiles": []},
        {"instance": "ann"},
        {"machine": "elsewhere"},
        {"until_ms": 1},
    ],
    ids=lambda body: str(body)[:40],
)
def test_what_is_no_announcement_is_refused_and_changes_nothing(
    client: Client, session: str, body: dict[str, Any]
) -> None:
    before = announce(client, session, "ann", "a.py")["present"]
    client.assert_refused("PUT", f"{session}/presence/ann", body, status=400)
    assert client.get(f"{session}/presence")["present"] == before


def test_the_largest_announcement_is_taken_and_comes_back_as_it_was(
    client: Client, session: str
) -> None:
    for files in (
        [f"{number:03}{'x' * 1021}" for number in range(15)],
        [f"{number:03}{'x' * 50}" for number in range(256)],
    ):
        assert announce(client, session, "ann", *files)["present"][0]["active_files"] == files
    odd = ["é\U0001f600", "a\nb", "\x00", "\x1b[2J", "a b", '"', "\\", "${WORKTREE}", "../.."]
    assert announce(client, session, "ann", *odd)["present"][0]["active_files"] == odd


@pytest.mark.parametrize(
    "files",
    [
        [f"{number:03}{'x' * 1021}" for number in range(16)],
        [f"{number:03}{'x' * 1021}" for number in range(256)],
        ["\x00" * 1024] * 3,
    ],
    ids=["16 long names", "256 long names", "names that are long as JSON"],
)
def test_an_announcement_of_more_than_16_kib_is_refused_and_changes_nothing(
    client: Client, session: str, files: list[str]
) -> None:
    before = announce(client, session, "ann", "a.py")["present"]
    body = {"active_files": files}
    client.assert_refused("PUT", f"{session}/presence/ann", body, status=413)
    assert client.get(f"{session}/presence")["present"] == before


@pytest.mark.parametrize("name", ["a%2Fb", "-a", "a%20b", "%00", "a" * 65, "%C3%A9", "a:b", ".."])
def test_a_name_that_is_none_is_refused(client: Client, session: str, name: str) -> None:
    client.assert_refused("PUT", f"{session}/presence/{name}", {})
    client.assert_refused("DELETE", f"{session}/presence/{name}")


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "workspace=a"])
def test_a_listing_that_cannot_be_is_refused(client: Client, query: str) -> None:
    client.assert_refused("GET", f"/v1/presence?{query}", status=400)
