"""What passes between machines arrives as it left, but for what is peculiar to a machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sessiond.opencode.mapping import (
    DURABLE,
    FIELD,
    REPLAYED,
    Change,
    Machine,
    change_of_event,
    change_of_operation,
    event_of_change,
    local_message,
    local_part,
    local_session,
    neutral_message,
    neutral_part,
    neutral_session,
    replayed_id,
    replayed_offset,
)
from sessiond.opencode.protocol import OpencodeEvent

NOW = 1_800_000_000_000
HERE = Machine("project", "/home/dev/proj")
THERE = Machine("project-there", "/srv/clones/proj")

RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "events.jsonl").read_text("utf-8").splitlines()
]
"""Events of opencode 1.18.33, as its log keeps them."""

segments = st.text(st.sampled_from("ab.*+?()[]{}|^$\\ ~-é\U0001f600"), min_size=1, max_size=6)
worktrees = st.lists(segments, min_size=1, max_size=3).map(lambda names: "/" + "/".join(names))
plain_worktrees = st.lists(st.from_regex(r"[a-c+(.]{0,3}[a-c]", fullmatch=True), min_size=1).map(
    lambda names: "/" + "/".join(names)
)
tokens = st.sampled_from(["${WORKTREE}", "${WORKTREE+}", "${WORKTREE+++}", "${WORKTREE", "}", "$"])


def texts(*paths: str) -> st.SearchStrategy[str]:
    """Texts full of these paths, of what looks like them, and of what looks like the token."""
    pieces = (
        st.sampled_from(paths)
        | tokens
        | st.sampled_from([".git", "2", "/src", ".", ", ", "file://", "/", "\\", "\n", "x", "é"])
        | st.text(max_size=4)
    )
    return st.lists(pieces, max_size=8).map("".join)


def values(*paths: str) -> st.SearchStrategy[Any]:
    """JSON values with such texts, as keys too."""
    words = texts(*paths)
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
        max_leaves=12,
    )


@given(st.data())
def test_any_json_comes_back_as_it_was_on_the_machine_it_came_from(data: st.DataObject) -> None:
    machine = Machine("p", data.draw(worktrees))
    value = data.draw(values(machine.worktree))
    assert machine.local(machine.neutral(value)) == value


@given(st.data())
def test_what_another_machine_writes_unchanged_is_the_same_in_the_log(data: st.DataObject) -> None:
    here, there = Machine("p", data.draw(worktrees)), Machine("p", data.draw(plain_worktrees))
    text = data.draw(texts(here.worktree))
    logged = here.neutral(text)
    assume(there.worktree not in logged)  # a text that names their worktree is theirs to map
    assume(logged.count("}${WORKTREE}") == 0)  # two paths that touch are no longer two paths
    assert there.neutral(there.local(logged)) == logged


@given(st.data())
def test_nothing_is_neutral_that_does_not_name_the_worktree(data: st.DataObject) -> None:
    machine = Machine("p", data.draw(worktrees))
    text = data.draw(st.text(max_size=30))
    assume(machine.worktree not in text and "${WORKTREE" not in text)
    assert machine.neutral(text) == text


@pytest.mark.parametrize(
    ("text", "neutral"),
    [
        ("/home/dev/proj", "${WORKTREE}"),
        ("/home/dev/proj/src/a.py", "${WORKTREE}/src/a.py"),
        ("file:///home/dev/proj/a", "file://${WORKTREE}/a"),
        ("Look into /home/dev/proj.", "Look into ${WORKTREE}."),
        ("Look into /home/dev/proj. Then", "Look into ${WORKTREE}. Then"),
        ('{"path":"/home/dev/proj"}', '{"path":"${WORKTREE}"}'),
        ("/home/dev/proj:/home/dev/proj/bin", "${WORKTREE}:${WORKTREE}/bin"),
        ("cd /home/dev/proj && ls\n/home/dev/proj\n", "cd ${WORKTREE} && ls\n${WORKTREE}\n"),
        ("/home/dev/proj2", "/home/dev/proj2"),
        ("/home/dev/proj-old", "/home/dev/proj-old"),
        ("/home/dev/proj_old", "/home/dev/proj_old"),
        ("/home/dev/projé", "/home/dev/projé"),
        ("/home/dev/proj.git/config", "/home/dev/proj.git/config"),
        ("/backup/home/dev/proj", "/backup/home/dev/proj"),
        ("~/home/dev/proj", "~/home/dev/proj"),
        ("../home/dev/proj", "../home/dev/proj"),
        ("/home/dev", "/home/dev"),
        ("/HOME/DEV/PROJ", "/HOME/DEV/PROJ"),
        ("${WORKTREE}", "${WORKTREE+}"),
        ("${WORKTREE+}/home/dev/proj", "${WORKTREE++}${WORKTREE}"),
        ("${WORKTREES} $WORKTREE {WORKTREE}", "${WORKTREES} $WORKTREE {WORKTREE}"),
        ("", ""),
    ],
)
def test_the_worktree_is_neutral_as_a_whole_path_only(text: str, neutral: str) -> None:
    assert HERE.neutral(text) == neutral
    assert HERE.local(neutral) == text


def test_names_of_fields_are_neutral_too_and_none_is_lost() -> None:
    value = {"/home/dev/proj/a": 1, "${WORKTREE}/a": 2, "${WORKTREE+}/a": 3}
    neutral = HERE.neutral(value)
    assert neutral == {"${WORKTREE}/a": 1, "${WORKTREE+}/a": 2, "${WORKTREE++}/a": 3}
    assert HERE.local(neutral) == value


@pytest.mark.parametrize("worktree", ["/", ""])
def test_without_a_worktree_only_what_looks_like_the_token_changes(worktree: str) -> None:
    machine = Machine("p", worktree)
    assert machine.neutral("/home and ${WORKTREE}") == "/home and ${WORKTREE+}"
    assert machine.local(machine.neutral("/home and ${WORKTREE}")) == "/home and ${WORKTREE}"
    assert machine.local("${WORKTREE}/src") == "/src"


def test_a_slash_at_the_end_of_the_worktree_changes_nothing() -> None:
    assert Machine("p", "/home/dev/proj/").neutral("/home/dev/proj/a") == "${WORKTREE}/a"


def _recorded(*kinds: str) -> list[Any]:
    return [
        pytest.param(event, id=f"{event['seq']}-{event['type']}")
        for event in RECORDED
        if event["type"].removesuffix(".1") in (kinds or DURABLE)
    ]


@pytest.mark.parametrize("recorded", _recorded())
def test_a_recorded_event_means_on_the_machine_it_came_from_what_it_said(
    recorded: dict[str, Any],
) -> None:
    given = OpencodeEvent(id=recorded["id"], type=recorded["type"], properties=recorded["data"])
    machine = Machine("5b9334a19fc0d1641b2910b8baefb456a416986f", "/home/dev/proj")
    change = change_of_event(given, machine, NOW)
    assert change is not None
    event = event_of_change(recorded["data"]["sessionID"], change, machine, NOW, "evt_sd1x1")
    said = dict(recorded["data"])
    if change.kind == "session.delete":
        del said["info"]  # whoever replays it adds the record that is there
    if "info" in said:
        said["info"].pop("revert", None)  # stays where it was made
    assert event.properties == said
    assert event.type == recorded["type"].removesuffix(".1").replace("created", "updated")


@pytest.mark.parametrize("recorded", _recorded())
def test_a_recorded_event_passes_another_machine_unchanged(recorded: dict[str, Any]) -> None:
    def change_on(machine: Machine, kind: str, properties: dict[str, Any]) -> Change:
        given = OpencodeEvent(type=kind, properties=properties)
        change = change_of_event(given, machine, NOW)
        assert change is not None
        return change

    said = change_on(HERE, recorded["type"], recorded["data"])
    assert "/home/dev/proj" not in json.dumps(said.body)
    told = event_of_change(recorded["data"]["sessionID"], said, THERE, NOW)
    again = change_on(THERE, told.type, told.properties)
    assert (again.kind, again.id, again.body) == (said.kind, said.id, said.body)


def test_a_session_arrives_with_the_project_and_the_folders_of_the_machine() -> None:
    (created,) = [e for e in RECORDED if e["type"] == "session.created.1"]
    given = created["data"]["info"] | {"workspaceID": "wrk_1", "share": {"url": "https://there"}}
    body = neutral_session(given, HERE)
    assert not {"projectID", "workspaceID", "share"} & body.keys()
    info = local_session(body, THERE, NOW)
    assert info["projectID"] == "project-there"
    assert info["directory"] == "/srv/clones/proj"
    assert info["id"] == given["id"]


def test_records_carry_no_id_twice_and_get_them_back_from_their_place() -> None:
    info = {"id": "msg_1", "sessionID": "ses_1", "role": "user", "time": {"created": 1}}
    part = {"id": "prt_1", "sessionID": "ses_1", "messageID": "msg_1", "type": "text", "text": "a"}
    body, inner = neutral_message(info, HERE), neutral_part(part, HERE)
    assert body == {"role": "user", "time": {"created": 1}}
    assert inner == {"id": "prt_1", "type": "text", "text": "a"}
    assert local_message("ses_1", "msg_1", body, HERE, NOW) == info
    assert local_part("ses_1", "msg_1/prt_1", inner, HERE, NOW) == part


# Time

times = st.integers(min_value=1_000_000_000_000, max_value=NOW)
offsets = st.integers(min_value=-90_000_000, max_value=90_000_000)


@given(times, times, offsets)
def test_times_come_back_on_the_machine_they_came_from(first: int, second: int, by: int) -> None:
    machine = Machine("p", "/w", clock_ahead_ms=by)
    info = {"role": "user", "time": {"created": first, "completed": second}}
    part = {"id": "b", "type": "tool", "state": {"time": {"start": first, "end": second}}}
    body = neutral_message(info, machine)
    assert body["time"] == {"created": first - by, "completed": second - by}
    message = local_message("s", "a", body, machine, NOW)
    assert message == info | {"id": "a", "sessionID": "s"}
    inner = neutral_part(part, machine)
    assert local_part("s", "a/b", inner, machine, NOW)["state"] == part["state"]


@given(times, offsets, offsets)
def test_nothing_is_dated_later_than_now_where_it_arrives(at: int, here: int, there: int) -> None:
    source, target = Machine("p", "/w", here), Machine("p", "/w", there)
    now = 1_700_000_000_000
    body = neutral_message({"role": "user", "time": {"created": at, "completed": at}}, source)
    message = local_message("s", "a", body, target, now)
    assert message["time"]["created"] == min(at - here + there, now)
    part = {"id": "b", "state": {"time": {"start": at}}, "time": {"start": at, "end": at}}
    change = Change(kind="part.put", id="a/b", body=neutral_part(part, source), at_ms=at - here)
    told = event_of_change("s", change, target, now).properties
    assert told["time"] == min(at - here + there, now)
    assert told["part"]["time"]["end"] <= now
    assert told["part"]["state"]["time"]["start"] <= now


@given(times)
def test_without_a_measured_offset_times_pass_untouched(at: int) -> None:
    given = {"info": {"id": "a", "role": "user", "time": {"created": at}}}
    change = change_of_event(OpencodeEvent(type="message.updated", properties=given), HERE, NOW)
    assert change is not None
    assert change.body == {"role": "user", "time": {"created": at}}


@pytest.mark.parametrize("value", [0, 1, 12.5, None, "soon", True, [1], {"a": 1}])
def test_what_is_no_time_in_milliseconds_is_no_time(value: Any) -> None:
    machine = Machine("p", "/w", clock_ahead_ms=5000)
    info = {"role": "user", "time": {"created": value}, "count": NOW}
    body = neutral_message(info, machine)
    assert body == info
    assert local_message("s", "a", body, machine, 5) == info | {"id": "a", "sessionID": "s"}


@pytest.mark.parametrize("value", [None, 5, "now", [1]])
def test_a_time_that_is_no_object_is_kept(value: Any) -> None:
    machine = Machine("p", "/w", clock_ahead_ms=5000)
    part = {"id": "b", "time": value, "state": value}
    assert neutral_part(part, machine) == part


@given(times, offsets, offsets)
def test_a_time_keeps_its_meaning_when_the_clock_is_set(at: int, before: int, after: int) -> None:
    machine = Machine("p", "/w", clock_ahead_ms=before)
    info = {"role": "user", "time": {"created": at}}
    written = neutral_message(info, machine)
    arrived = local_message("s", "b", {"time": {"created": at - 7}}, machine, NOW + 10**8)
    machine.clock_ahead_ms = after
    assert neutral_message(info, machine) == written
    assert neutral_message(arrived, machine)["time"]["created"] == at - 7
    later = {"role": "user", "time": {"created": at + 1}}
    expected = at + 1 - (before if at + 1 in (at, at - 7 + before) else after)
    assert neutral_message(later, machine)["time"]["created"] == expected


def test_an_event_without_a_time_happened_now_by_the_clock_of_all() -> None:
    machine = Machine("p", "/w", clock_ahead_ms=5000)
    given = OpencodeEvent(type="message.removed", properties={"messageID": "m"})
    change = change_of_event(given, machine, NOW)
    assert change == Change(kind="message.remove", id="m", body=None, at_ms=NOW - 5000)


# What is not as expected


@pytest.mark.parametrize(
    "kind", ["session.status", "session.idle", "message.part.delta", "todo.updated", "x.1", "", "1"]
)
def test_events_that_are_not_durable_mean_nothing(kind: str) -> None:
    assert change_of_event(OpencodeEvent(type=kind, properties={}), HERE, NOW) is None


@pytest.mark.parametrize("kind", sorted(DURABLE - {"session.deleted"}))
@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"info": None, "part": None, "messageID": None},
        {"info": "text", "part": "text"},
        {"info": [1], "part": [1]},
        {"info": {}, "part": {}},
        {"info": 5, "part": 5},
    ],
    ids=str,
)
def test_a_durable_event_that_lacks_what_it_is_about_is_refused_in_one_way(
    kind: str, properties: dict[str, Any]
) -> None:
    given = OpencodeEvent(type=kind, properties=properties)
    try:
        change = change_of_event(given, HERE, NOW)
    except (KeyError, TypeError, ValueError):
        return
    assert change is not None
    assert change.body is None or isinstance(change.body, dict)
    assert isinstance(change.id, str)
    assert None not in change.id.split("/")
    assert "None" not in change.id


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metadata", "context", "set", FIELD, "time", "state", "a"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(
    st.sampled_from(
        [
            *("session.create", "session.delete", "document.change", "message.append"),
            *("message.edit", "message.remove", "part.put", "part.remove", "later.verb"),
        ]
    ),
    st.sampled_from(["context", "metadata", "preferences", "m1", "m1/p1"]),
    json_values,
)
@example("message.append", "m1", {"metadata": None})
@example("message.append", "m1", {"metadata": {FIELD: "text"}})
@example("session.create", "ses_1", {"context": {FIELD: [1]}})
@example("document.change", "context", {"unset": [FIELD]})
@example("part.put", "m1/p1", "text")
def test_whatever_an_operation_holds_it_means_a_record_or_nothing(
    op: str, record_id: str, body: Any
) -> None:
    change = change_of_operation(op, record_id, body, NOW)
    if change is None:
        return
    assert isinstance(change.body, dict) == change.kind.endswith(".put")
    event = event_of_change("ses_1", change, THERE, NOW, "evt_sdax1")
    assert event.type in DURABLE
    json.dumps(event.properties)


@pytest.mark.parametrize(
    ("op", "record_id", "body", "kind", "name"),
    [
        ("session.create", "ses_1", {"context": {FIELD: {"title": "a"}}}, "session.put", ""),
        ("document.change", "context", {"set": {FIELD: {"title": "a"}}}, "session.put", ""),
        ("message.append", "m", {"metadata": {FIELD: {"role": "user"}}}, "message.put", "m"),
        ("message.edit", "m", {"metadata": {FIELD: {"role": "user"}}}, "message.put", "m"),
        ("part.put", "m/p", {"type": "text"}, "part.put", "m/p"),
        ("message.remove", "m", {}, "message.remove", "m"),
        ("part.remove", "m/p", {}, "part.remove", "m/p"),
        ("session.delete", "ses_1", {}, "session.delete", ""),
    ],
)
def test_each_operation_means_what_its_name_says(
    op: str, record_id: str, body: Any, kind: str, name: str
) -> None:
    change = change_of_operation(op, record_id, body, NOW)
    assert change is not None
    assert (change.kind, change.id) == (kind, name)


@given(
    st.from_regex(r"[0-9a-f]{14}", fullmatch=True),
    st.integers(min_value=0, max_value=10**15),
    st.none() | st.integers(min_value=0, max_value=10**16),
)
def test_an_id_of_ours_tells_which_operation_it_brought(
    epoch: str, offset: int, salt: int | None
) -> None:
    name = replayed_id(epoch, offset, salt)
    assert name.startswith("evt_")
    assert name.startswith(REPLAYED)
    assert replayed_offset(name) == offset
    assert name != replayed_id(epoch, offset + 1, salt)
    assert name != replayed_id(epoch, offset, 0 if salt is None else salt + 1)


@pytest.mark.parametrize("event_id", [event["id"] for event in RECORDED])
def test_ids_of_opencode_are_not_taken_for_ours(event_id: str) -> None:
    assert replayed_offset(event_id) is None
