"""The state that a program holds of a session: always what a load would give it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from sessiond import model
from sessiond.model import (
    Context,
    Document,
    DocumentName,
    Live,
    Message,
    Metadata,
    Operation,
    Reset,
    Session,
)
from sessiond.sync.replica import Conversation
from sessiond.sync.view import SessionView

NOON = datetime(2026, 1, 13, 12, 0, tzinfo=UTC)
ROLES = ("user", "assistant", "system", "tool")
DOCUMENTS: tuple[DocumentName, ...] = ("metadata", "context", "preferences")
CREATED: dict[str, dict[str, Any]] = {
    "metadata": {"session_id": "s", "created_at": NOON, "workspace": "default", "title": "first"},
    "context": {"working_directory": "/home", "active_files": ["a"], "state": {"deep": [1]}},
    "preferences": {"theme": "dark", "editor": {"tabs": [2, 4]}},
}
CREATION = {
    "session_id": "s",
    "title": "first",
    "workspace": "default",
    "context": CREATED["context"],
    "preferences": CREATED["preferences"],
}
Draw = Callable[[st.SearchStrategy[Any]], Any]

words = st.text("ab \n", max_size=4)
scalars = st.one_of(words, st.integers(-3, 3), st.booleans(), st.none())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
    ),
    max_leaves=6,
)
fields: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "metadata": {
        "title": words,
        "status": st.sampled_from(["active", "archived"]),
        "environment": words,
        "user_agent": words,
    },
    "context": {
        "working_directory": words,
        "active_files": st.lists(words, max_size=3),
        "recent_commands": st.lists(words, max_size=3),
        "state": st.dictionaries(st.sampled_from("xyz"), values, max_size=3),
    },
    "preferences": dict.fromkeys(("theme", "editor", "language"), values),
}
REMOVABLE = {"metadata": ["title"], "context": [], "preferences": ["theme", "editor", "language"]}


class Scribe:
    """Writes a log by the rules that the store keeps (`store/lua`)."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.operations = [operation(1, "session.create", "s", CREATION)]
        self._bodies: dict[str, dict[str, Any]] = {}
        self._parts: dict[str, dict[str, bool]] = {}

    def write_something(self) -> None:
        verbs = [self.append, self.change_document]
        if self._bodies:
            verbs += [self.edit, self.put_part, self.put_part, self.remove_part, self.remove]
        self.draw(st.sampled_from(verbs))()

    def append(self) -> None:
        name = f"m{len(self.operations)}"
        body = {"id": name, "timestamp": NOON, "role": self.draw(st.sampled_from(ROLES))}
        ids = self.draw(st.lists(st.sampled_from(["p1", "p2", "p3"]), unique=True, max_size=3))
        if ids:
            body["parts"] = [self._part(part_id) for part_id in ids]
            derived = derived_fields(body)
            body |= {"content": derived.content, "tool_calls": derived.tool_calls}
        else:
            body |= self._own_words()
        self._bodies[name] = body
        self._parts[name] = dict.fromkeys(ids, True)
        self._write("message.append", name, body)

    def edit(self) -> None:
        name = self._message()
        body = self._bodies[name] | {"role": self.draw(st.sampled_from(ROLES))}
        if "parts" not in body:
            body |= self._own_words()
        self._bodies[name] = body
        self._write("message.edit", name, body)

    def remove(self) -> None:
        name = self._message()
        del self._bodies[name]
        self._write("message.remove", name, {})

    def put_part(self) -> None:
        name = self._message()
        removed = [part_id for part_id, there in self._parts[name].items() if not there]
        part_id = self.draw(st.sampled_from(["p1", "p2", "p3", "p4"]))
        if part_id not in removed:
            self._parts[name][part_id] = True
            self._write("part.put", f"{name}/{part_id}", self._part(part_id))

    def remove_part(self) -> None:
        name = self._message()
        there = [part_id for part_id, there in self._parts[name].items() if there]
        if there:
            part_id = self.draw(st.sampled_from(there))
            self._parts[name][part_id] = False
            self._write("part.remove", f"{name}/{part_id}", {})

    def change_document(self) -> None:
        document = self.draw(st.sampled_from(DOCUMENTS))
        known = fields[document]
        changed = self.draw(st.lists(st.sampled_from(sorted(known)), unique=True, max_size=3))
        removable = REMOVABLE[document]
        unset = [name for name in changed if name in removable and self.draw(st.booleans())]
        body = {
            "set": {name: self.draw(known[name]) for name in changed if name not in unset},
            "unset": unset,
        }
        self._write("document.change", document, body)

    def _message(self) -> str:
        return str(self.draw(st.sampled_from(sorted(self._bodies))))

    def _own_words(self) -> dict[str, Any]:
        calls = self.draw(st.lists(st.sampled_from(["grep", "read"]), max_size=2))
        return {"content": self.draw(words), "tool_calls": calls}

    def _part(self, part_id: str) -> dict[str, Any]:
        kind = self.draw(st.sampled_from(["text", "tool", "x-unknown"]))
        more = {"text": self.draw(words)} if kind == "text" else {"tool": "bash", "state": {"n": 1}}
        return {"id": part_id, "type": kind, **more}

    def _write(self, op: str, record_id: str, body: Any) -> None:
        at = NOON + timedelta(seconds=self.draw(st.integers(-2, 5)))  # clocks differ
        self.operations.append(operation(len(self.operations) + 1, op, record_id, body, at))


