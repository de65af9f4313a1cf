"""This machine's durable outbox: what is written here is `journaled`, and sent until Redis has it.

The only importer of sqlite3 beside `opencode.database`. Pure: `record`, `carving`.
"""

from sessiond.journal.journal import Journal
from sessiond.journal.options import JournalOptions
from sessiond.journal.record import Entry, Span
from sessiond.journal.reports import Recovery, Status, Verdict

__all__ = ["Entry", "Journal", "JournalOptions", "Recovery", "Span", "Status", "Verdict"]
