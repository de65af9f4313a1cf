"""Windows over HTTP."""

from __future__ import annotations

import pytest

from tests.api.client import Client

pytestmark = pytest.mark.usefixtures("_quiet")


def test_a_window_shows_what_fits_and_tells_the_rest(client: Client, session: str) -> None:
    for number in range(10):
        client.append(session, f"m{number}", "word " * 30)
    whole = client.get(session)["conversation"]
    window = client.get(f"{session}/window?tokens=100&strategy=recent")
    assert window["messages"] == whole["messages"][-len(window["messages"]) :] != []
    assert (window["budget"], window["total_messages"]) == (100, 11)
    assert window["tokens"] <= 100 < whole["context_window_used"]
    (left,) = window["left_out"]
    assert (left["reason"], left["first"]) == ("older", "first")
    assert left["messages"] + len(window["messages"]) == 11
    assert left["tokens"] + window["tokens"] == whole["context_window_used"]
    assert client.get(session)["conversation"] == whole


def test_without_a_wish_a_window_is_as_configured(client: Client, session: str) -> None:
    window = client.get(f"{session}/window")
    assert (window["budget"], window["strategy"], window["left_out"]) == (10_000, "recent", [])


@pytest.mark.parametrize(
    "query", ["tokens=63", "tokens=1e3", "tokens=", "tokens=-5", "strategy=", "strategy=os:system"]
)
def test_a_window_that_cannot_be_is_refused(client: Client, session: str, query: str) -> None:
    client.assert_refused("GET", f"{session}/window?{query}", status=400)


def test_a_window_on_what_is_not_there_is_not_found(client: Client) -> None:
    client.assert_refused("GET", "/v1/sessions/never-was/window", status=404)