@st.composite
def logs(draw: Draw) -> list[Operation]:
    scribe = Scribe(draw)
    for _ in range(draw(st.integers(0, 20))):
        scribe.write_something()
    return scribe.operations


def operation(offset: int, op: str, record_id: str, body: Any, at: datetime = NOON) -> Operation:
    plain = msgspec.json.decode(msgspec.json.encode(body))  # as it arrives
    return Operation(
        op=op,
        session_id="s",
        position=f"{offset:014x}:{offset}",
        at=at,
        origin=f"them.1:{offset}",
        id=record_id,
        body=plain,
    )


def change(offset: int, name: str, *unset: str, **changed: Any) -> Operation:
    return operation(offset, "document.change", name, {"set": changed, "unset": list(unset)})


def derived_fields(body: dict[str, Any]) -> Message:
    conversation = Conversation()
    conversation.apply("message.append", "m", 1, msgspec.json.encode(body | {"parts": []}))
    for part in body["parts"]:
        conversation.apply("part.put", f"m/{part['id']}", 2, msgspec.json.encode(part))
    return msgspec.json.decode(conversation.message("m"), type=Message)


def loaded(log: list[Operation]) -> Session:
    """What a load answers at the end of a log."""
    conversation = Conversation()
    documents = copy.deepcopy(CREATED)
    versions = dict.fromkeys(DOCUMENTS, log[0].position)
    for number, each in enumerate(log, start=1):
        conversation.apply(each.op, each.id, number, msgspec.json.encode(each.body))
        if each.op == "document.change":
            document = documents[each.id] | each.body["set"]
            documents[each.id] = {
                name: value for name, value in document.items() if name not in each.body["unset"]
            }
            versions[each.id] = each.position  # type: ignore[index]
    documents["metadata"]["last_activity"] = max(each.at for each in log)
    messages = [msgspec.json.decode(body, type=Message) for body in conversation.messages()]
    answer = msgspec.json.encode(
        Session(
            metadata=msgspec.convert(documents["metadata"], Metadata),
            conversation=model.Conversation(messages=messages, total_messages=len(messages)),
            context=msgspec.convert(documents["context"], Context),
            preferences=documents["preferences"],
            position=log[-1].position,
            versions=versions,
        )
    )
    return msgspec.json.decode(answer, type=Session)


