"""`sessiond sessions`, `show` and `tail`."""

from __future__ import annotations

import json
import re
import signal

import pytest

from sessiond.model import NewSession
from tests.cli.commands import (
    LONG,
    SHOWN,
    SPOOF,
    append,
    ask,
    called,
    following,
    sessiond,
    status_of,
)
from tests.daemons import RunningDaemon, running_daemon, wait_for


def test_sessions_lists_what_the_filters_ask_for(daemon: RunningDaemon) -> None:
    heading, *rows = sessiond(daemon, "sessions").stdout.splitlines()
    assert heading.split() == [
        *("SESSION", "STATUS", "MESSAGES", "LAST", "ACTIVITY", "WORKSPACE", "TITLE")
    ]
    assert {row.split()[0] for row in rows} >= {LONG, SHOWN, SPOOF}
    (row,) = called(daemon, "sessions", "--workspace", "garden").stdout.splitlines()[1:]
    assert re.fullmatch(rf"{SHOWN} +active +\d+ +[\d-]+ [\d:]+ +garden +My first", row)
    told = json.loads(called(daemon, "sessions", "--json", "--limit", "2").stdout)
    assert len(told) == 2
    told = json.loads(called(daemon, "sessions", "--json", "--user-id", "nobody").stdout)
    assert told == []


def test_show_prints_a_session_for_people_and_for_programs(daemon: RunningDaemon) -> None:
    shown = sessiond(daemon, "show", SHOWN).stdout
    assert re.search(r"^title +My first$", shown, re.MULTILINE)
    assert re.search(r"^user_id +ann$", shown, re.MULTILINE)
    conversation = re.search(
        r"^user .*\nHelp me\n\nassistant .*\nTwo\nlines\n  tool: grep$", shown, re.MULTILINE
    )
    assert conversation
    told = json.loads(called(daemon, "show", SHOWN, "--json").stdout)
    assert told["metadata"]["title"] == "My first"
    assert told["conversation"]["messages"][1]["tool_calls"] == ["grep"]
    assert told["preferences"] == {"theme": "dark"}


def test_what_is_not_there_has_its_own_exit_code(daemon: RunningDaemon) -> None:
    gone = ask(daemon, lambda client: client.create(NewSession())).metadata.session_id
    ask(daemon, lambda client: client.delete(gone))
    done = sessiond(daemon, "show", "ses_unknown", code=8)
    assert "error: there is no session 'ses_unknown'" in done.stderr
    assert "`sessiond sessions`" in done.stderr
    assert "was deleted" in called(daemon, "show", gone, code=8).stderr
    called(daemon, "tail", "ses_unknown", code=8)


@pytest.mark.parametrize("name", ["../status", f"{SHOWN}?limit=1", ""])
def test_what_is_no_id_is_refused_as_such(daemon: RunningDaemon, name: str) -> None:
    done = called(daemon, "show", name, code=3)
    assert "error:" in done.stderr
    assert "openapi" not in done.stderr, "help for people who write HTTP"


def test_tail_shows_everything_once_across_a_restart_and_ends_with_the_session() -> None:
    with running_daemon() as daemon:
        name = ask(daemon, lambda client: client.create(NewSession())).metadata.session_id
        append(daemon, name, "before")
        with following(daemon, "tail", name, "--after", "0", "--json") as tail:
            wait_for(lambda: tail.shows("before"))
            append(daemon, name, "live")
            wait_for(lambda: tail.shows("live"))
            daemon.stop()
            daemon.start()
            append(daemon, name, "after the restart")
            wait_for(lambda: tail.shows("after the restart"))
            ask(daemon, lambda client: client.delete(name))
            assert tail.process.wait(timeout=15) == 0
            operations = [json.loads(line) for line in tail.lines]
            assert tail.errors == ""
        assert [each["op"] for each in operations] == [
            *("session.create", "message.append", "message.append", "message.append"),
            "session.delete",
        ]
        assert [each["position"].partition(":")[2] for each in operations] == list("12345")


@pytest.mark.parametrize(
    ("after", "why"),
    [("999", "ends before that position"), ("0123456789abcd:1", "another history")],
)
def test_tail_says_what_became_of_a_position_that_is_gone(
    daemon: RunningDaemon, after: str, why: str
) -> None:
    with following(daemon, "tail", SPOOF, "--after", after) as tail:
        wait_for(lambda: tail.shows("message.append"))
        first, second = tail.lines[:2]
        tail.process.send_signal(signal.SIGINT)
        tail.process.wait(timeout=15)
    assert re.fullmatch(f"reset  the log .*{why}.*; what it holds follows .*", first)
    assert "session.create" in second


def test_tail_shows_what_happens_from_now_on_until_ctrl_c(daemon: RunningDaemon) -> None:
    append(daemon, SHOWN, "earlier")
    before = status_of(daemon).subscribers
    with following(daemon, "tail", SHOWN) as tail:
        wait_for(lambda: status_of(daemon).subscribers > before)
        append(daemon, SHOWN, "now\nand here")
        ask(daemon, lambda client: client.send_live(SHOWN, {"text": "typing"}))
        wait_for(lambda: tail.shows("typing"))
        tail.process.send_signal(signal.SIGINT)
        assert tail.process.wait(timeout=15) == 130
        first, live = tail.lines
        assert tail.errors == ""
    assert re.fullmatch(r" +\d+  [\d-]+ [\d:]+  message.append +user: now and here .*", first)
    assert "test@here" in first
    assert live.startswith("live")


def test_tail_after_no_position_is_refused(daemon: RunningDaemon) -> None:
    done = called(daemon, "tail", SHOWN, "--after", "yesterday", code=3)
    assert "'yesterday' is not a position" in done.stderr


def test_show_tells_what_fits_a_window_and_what_does_not(daemon: RunningDaemon) -> None:
    name = ask(daemon, lambda client: client.create(NewSession())).metadata.session_id
    for number in range(6):
        append(daemon, name, f"number {number} " + "word " * 30)
    shown = sessiond(daemon, "show", name, "--window", "--tokens", "100").stdout
    assert re.search(r"^window +\d of 6 messages, strategy recent$", shown, re.MULTILINE)
    assert re.search(r"^tokens +about \d+ of 100$", shown, re.MULTILINE)
    assert re.search(r"^left out +\d messages .*: older than what fits$", shown, re.MULTILINE)
    assert "number 5" in shown
    assert "number 0" not in shown
    told = json.loads(called(daemon, "show", name, "--strategy", "tools", "--json").stdout)
    assert (told["strategy"], len(told["messages"]), told["left_out"]) == ("tools", 6, [])
    assert "from 64 to" in called(daemon, "show", name, "--tokens", "1", code=3).stderr
