"""Reading all of a journal: is every row as it was written?"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from sessiond.journal.connection import COLUMNS, Connection
from sessiond.journal.index import Index
from sessiond.journal.record import (
    Identity,
    Row,
    decode_operations,
    identity_and_sequence,
    unsealed,
)

_FAULTS_TOLD = 20


class Contents(Struct, frozen=True):
    """What lies in a journal, and what is wrong with it."""

    index: Index
    entries: int
    faults: list[str]


def read_contents(connection: Connection) -> Contents:
    """Read everything.

    Raises:
        sqlite3.Error: SQLite cannot.
    """
    faults: list[str] = []
    identities = [Identity(*columns) for columns in _rows(connection, "identities", faults)]
    if not identities:
        return Contents(Index([Identity(0, "", 0, "")]), 0, [*faults, "nobody's identity is there"])
    index, entries = Index(identities), 0
    names = {identity.number: identity.incarnation for identity in identities}
    confirmed = {columns[0] for columns in _rows(connection, "confirmed", faults)}
    for number, incarnation, session_id, key, _, body in _rows(connection, "entries", faults):
        if names.get(identity_and_sequence(number)[0]) != incarnation:
            faults.append(f"entry {number} was written by an unknown identity")
            continue
        entries += 1
        index.add(number, session_id, key, len(decode_operations(body)), len(body))
        if number in confirmed:
            index.confirm(len(body))
    found = [row[0] for row in connection.execute(f"PRAGMA quick_check({_FAULTS_TOLD})")]
    faults += [f"SQLite: {line}" for line in found if line != "ok"]
    return Contents(index, entries, faults[:_FAULTS_TOLD])


def _rows(connection: Connection, table: str, faults: list[str]) -> Iterator[Row]:
    """Return the intact rows of a table in order, without their seals."""
    names = ", ".join(column.split()[0] for column in COLUMNS[table].split(", "))
    query = f"SELECT {names}, seal FROM {table} ORDER BY number"  # noqa: S608 - constants
    for row in connection.execute(query):
        columns = unsealed(table, row)
        if columns is None:
            faults.append(f"the seal of row {row[0]} in {table} is broken")
        else:
            yield columns