def fresh(**documents: Any) -> SessionView:
    """A view just loaded, at offset 1, with these documents."""
    session = loaded([operation(1, "session.create", "s", CREATION)])
    for name, value in documents.items():
        setattr(session, name, value)
    return SessionView(session)


def state(of: SessionView | Session) -> bytes:
    """Everything that a program can see, as JSON: 1, 1.0 and true are three values there."""
    messages = of.messages if isinstance(of, SessionView) else of.conversation.messages
    seen = [of.metadata, messages, of.context, of.preferences, of.position]
    return msgspec.json.encode(seen, order="sorted")


def unsaved(view: SessionView) -> dict[str, Any]:
    return {name: value for name, value, _ in view.changed_documents()}


@settings(max_examples=60)
@given(logs(), st.data())
def test_following_any_log_from_anywhere_gives_what_loading_its_end_gives(
    log: list[Operation], data: st.DataObject
) -> None:
    here = data.draw(st.integers(1, len(log)))
    view = SessionView(loaded(log[:here]))
    for each in log[here:]:
        view.apply(each)
    assert state(view) == state(loaded(log))
    assert unsaved(view) == {}


@settings(max_examples=60)
@given(logs(), st.data())
def test_operations_that_come_again_change_nothing(
    log: list[Operation], data: st.DataObject
) -> None:
    view = SessionView(loaded(log[:1]))
    for number, each in enumerate(log):
        view.apply(each)
        view.apply(each)
        view.apply(log[data.draw(st.integers(0, number))])
    assert state(view) == state(loaded(log))


def test_what_passes_live_changes_nothing() -> None:
    view = fresh()
    view.apply(Live(session_id="s", origin="them.1", body={"text": "typing"}))
    assert state(view) == state(fresh())


@settings(max_examples=30)
@given(logs())
def test_after_a_reset_the_log_from_its_beginning_gives_what_loading_gives(
    log: list[Operation],
) -> None:
    other = [
        operation(2, "message.append", "lost", {"id": "lost", "timestamp": NOON, "role": "user"}),
        operation(3, "message.remove", "lost", {}),
    ]
    view = SessionView(loaded(log[:1] + other))
    view.apply(Reset(session_id="s", reason="history-changed"))
    assert view.messages == []
    for each in log:
        view.apply(each)
    assert state(view) == state(loaded(log))


@given(st.sampled_from(["context", "preferences"]), st.data())
def test_a_document_with_unsaved_changes_stays_as_it_is_and_meets_the_conflict(
    name: DocumentName, data: st.DataObject
) -> None:
    mine, theirs = (data.draw(st.fixed_dictionaries({}, optional=fields[name])) for _ in "12")
    view = fresh()
    for field, value in mine.items():
        if name == "context":
            setattr(view.context, field, value)
        else:
            view.preferences[field] = value
    assume(unsaved(view))
    before = msgspec.json.encode(unsaved(view))
    view.apply(change(2, name, **theirs))
    assert msgspec.json.encode(unsaved(view)) == before
    ((_, _, version),) = view.changed_documents()
    assert version == fresh().position


def test_a_removal_not_yet_saved_stays() -> None:
    view = fresh(preferences={"theme": "dark", "language": "en"})
    view.context.active_files.clear()
    del view.preferences["theme"]
    view.apply(change(2, "preferences", language="de"))
    view.apply(change(3, "context", working_directory="/elsewhere"))
    assert unsaved(view)["preferences"] == {"language": "en"}
    assert unsaved(view)["context"]["active_files"] == []


def test_a_new_field_that_is_null_is_an_unsaved_change() -> None:
    view = fresh(preferences={"language": "en"})
    view.preferences["theme"] = None
    assert unsaved(view) == {"preferences": {"language": "en", "theme": None}}


