"""What a writer is told of a write that was performed more than once."""

from __future__ import annotations

import pytest

from sessiond.errors import StoreUnavailable
from sessiond.model import Document, Written
from sessiond.service.durable.performing import Performed
from sessiond.sync.position import Position

AT = Position("0" * 14, 2)


def written(*, duplicate: bool) -> Performed:
    return Performed(Written(records=[], position=str(AT), duplicate=duplicate), AT)


@pytest.mark.parametrize("was_new", [True, False])
def test_what_was_new_at_first_is_new(*, was_new: bool) -> None:
    again = written(duplicate=True)
    assert again.as_the_first(written(duplicate=not was_new)) == written(duplicate=not was_new)


@pytest.mark.parametrize("first", [None, StoreUnavailable("away")])
def test_where_nothing_is_known_of_the_first_it_stays_as_it_is(first: object) -> None:
    again = written(duplicate=True)
    assert again.as_the_first(first) is again


def test_a_document_is_what_it_is() -> None:
    document = Performed(Document(name="context", value={}, version=str(AT)), AT)
    assert document.as_the_first(document) is document
