"""A bill: the canonical dump of all derived tables, as plain tuples, each table sorted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from auditor import invariants
from auditor.books import Books
from auditor.columns import COLUMNS, KEY_LENGTHS
from auditor.hearing import Hearing
from auditor.invariants import Named, Row, Tables
from auditor.text import canonical_json
from auditor.usage import Usage
from auditor.vm import Session


@dataclass(frozen=True)
class Bill:
    """Wrap any dump of these tables to check it: ``Bill(dump).check()``."""

    tables: Tables

    @classmethod
    def of(
        cls,
        books: Books,
        sessions: Mapping[str, Mapping[int, Session]],
        hearing: Hearing,
        reported_gaps: Sequence[tuple[int, str, int, int]],
    ) -> Bill:
        tables: Tables = {
            "sessions": [
                _session_row(books, vm_id, ordinal, session)
                for vm_id, numbered in sessions.items()
                for ordinal, session in numbered.items()
            ],
            "facts": [(*key, *_quantities(usage)) for key, usage in books.facts.items()],
            "corrections": [
                (sequence, *key, *_quantities(usage), "+".join(sorted(books.causes[sequence, key])))
                for (sequence, key), usage in books.corrections.items()
            ],
            "gaps": [
                (*key, gap.end_ns, gap.kind, gap.customer_id, *gap.counters, gap.sequence)
                for key, gap in books.gaps.items()
            ],
            "anomalies": [tuple(anomaly) for anomaly in books.anomalies],
            "dead_letters": list(books.dead_letters),
            "instances": [
                (key, each.last_seen_ns, canonical_json(each.vm_ids), each.heard_seconds, int(each.silent))
                for key, each in hearing.instances.items()
            ],
            "silences": [(*key, silence.end_ns, silence.sequence) for key, silence in hearing.silences.items()],
            "reported_gaps": list(reported_gaps),
            "tallies": [(name, value) for name, value in books.tallies.items() if value > 0],
        }
        return cls({name: sorted(rows, key=lambda row: row[: KEY_LENGTHS[name]]) for name, rows in tables.items()})

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


def _session_row(books: Books, vm_id: str, ordinal: int, session: Session) -> Row:
    totals, life = books.totals.get((vm_id, ordinal), Usage()), session.life
    return (
        vm_id,
        ordinal,
        session.customer_id,
        life.start_ns,
        int(life.explicit),
        life.last_ns,
        life.end_ns,
        life.end_kind,
        *totals.counters,
        *totals.memory_columns,
        totals.measured_ns,
        books.gap_ns[vm_id, ordinal],
        totals.samples,
        totals.memory_peak_bytes,
    )