def test_what_others_wrote_beside_an_unsaved_change_comes_back_when_that_is_taken_back() -> None:
    view = fresh(preferences={"theme": "dark", "language": "en"})
    view.preferences["theme"] = "mine"
    view.apply(change(2, "preferences", language="theirs"))
    view.preferences["theme"] = "dark"  # taken back: nothing is unsaved
    view.apply(change(3, "preferences", editor="theirs"))
    assert view.preferences == {"theme": "dark", "language": "theirs", "editor": "theirs"}


def test_what_came_from_others_can_be_changed_in_place_and_is_then_unsaved() -> None:
    view = fresh()
    view.apply(change(2, "preferences", editor={"tabs": [2]}))
    view.apply(change(3, "context", state={"findings": []}))
    view.preferences["editor"]["tabs"].append(8)
    view.context.state["findings"].append("x")
    assert unsaved(view)["preferences"]["editor"] == {"tabs": [2, 8]}
    assert unsaved(view)["context"]["state"] == {"findings": ["x"]}


def test_the_documents_a_program_holds_stay_those_of_the_session() -> None:
    view = fresh()
    context, preferences = view.context, view.preferences
    view.apply(change(2, "context", working_directory="/elsewhere"))
    view.apply(change(3, "preferences", theme="light"))
    context.active_files.append("b")
    preferences["language"] = "de"
    assert unsaved(view)["context"]["active_files"] == ["a", "b"]
    assert unsaved(view)["preferences"]["language"] == "de"


@pytest.mark.parametrize(
    ("before", "after"), [(1, True), (0, False), (1, 1.0), ([1], [True]), ({"a": 0}, {"a": False})]
)
def test_values_that_only_python_holds_equal_are_unsaved_changes(before: Any, after: Any) -> None:
    view = fresh(preferences={"theme": before})
    view.preferences["theme"] = after
    assert msgspec.json.encode(unsaved(view)) == msgspec.json.encode(
        {"preferences": {"theme": after}}
    )


def test_what_was_changed_while_it_was_saved_is_still_unsaved() -> None:
    view = fresh(preferences={"theme": "dark"})
    view.preferences["theme"] = "sent"
    ((_, sent, _),) = view.changed_documents()
    sent = copy.deepcopy(sent)
    view.preferences["theme"] = "changed meanwhile"
    view.take_saved(Document(name="preferences", value=sent, version="e:2"), sent)
    assert unsaved(view) == {"preferences": {"theme": "changed meanwhile"}}


def test_what_a_save_was_merged_with_comes_in_beside_what_was_changed_meanwhile() -> None:
    view = fresh(preferences={"theme": "dark"})
    view.preferences["theme"] = "sent"
    ((_, sent, _),) = view.changed_documents()
    view.preferences["editor"] = {"tabs": 2}
    merged = {"theme": "sent", "language": "theirs", "editor": {"size": 12}}
    view.take_saved(Document(name="preferences", value=merged, version="e:5"), sent)
    both = merged | {"editor": {"size": 12, "tabs": 2}}
    assert view.preferences == both
    assert unsaved(view) == {"preferences": both}
    assert [version for _, _, version in view.changed_documents()] == ["e:5"]


def test_what_was_changed_here_and_by_others_while_it_was_saved_is_told() -> None:
    view = fresh(preferences={"theme": "dark", "language": "en", "editor": {"tabs": 2}})
    view.preferences["language"] = "de"
    ((_, sent, _),) = view.changed_documents()
    view.preferences["theme"] = "mine"
    view.preferences["editor"] = ["mine"]
    answer = {"theme": "theirs", "language": "de"}
    told = view.take_saved(Document(name="preferences", value=answer, version="e:5"), sent)
    assert [(each.path, each.outcome) for each in told] == [
        (("editor",), "ours"),
        (("theme",), "ours"),
    ]
    editor, theme = told
    assert (theme.base, theme.ours, theme.theirs) == ("dark", "mine", "theirs")
    assert (editor.base, editor.ours, editor.theirs) == ({"tabs": 2}, ["mine"], UNSET)
    here = {"theme": "mine", "language": "de", "editor": ["mine"]}
    assert unsaved(view) == {"preferences": here}
    view.preferences["editor"].append("later")
    assert editor.ours == ["mine"], "what stood here then"


