"""Users' preferences over HTTP."""

from __future__ import annotations

import pytest

from tests.api.client import Client

pytestmark = pytest.mark.usefixtures("_quiet")


def path(user: str) -> str:
    return f"/v1/users/{user}/preferences"


def test_sessions_of_a_user_begin_with_the_users_preferences(client: Client) -> None:
    answer = client.call("PATCH", path("ann@example.org"), {"theme": "dark", "old": 1})
    assert (answer.status, answer.json) == (200, {"theme": "dark", "old": 1})
    client.call("PATCH", path("ann%40example.org"), {"old": None})
    assert client.get(path("ann@example.org")) == {"theme": "dark"}
    given = {"user_id": "ann@example.org", "preferences": {"language": "en"}}
    session = client.create("of-ann", **given)
    assert client.get(f"{session}/preferences") == {"theme": "dark", "language": "en"}


def test_somebody_unknown_has_none(client: Client) -> None:
    assert client.get(path("nobody")) == {}


@pytest.mark.parametrize("user", ["a%20b", "-a", "a" * 129])
def test_what_is_no_users_id_is_refused(client: Client, user: str) -> None:
    assert "user_id" in client.assert_refused("GET", path(user), status=400)


@pytest.mark.parametrize("patch", [[], "dark", {"_own": 1}])
def test_what_are_no_preferences_is_refused(client: Client, patch: object) -> None:
    client.assert_refused("PATCH", path("ben"), patch, status=400)
    assert client.get(path("ben")) == {}
