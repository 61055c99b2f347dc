"""Rows for a journal, chained as the journal writer does it."""

from __future__ import annotations

from collections.abc import Sequence

from billaged.intake.chain import rows_after
from billaged.intake.journal import Journal, JournalRow


def append(journal: Journal, rows: Sequence[JournalRow]) -> list[JournalRow]:
    """Append the rows with their chains; returns them as they are stored."""
    linked = rows_after(journal.head, [row[1:5] for row in rows])
    assert [row.sequence for row in linked] == [row.sequence for row in rows]
    journal.append(linked)
    return linked
