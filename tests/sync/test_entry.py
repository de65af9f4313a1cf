"""A log entry as readers are told of it."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sessiond.model import Operation
from sessiond.sync.entry import Entry, operation_json

texts = st.text(st.characters(codec="utf-8"), max_size=10)


@given(texts, texts, st.dictionaries(texts, texts, max_size=3))
def test_an_entry_becomes_an_operation_whatever_its_texts(
    origin: str, record_id: str, body: dict[str, str]
) -> None:
    entry = Entry(
        offset=12,
        op="message.append",
        at="2026-01-13T10:30:00.000Z",
        origin=origin,
        id=record_id,
        epoch="00f3a9c1d2e4b7",
        json=msgspec.json.encode(body),
    )
    operation = msgspec.json.decode(operation_json("ses_1", entry), type=Operation)
    assert operation == Operation(
        op="message.append",
        session_id="ses_1",
        position="00f3a9c1d2e4b7:12",
        at=datetime(2026, 1, 13, 10, 30, tzinfo=UTC),
        origin=origin,
        id=record_id,
        body=body,
    )


def test_the_body_passes_through_byte_for_byte() -> None:
    body = b'{ "b":[], "a":{}, "n":1.0, "u":"\xc3\xa9\\u00e9" }'
    entry = Entry(1, "message.append", "t", "o", "i", "e", body)
    assert operation_json("s", entry).endswith(b',"body":' + body + b"}")
    assert str(entry.position) == "e:1"
