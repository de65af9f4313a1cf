"""Exit codes."""

from __future__ import annotations

from typing import Any

from sessiond.cli import exits
from sessiond.errors import SessiondError


def test_every_exit_code_has_one_meaning() -> None:
    table = exits.table()
    assert len({code for code, _ in table}) == len(table) == len({what for _, what in table})


def test_every_error_has_a_code_of_the_table() -> None:
    known = {code for code, _ in exits.table()}
    kinds: list[Any] = [SessiondError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        assert exits.exit_code(kind("x")) in known - {exits.OK, exits.USAGE, exits.INTERRUPTED}
