"""Archiving through HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.client import Client
from tests.api.wire import assert_problem
from tests.daemons import RunningDaemon

pytestmark = pytest.mark.usefixtures("_quiet")


def created(client: Client, name: str) -> Any:
    client.call("POST", "/v1/sessions", {"session_id": name, "workspace": "old", "title": "T"})
    client.call("POST", f"/v1/sessions/{name}/messages", {"role": "user", "content": "hello"})
    return client.get(f"/v1/sessions/{name}")


def test_a_session_is_archived_and_comes_back_on_load(
    client: Client, daemon: RunningDaemon
) -> None:
    loaded = created(client, "ses_arc_1")
    answer = client.call("POST", "/v1/sessions/ses_arc_1/archive?idle_seconds=0")
    assert answer.status == 200
    assert (answer.json["archived"], answer.json["position"]) == (True, loaded["position"])
    assert answer.json["bytes"] > 100
    (listed,) = client.get("/v1/sessions?workspace=old&status=archived")["sessions"]
    assert listed["metadata"]["title"] == "T"
    assert client.get("/v1/sessions/ses_arc_1") == loaded
    assert client.get("/v1/sessions?workspace=old&status=archived")["sessions"] == []


def test_a_session_is_restored_without_being_loaded(client: Client) -> None:
    loaded = created(client, "ses_arc_2")
    client.call("POST", "/v1/sessions/ses_arc_2/archive?idle_seconds=0")
    for _ in range(2):
        answer = client.call("POST", "/v1/sessions/ses_arc_2/restore")
        assert answer.json == {
            "session_id": "ses_arc_2",
            "position": loaded["position"],
            "archived": False,
        }


def test_a_session_that_is_used_is_refused(client: Client) -> None:
    created(client, "ses_arc_3")
    answer = client.call("POST", "/v1/sessions/ses_arc_3/archive")
    problem = assert_problem(answer, 409, "session-in-use")
    assert "written to" in problem.detail
    assert "idle for 300 s" in str(problem.hint)
    assert not problem.retryable


@pytest.mark.parametrize("verb", ["archive", "restore"])
def test_what_is_not_there_is_not_found(client: Client, verb: str) -> None:
    assert_problem(client.call("POST", f"/v1/sessions/never-was/{verb}"), 404, "not-found")
    created(client, f"ses_gone_{verb}")
    client.call("DELETE", f"/v1/sessions/ses_gone_{verb}")
    answer = client.call("POST", f"/v1/sessions/ses_gone_{verb}/{verb}")
    assert_problem(answer, 410, "session-deleted")


@pytest.mark.parametrize("idle", ["-1", "x", "1.5", "", "99999999999"])
def test_an_idle_time_that_is_none_is_refused(client: Client, idle: str) -> None:
    created(client, "ses_arc_4")
    answer = client.call("POST", f"/v1/sessions/ses_arc_4/archive?idle_seconds={idle}")
    assert "idle_seconds" in assert_problem(answer, 400, "invalid-input").detail
