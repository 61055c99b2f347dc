"""A bill: the canonical dump of all derived tables, as plain tuples, each table sorted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from auditor import invariants
from auditor.books import Books
from auditor.columns import COLUMNS
from auditor.invariants import Named, Row, Tables
from auditor.session import Session
from auditor.usage import Usage


@dataclass(frozen=True)
class Bill:
    """Wrap any dump of these tables to check it: ``Bill(dump).check()``."""

    tables: Tables

    @classmethod
    def of(
        cls,
        books: Books,
        sessions: Mapping[str, Sequence[Session]],
        instances: Mapping[str, tuple[int, str]],
        reported_gaps: Sequence[tuple[int, str, int, int]],
    ) -> Bill:
        tables: Tables = {
            "sessions": [_session_row(session) for lives in sessions.values() for session in lives],
            "facts": [(*key, *_quantities(usage)) for key, usage in books.facts.items()],
            "corrections": [
                (sequence, *key, *_quantities(usage)) for (sequence, key), usage in books.corrections.items()
            ],
            "gaps": [
                (*key, gap.end_ns, gap.kind, gap.customer_id, *gap.counters, gap.sequence)
                for key, gap in books.gaps.items()
            ],
            "anomalies": [tuple(anomaly) for anomaly in books.anomalies],
            "dead_letters": list(books.dead_letters),
            "instances": [(instance_id, *seen) for instance_id, seen in instances.items()],
            "reported_gaps": list(reported_gaps),
            "tallies": [(name, value) for name, value in books.tallies.items() if value > 0],
        }
        return cls({name: sorted(rows) for name, rows in tables.items()})

    def dump(self) -> Tables:
        return {name: list(rows) for name, rows in self.tables.items()}

    def rows(self, table: str) -> list[Named]:
        """A table's rows by column name."""
        return list(invariants.named(self.tables, table))

    def differences(self, other: Mapping[str, Sequence[Row]]) -> list[str]:
        """Where another dump says otherwise, a line for each row; none where the two are equal."""
        lines = []
        for name in COLUMNS:
            audited, instead = Counter(self.tables[name]), Counter(tuple(row) for row in other.get(name, ()))
            for word, rows in (("audited", audited - instead), ("instead", instead - audited)):
                lines += [f"{name} {word} {row}" for row in sorted(rows.elements(), key=repr)]
        return lines

    def check(self) -> None:
        """Hold the invariants (``auditor.invariants``).

        Raises:
            AuditError: one is broken; the message names the row.
        """
        invariants.check(self.tables)


def _quantities(usage: Usage) -> Row:
    return (*usage.counters, *usage.memory_columns, usage.measured_ns, usage.samples, usage.memory_peak_bytes)


def _session_row(session: Session) -> Row:
    totals = session.totals
    return (
        session.vm_id,
        session.ordinal,
        session.customer_id,
        session.start_ns,
        int(session.explicit),
        session.last_ns,
        session.end_ns,
        session.end_kind,
        *totals.counters,
        *totals.memory_columns,
        totals.measured_ns,
        session.gap_ns,
        totals.samples,
        totals.memory_peak_bytes,
    )