def test_a_save_that_nobody_got_between_tells_of_nothing() -> None:
    view = fresh(preferences={"theme": "dark", "language": "en"})
    view.context.active_files.append("sent")
    ((_, sent, _),) = view.changed_documents()
    view.context.active_files.append("mine")
    view.context.state["deep"] = ["same"]
    answer = sent | {"active_files": ["sent", "theirs"], "state": {"deep": ["same"]}}
    assert view.take_saved(Document(name="context", value=answer, version="e:5"), sent) == ()
    assert view.context.active_files == ["sent", "theirs", "mine"], "what they closed is closed"


def test_what_was_saved_is_not_unsaved_any_more() -> None:
    view = fresh(preferences={"theme": "dark"})
    view.preferences["theme"] = "light"
    saved = {"theme": "light"}
    view.take_saved(Document(name="preferences", value=saved, version="e:2"), saved)
    assert unsaved(view) == {}
    view.apply(change(2, "preferences", theme="light"))
    assert unsaved(view) == {}
    assert view.preferences == {"theme": "light"}


def test_a_deleted_session_says_so() -> None:
    view = fresh()
    view.apply(operation(2, "session.delete", "s", {}))
    assert view.metadata.status == "deleted"


def _told(message_id: str, content: str, *, op: str = "message.append") -> Any:
    body = {"id": message_id, "timestamp": NOON, "role": "user", "content": content}
    return model.JournaledOperation(
        op=op, session_id="s", version="ff:1", at=NOON, origin="x", id=message_id, body=body
    )


def _appended(message_id: str, offset: int) -> Operation:
    body = {"id": message_id, "timestamp": NOON, "role": "user", "content": "x"}
    return Operation(
        op="message.append",
        session_id="s",
        position=f"{offset:014x}:{offset}",
        at=NOON,
        origin="x",
        id=message_id,
        body=body,
    )


def _loaded(*message_ids: str, offset: int, state: dict[str, Any]) -> Session:
    messages = [Message(id=name, timestamp=NOON, role="user") for name in message_ids]
    return Session(
        metadata=Metadata(session_id="s", created_at=NOON, last_activity=NOON),
        conversation=model.Conversation(messages=messages),
        context=Context(state=state),
        preferences={},
        position=f"{offset:014x}:{offset}",
        versions=dict.fromkeys(DOCUMENTS, f"{offset:014x}:{offset}"),
    )


def test_a_message_that_somebody_journaled_is_shown_once_and_gets_its_place() -> None:
    view = SessionView(_loaded(offset=1, state={}))
    view.apply(_told("mine", "x"))
    view.apply(_told("mine", "x"))
    view.apply(_told("other", "x", op="message.edit"))
    assert [message.id for message in view.messages] == ["mine"]
    view.apply(_appended("theirs", 2))
    view.apply(_appended("mine", 3))
    assert [message.id for message in view.messages] == ["theirs", "mine"]


def test_what_was_old_is_replaced_and_unsaved_changes_and_journaled_messages_stay() -> None:
    old = _loaded("a", "lost", offset=9, state={"x": 1})
    old.versions["context"] = old.versions["preferences"] = "ff0123456789ab:4"
    view = SessionView(old)
    view.apply(_told("journaled", "x"))
    view.preferences["unsaved"] = True
    view.take_loaded(_loaded("a", "b", offset=5, state={"x": 2}))
    assert [message.id for message in view.messages] == ["a", "b", "journaled"]
    assert (view.context.state, view.preferences) == ({"x": 2}, {"unsaved": True})
    assert view.position.endswith(":5")
    assert [name for name, _, _ in view.changed_documents()] == ["preferences"]
    view.apply(_appended("journaled", 6))
    view.apply(_appended("c", 7))
    assert [message.id for message in view.messages] == ["a", "b", "journaled", "c"]
