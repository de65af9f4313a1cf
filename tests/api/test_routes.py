"""What every route does when it is used well, and each of its answers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sessiond import __version__
from tests.api.client import Client
from tests.api.wire import Answer, assert_problem
from tests.daemons import RunningDaemon

pytestmark = pytest.mark.usefixtures("_quiet")

POSITION = re.compile(r"[0-9a-f]{14}:\d+")
STALE = '"0123456789abcd:1"'
MISSING = "/v1/sessions/never-was"
PART = {"type": "text", "text": "part"}


def user(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def offset(version: str) -> int:
    assert POSITION.fullmatch(version), version
    return int(version.partition(":")[2])


def assert_accepted(answer: Answer, status: int = 200) -> Any:
    """Return the body of an answer that must have a status."""
    assert answer.status == status, (answer.status, answer.body[:500])
    return answer.json


# Sessions


def test_a_session_is_created_at_an_address_and_read_from_it(client: Client) -> None:
    new: dict[str, Any] = {
        "session_id": "ses_created",
        "user_id": "u",
        "title": "a title",
        "workspace": "created",
        "user_agent": "test",
        "environment": "production",
        "context": {"working_directory": "/x", "state": {"a": 1}},
        "preferences": {"theme": "dark"},
    }
    answer = client.call("POST", "/v1/sessions", new)
    created = assert_accepted(answer, 201)
    assert answer.header("location") == "/v1/sessions/ses_created"
    metadata = created["metadata"]
    assert {name: metadata[name] for name in new if name in metadata} == {
        name: new[name] for name in new if name not in ("context", "preferences")
    }
    assert metadata["status"] == "active"
    assert created["context"] == new["context"] | {"active_files": [], "recent_commands": []}
    assert created["preferences"] == {"theme": "dark"}
    assert created["conversation"]["messages"] == []
    assert offset(created["position"]) == 1
    assert client.get("/v1/sessions/ses_created") == created


def test_a_session_without_an_id_gets_one(client: Client) -> None:
    answers = [client.call("POST", "/v1/sessions", {}) for _ in range(2)]
    ids = [assert_accepted(answer, 201)["metadata"]["session_id"] for answer in answers]
    assert ids[0] < ids[1], "ids sort by their time"
    assert [answer.header("location") for answer in answers] == [f"/v1/sessions/{i}" for i in ids]


def test_creating_the_same_session_again_finds_it(client: Client) -> None:
    new = {"session_id": "ses_again", "title": "x"}
    first = assert_accepted(client.call("POST", "/v1/sessions", new), 201)
    again = client.call("POST", "/v1/sessions", new)
    assert assert_accepted(again, 200) == first
    assert again.header("location") == "/v1/sessions/ses_again"
    other = client.call("POST", "/v1/sessions", new | {"title": "y"})
    assert "ses_again" in assert_problem(other, 409, "already-exists").detail


def test_creating_with_an_idempotency_key_happens_once(client: Client) -> None:
    first = client.call("POST", "/v1/sessions", {"title": "x"}, Idempotency_Key="once")
    again = client.call("POST", "/v1/sessions", {"title": "x"}, Idempotency_Key="once")
    assert assert_accepted(again, 200) == assert_accepted(first, 201)
    other = client.call("POST", "/v1/sessions", {"title": "y"}, Idempotency_Key="once")
    assert_problem(other, 409, "already-exists")


def test_a_deleted_session_is_gone_for_good(client: Client, session: str) -> None:
    name = session.rpartition("/")[2]
    deleted = assert_accepted(client.call("DELETE", session))
    assert deleted["session_id"] == name
    assert offset(deleted["position"]) == 3
    calls: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("DELETE", "", None),
        ("GET", "/messages", None),
        ("GET", "/messages/first", None),
        ("GET", "/position", None),
        ("GET", "/metadata", None),
        ("GET", "/events", None),
        ("POST", "/messages", user("late")),
        ("PATCH", "/messages/first", {"content": "late"}),
        ("DELETE", "/messages/first", None),
        ("PUT", "/messages/first/parts/p", PART),
        ("DELETE", "/messages/first/parts/p", None),
        ("PATCH", "/preferences", {}),
        ("PUT", "/context", {}),
        ("POST", "/live", {}),
    ]
    for method, path, body in calls:
        told = assert_problem(client.call(method, session + path, body), 410, "session-deleted")
        assert name in told.detail, (method, path)
    assert_problem(
        client.call("POST", "/v1/sessions", {"session_id": name}), 410, "session-deleted"
    )
    listed = client.get("/v1/sessions?limit=500")["sessions"]
    assert name not in [each["metadata"]["session_id"] for each in listed]


def test_deletion_may_depend_on_the_position_and_be_retried(client: Client, session: str) -> None:
    before = client.position(session)
    client.append(session, "more")
    for stale in (f'"{before}"', STALE, '"2"'):
        assert_problem(client.call("DELETE", session, If_Match=stale), 412, "version-mismatch")
    assert len(client.get(session)["conversation"]["messages"]) == 2
    current = f'"{client.position(session)}"'
    first = client.call("DELETE", session, If_Match=current, Idempotency_Key="bye")
    again = client.call("DELETE", session, If_Match=current, Idempotency_Key="bye")
    assert assert_accepted(again) == assert_accepted(first)
    assert_problem(client.call("DELETE", session, Idempotency_Key="other"), 410, "session-deleted")


def test_what_never_was_is_not_found(client: Client) -> None:
    for method, path, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("GET", "/messages", None),
        ("GET", "/messages/m", None),
        ("GET", "/operations", None),
        ("GET", "/position", None),
        ("GET", "/context", None),
        ("GET", "/events", None),
        ("POST", "/messages", user("x")),
        ("PATCH", "/messages/m", {"content": "x"}),
        ("DELETE", "/messages/m", None),
        ("PUT", "/messages/m/parts/p", PART),
        ("DELETE", "/messages/m/parts/p", None),
        ("PATCH", "/preferences", {"a": 1}),
        ("PUT", "/metadata", {}),
        ("POST", "/live", {}),
    ):
        told = assert_problem(client.call(method, MISSING + path, body), 404, "not-found")
        assert "never-was" in told.detail, (method, path, told.detail)


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/none", "/v1/sessions/", "/v1/health/", "/v2/sessions", "/V1/health",
     "/v1/sessions/s/none", "/v1/sessions/s/messages/", "/v1/sessions/s/messages/m/parts/",
     "/openapi.yaml", "/favicon.ico", "/.well-known/x", "/index.html"],
)  # fmt: skip
def test_there_is_nothing_else(client: Client, path: str) -> None:
    assert assert_problem(client.call("GET", path), 404, "not-found").hint


# Listings


def test_listings_show_the_latest_first_page_by_page_and_filtered(client: Client) -> None:
    names = [f"listed-{number}" for number in range(7)]
    for number, name in enumerate(names):
        environment = ("staging", "production")[number % 2]
        client.create(name, workspace="listed", environment=environment, user_id=f"u{number % 3}")
        client.append(f"/v1/sessions/{name}", "m")

    def listed(query: str) -> list[str]:
        found: list[str] = []
        cursor = ""
        while True:
            page = client.get(f"/v1/sessions?workspace=listed{query}{cursor}")
            found += [each["metadata"]["session_id"] for each in page["sessions"]]
            if page["cursor"] is None:
                return found
            cursor = f"&cursor={page['cursor']}"

    assert listed("") == names[::-1]
    for limit in (1, 2, 3, 7, 500):
        assert listed(f"&limit={limit}") == names[::-1]
    assert listed("&environment=staging") == names[::-2]
    assert listed("&environment=staging&limit=1") == names[::-2]
    assert listed("&user_id=u0&environment=staging") == ["listed-6", "listed-0"]
    assert listed("&status=active&limit=2") == names[::-1]
    client.call("PATCH", "/v1/sessions/listed-3/metadata", {"status": "archived"})
    assert listed("&status=archived") == ["listed-3"]
    assert "listed-3" not in listed("&status=active")
    summary = client.get("/v1/sessions?workspace=listed&status=archived")["sessions"][0]
    assert summary["total_messages"] == 1
    assert summary["position"] == client.position("/v1/sessions/listed-3")


# Messages and parts


def test_a_message_is_appended_and_read_with_its_version(client: Client, session: str) -> None:
    message = user("hi", id="m", tool_calls=["read"], metadata={"a": 1})
    written = assert_accepted(client.call("POST", f"{session}/messages", message), 201)
    assert written["duplicate"] is False
    assert written["records"] == [{"id": "m", "version": written["position"]}]
    assert offset(written["position"]) == 3
    answer = client.call("GET", f"{session}/messages/m")
    assert assert_accepted(answer) == message | {"timestamp": answer.json["timestamp"]}
    assert answer.version == written["position"]
    assert client.position(session) == written["position"]
    assert_problem(client.call("GET", f"{session}/messages/other"), 404, "not-found")


def test_an_append_is_written_once_by_id_and_by_key(client: Client, session: str) -> None:
    path = f"{session}/messages"
    for message, headers in (
        (user("one", id="m"), {}),
        (user("two"), {"Idempotency_Key": "k"}),
        ({"messages": [user("three"), user("four", id="n")]}, {"Idempotency_Key": "group"}),
    ):
        first = assert_accepted(client.call("POST", path, message, **headers), 201)
        again = assert_accepted(client.call("POST", path, message, **headers), 200)
        assert again == first | {"duplicate": True}
    assert_problem(client.call("POST", path, user("other", id="m")), 409, "already-exists")
    other = client.call("POST", path, user("other"), Idempotency_Key="k")
    assert_problem(other, 409, "already-exists")
    contents = [each["content"] for each in client.get(path)["messages"]]
    assert contents == ["hello", "one", "two", "three", "four"]


def test_a_group_takes_consecutive_offsets(client: Client, session: str) -> None:
    group = {"messages": [user(str(number)) for number in range(5)]}
    written = assert_accepted(client.call("POST", f"{session}/messages", group), 201)
    assert [offset(each["version"]) for each in written["records"]] == [3, 4, 5, 6, 7]
    assert written["position"] == written["records"][-1]["version"]


def test_a_conversation_is_read_page_by_page(client: Client, session: str) -> None:
    group = {"messages": [user(str(number)) for number in range(9)]}
    client.call("POST", f"{session}/messages", group)
    client.call("DELETE", f"{session}/messages/first")
    for limit in (1, 4, 9, 100):
        contents: list[str] = []
        after: int | None = 0
        while after is not None:
            page = client.get(f"{session}/messages?after={after}&limit={limit}")
            assert len(page["messages"]) <= limit
            contents += [each["content"] for each in page["messages"]]
            after = page["next"]
        assert contents == [str(number) for number in range(9)]


def test_a_message_is_edited_removed_and_not_found_any_more(client: Client, session: str) -> None:
    path = f"{session}/messages/first"
    original = client.call("GET", path).version
    edited = client.call("PATCH", path, {"content": "new"}, If_Match=f'"{original}"')
    version = assert_accepted(edited)["version"]
    assert edited.version == version
    assert client.call("GET", path).version == version
    assert client.get(path)["content"] == "new"
    for stale in (f'"{original}"', STALE):
        assert_problem(client.call("PATCH", path, {"content": "x"}, If_Match=stale), 412)
        assert_problem(client.call("DELETE", path, None, If_Match=stale), 412, "version-mismatch")
    assert client.call("PATCH", path, {"content": "any"}, If_Match="*").status == 200
    removed = client.call("DELETE", path)
    assert assert_accepted(removed)["id"] == "first"
    for method, body in (("GET", None), ("PATCH", {"content": "x"}), ("DELETE", None)):
        assert_problem(client.call(method, path, body), 404, "not-found")
    assert client.get(session)["conversation"]["total_messages"] == 0
    again = client.call("POST", f"{session}/messages", user("hello", id="first"))
    assert again.status in (200, 409), "an id stands for one message for ever"


def test_parts_are_put_replaced_and_removed(client: Client, session: str) -> None:
    message, path = f"{session}/messages/first", f"{session}/messages/first/parts/p"
    put = client.call("PUT", path, PART)
    assert assert_accepted(put)["id"] == "first/p"
    assert put.version == put.json["version"]
    assert client.get(message)["content"] == "hello\npart"
    assert client.get(message)["parts"][-1] == PART | {"id": "p"}
    replaced = client.call("PUT", path, PART | {"text": "new"}, If_Match=f'"{put.version}"')
    assert assert_accepted(replaced)
    assert client.get(message)["content"] == "hello\nnew"
    assert_problem(
        client.call("PUT", path, PART, If_Match=f'"{put.version}"'), 412, "version-mismatch"
    )
    assert_problem(client.call("DELETE", path, None, If_Match=STALE), 412, "version-mismatch")
    assert assert_accepted(client.call("DELETE", path))["id"] == "first/p"
    assert client.get(message)["content"] == "hello"
    for method, body in (("DELETE", None), ("PUT", PART)):
        assert_problem(client.call(method, path, body), 404, "not-found")
    assert_problem(client.call("PUT", f"{session}/messages/other/parts/p", PART), 404, "not-found")
    assert_problem(client.call("DELETE", f"{session}/messages/other/parts/p"), 404, "not-found")


WRITES: list[tuple[str, str, Any, Any]] = [
    ("PATCH", "/messages/first", {"content": "a"}, {"content": "b"}),
    ("PUT", "/messages/first/parts/q", PART, PART | {"text": "other"}),
    ("PATCH", "/preferences", {"a": 1}, {"a": 2}),
    ("PUT", "/context", {"working_directory": "/a"}, {"working_directory": "/b"}),
    ("PATCH", "/metadata", {"title": "a"}, {"title": "b"}),
    ("DELETE", "/messages/first", None, None),
]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: f"{write[0]} {write[1]}")
def test_a_retry_with_the_same_key_is_the_same_write(
    client: Client, session: str, write: tuple[str, str, Any, Any]
) -> None:
    method, path, body, other = write
    first = client.call(method, session + path, body, Idempotency_Key="key")
    position = client.position(session)
    again = client.call(method, session + path, body, Idempotency_Key="key")
    assert assert_accepted(again).get("id") == assert_accepted(first).get("id")
    assert client.position(session) == position, "it was written twice"
    if other is not None:
        conflict = client.call(method, session + path, other, Idempotency_Key="key")
        assert_problem(conflict, 409, "already-exists")
        assert client.position(session) == position


@pytest.mark.parametrize("write", WRITES, ids=lambda write: f"{write[0]} {write[1]}")
def test_a_retry_is_told_the_version_that_the_first_try_was_told(
    client: Client, session: str, write: tuple[str, str, Any, Any]
) -> None:
    method, path, body, _ = write
    first = client.call(method, session + path, body, Idempotency_Key="key")
    again = client.call(method, session + path, body, Idempotency_Key="key")
    assert POSITION.fullmatch(first.version)
    assert again.version == first.version
    assert again.json.keys() == first.json.keys()


# Documents


@pytest.mark.parametrize(
    ("name", "patch"),
    [("metadata", {"title": "t"}), ("context", {"state": {"a": 1}}), ("preferences", {"a": [1]})],
)
def test_documents_have_versions_and_are_changed_by_them(
    client: Client, session: str, name: str, patch: dict[str, Any]
) -> None:
    path = f"{session}/{name}"
    read = client.call("GET", path)
    assert offset(read.version) == 1
    changed = client.call("PATCH", path, patch, If_Match=f'"{read.version}"')
    assert assert_accepted(changed).items() >= patch.items()
    assert offset(changed.version) == 3
    again = client.call("GET", path)
    assert again.version == changed.version
    assert client.get(session)["versions"][name] == changed.version
    assert client.get(session)[name] == again.json
    for stale in (f'"{read.version}"', STALE, "1"):
        for method, body in (("PATCH", {}), ("PUT", again.json)):
            refused = client.call(method, path, body, If_Match=stale)
            told = assert_problem(refused, 412, "version-mismatch")
            assert changed.version in told.detail
    assert client.call("PATCH", path, patch, If_Match="3").version == changed.version
    assert client.position(session) == changed.version, "what changes nothing is not written"


@pytest.mark.parametrize(
    ("name", "patch"), [("metadata", {"title": "t"}), ("context", {"state": {"a": 1}})]
)
def test_the_answer_to_a_change_is_the_document_as_it_is_then(
    client: Client, session: str, name: str, patch: dict[str, Any]
) -> None:
    changed = client.call("PATCH", f"{session}/{name}", patch)
    assert assert_accepted(changed) == client.get(f"{session}/{name}")


def test_a_document_is_replaced_as_a_whole(client: Client, session: str) -> None:
    client.call("PATCH", f"{session}/preferences", {"a": 1, "b": 2})
    assert assert_accepted(client.call("PUT", f"{session}/preferences", {"c": 3})) == {"c": 3}
    assert client.get(f"{session}/preferences") == {"c": 3}
    client.call("PATCH", f"{session}/context", {"active_files": ["a"], "state": {"x": 1}})
    replaced = assert_accepted(
        client.call("PUT", f"{session}/context", {"working_directory": "/w"})
    )
    assert replaced == client.get(f"{session}/context")
    assert (replaced["active_files"], replaced["state"]) == ([], {})
    whole = client.get(f"{session}/metadata") | {"title": "all of it"}
    assert assert_accepted(client.call("PUT", f"{session}/metadata", whole))["title"] == "all of it"


# The log


def test_the_log_is_read_from_any_position(client: Client, session: str) -> None:
    for number in range(5):
        client.append(session, f"m{number}")
    page = client.get(f"{session}/operations")
    assert [offset(each["position"]) for each in page["operations"]] == list(range(1, 8))
    assert (page["position"], page["reset"]) == (client.position(session), None)
    assert page["more"] is False
    third = page["operations"][2]["position"]
    rest = client.get(f"{session}/operations?after={third}&limit=2")
    assert rest["operations"] == page["operations"][3:5]
    assert rest["position"] == page["operations"][4]["position"]
    assert rest["more"] is True
    assert client.get(f"{session}/operations?after={page['position']}")["operations"] == []
    for after, reason in (("0123456789abcd:3", "history-changed"), ("99", "missing")):
        told = client.get(f"{session}/operations?after={after}")
        assert (told["reset"], told["operations"]) == (reason, [])


def test_a_page_of_large_messages_stays_small(client: Client, session: str) -> None:
    texts = [f"{number}" + "x" * 900_000 for number in range(12)]
    for text in texts:
        client.call("POST", f"{session}/messages", user(text))
    for route, items in (("operations", "operations"), ("messages", "messages")):
        found, after, pages = list[str](), "2", 0
        while after:
            answer = client.call("GET", f"{session}/{route}?limit=1000&after={after}")
            assert len(answer.body) < 8.1 * 1024 * 1024
            page, pages = answer.json, pages + 1
            found += [each.get("body", each)["content"] for each in page[items]]
            after = page["next"] if route == "messages" else page["more"] and page["position"]
        assert (found, pages) == (texts, 2)


def test_who_wrote_stands_in_the_log(client: Client, session: str) -> None:
    client.call("POST", f"{session}/messages", user("x"), Sessiond_Client="my-client.1")
    origin = client.get(f"{session}/operations?after=2")["operations"][0]["origin"]
    assert re.fullmatch(r"my-client\.1@[\w.-]+\.[0-9a-f]{8}:\d+", origin)


def test_the_position_is_an_answer_and_its_etag(client: Client, session: str) -> None:
    answer = client.call("GET", f"{session}/position")
    assert answer.version == assert_accepted(answer)["position"]
    assert offset(answer.version) == 2


@pytest.mark.parametrize("body", [None, 1, "x", [], {}, {"typing": True}], ids=repr)
def test_something_live_is_taken_and_not_stored(client: Client, session: str, body: Any) -> None:
    before = client.position(session)
    answer = client.call("POST", f"{session}/live", b"null" if body is None else body)
    assert (answer.status, answer.body) == (202, b"")
    assert client.position(session) == before


# The daemon


def test_health_readiness_and_status_tell_of_a_daemon_that_works(
    daemon: RunningDaemon, client: Client
) -> None:
    healthy = {"status": "ok", "version": __version__, "ready": True}
    assert client.get("/v1/health") == client.get("/v1/ready") == healthy
    status = client.get("/v1/status")
    assert daemon.process
    assert status["pid"] == daemon.process.pid
    assert status["socket"] == str(daemon.socket)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", status["address"])
    assert status["server"]["owned"] is True
    assert [each["name"] for each in status["instances"]] == [status["instance"]]
    assert status["bus_connected"] is True


@pytest.mark.parametrize(("value", "shown"), [(True, "true"), ("true", "true"), (False, "false")])
def test_a_runtime_option_is_changed_at_once(client: Client, value: object, shown: str) -> None:
    before = client.get("/v1/config")
    answer = client.call("PATCH", "/v1/config", {"debug.sessions": value})
    assert assert_accepted(answer) == before | {"debug.sessions": shown}
    assert client.get("/v1/config")["debug.sessions"] == shown
    assert assert_accepted(client.call("PATCH", "/v1/config", {})) == client.get("/v1/config")
    client.call("PATCH", "/v1/config", {"debug.sessions": False, "debug.log_level": "info"})


def test_keys_are_shown_decoded_and_bounded(client: Client, session: str) -> None:
    name = session.rpartition("/")[2]
    for number in range(5):
        client.append(session, f"m{number}")
    metadata = client.get(f"/v1/redis?key=sessiond:{{{name}}}:metadata")
    assert (metadata["type"], metadata["content"]["session_id"]) == ("hash", name)
    log = client.get(f"/v1/redis?key=sessiond:{{{name}}}:conversation&limit=2")
    assert (log["type"], log["items"]) == ("stream", 7)
    assert [entry["entry"] for entry in log["content"]] == ["6-0", "7-0"]
    assert log["content"][1]["json"]["id"] == "m4"
    index = client.get(f"/v1/redis?key=sessiond:{{{name}}}:messages&limit=3")
    assert (index["items"], len(index["content"])) == (6, 3)
    assert name in client.get("/v1/redis?key=sessiond:sessions&limit=10000")["content"]
    gone = client.call("GET", f"/v1/redis?key=sessiond:{{{name}}}:none")
    assert assert_problem(gone, 404, "not-found").hint
