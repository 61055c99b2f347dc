"""All facts and corrections of a stretch of sessions, and what they sum to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, groupby, islice
from typing import Any, Final

import numpy as np

from billaged.aggregator.changes import CORRECTION_COLUMNS, FACT_COLUMNS
from billaged.ledger.audit_chunk import Chunk
from billaged.ledger.audit_reader import AuditReader
from billaged.ledger.views import Subject
from billaged.model.quantity import MemoryTime
from billaged.model.records import COUNTER_FIELDS
from billaged.model.time import INT64_MAX
from billaged.reports.ledger_check import invariants as law
from billaged.reports.ledger_check import words
from billaged.reports.ledger_check.bucket_judge import BucketJudge, key_of, sum_of
from billaged.reports.ledger_check.buckets import BucketColumns, adds_up, bucket_columns, in_place
from billaged.reports.ledger_check.findings import Findings
from billaged.reports.ledger_check.rows import SUMMED, BucketRow
from billaged.reports.ledger_check.stretch import Stretch
from billaged.reports.ledger_check.totals import Totals

_ROW: Final = slice(1, 1 + len(FACT_COLUMNS))
_CAUSE: Final = len(CORRECTION_COLUMNS) - 1
_WHOLES: Final = 4_096

# Told how many more rows were looked at.
Advance = Callable[[int], None]


class BucketCheck:
    """``run`` once."""

    def __init__(
        self, reader: AuditReader, subject: Subject, stretch: Stretch, findings: Findings, advance: Advance
    ) -> None:
        self._reader = reader
        self._subject = subject
        self._stretch = stretch
        self._findings = findings
        self._advance = advance
        self._judge = BucketJudge(reader, stretch, findings)
        self._totals = Totals(len(stretch))

    def run(self) -> None:
        for chunk in self._reader.rows("facts", self._subject, self._stretch.vms):
            self._facts(chunk)
        wholes = self._corrected_buckets()
        while some := list(islice(wholes, _WHOLES)):
            self._check_corrected(some)
        self._check_sums()

    def _facts(self, chunk: Chunk) -> None:
        self._take_note(chunk, law.VALUES, law.STOP, law.BUCKETS, law.MEMORY, law.OWNER, law.REFERENCES)
        if not chunk.rows:
            return
        columns = bucket_columns(chunk.columns, self._stretch)
        self._add(columns)
        for index in np.flatnonzero(~adds_up(columns, self._stretch)).tolist():
            row = BucketRow(*chunk.rows[index])
            if self._judge.row("facts", row, key_of(row)) and not self._is_corrected(row):
                self._judge.bucket("facts", row, key_of(row))

    def _is_corrected(self, fact: BucketRow) -> bool:
        """Then it is judged together with its corrections."""
        start_ns = fact.bucket_start_ns
        found = self._reader.bucket_rows("corrections", fact.vm_id, fact.ordinal, start_ns, start_ns + 1)
        return any(row[:2] == fact[:2] for row in found)

    def _corrected_buckets(self) -> Iterator[BucketRow]:
        """Each bucket with a correction, all added up."""
        rows = chain.from_iterable(map(self._corrections, self._reader.corrections(self._subject, self._stretch.vms)))
        for _, group in groupby(rows, key=lambda row: row[1:5]):
            same = list(group)
            summands = [BucketRow(*row[_ROW]) for row in same]
            fact = same[0][len(CORRECTION_COLUMNS) :]
            if fact[0] is not None:
                # Its own customer is looked at where facts are.
                summands.append(BucketRow(*summands[0][:5], *fact))
            if all(isinstance(value, int) for value in fact if value is not None):
                yield sum_of(summands)

    def _corrections(self, chunk: Chunk) -> Any:
        """A chunk's rows, once each has been looked at by itself."""
        self._take_note(chunk, law.VALUES, law.STOP, law.BUCKETS, law.MEMORY, law.OWNER, law.REFERENCES)
        if not chunk.rows:
            return ()
        columns = bucket_columns(chunk.columns[_ROW], self._stretch)
        self._add(columns)
        right = in_place(columns, self._stretch)
        position = self._reader.position.sequence
        for index, row in enumerate(chunk.rows):
            sequence, cause = row[0], row[_CAUSE]
            parts = cause.split("+")
            well = 1 <= sequence <= position and parts == sorted(words.CAUSES.intersection(parts))
            if well and right[index]:
                continue
            bucket = BucketRow(*row[_ROW])
            key = {"sequence": sequence, **key_of(bucket)}
            if not 1 <= sequence <= position:
                problem = f"it names journal row {sequence}, but the ledger has come to {position}"
                self._findings.broke(law.REFERENCES, "corrections", key, problem)
            if parts != sorted(words.CAUSES.intersection(parts)):
                self._findings.broke(law.VALUES, "corrections", key, f"cause is {cause!r}")
            if not right[index]:
                self._judge.row("corrections", bucket, key)
        return chunk.rows

    def _check_corrected(self, wholes: list[BucketRow]) -> None:
        fitting = [whole for whole in wholes if all(abs(getattr(whole, name)) <= INT64_MAX for name in SUMMED)]
        odd = [whole for whole in wholes if whole not in fitting] if len(fitting) < len(wholes) else []
        if fitting:
            columns = bucket_columns(list(zip(*fitting, strict=True)), self._stretch)
            odd += [fitting[index] for index in np.flatnonzero(~adds_up(columns, self._stretch)).tolist()]
        for whole in odd:
            self._judge.whole(whole)

    def _add(self, columns: BucketColumns) -> None:
        known = columns.slots >= 0
        values = columns.values
        if known.all():
            self._totals.add(columns.slots, values, columns.peak)
        else:
            self._totals.add(columns.slots[known], [value[known] for value in values], columns.peak[known])

    def _take_note(self, chunk: Chunk, *invariants: str) -> None:
        self._findings.take(chunk, *invariants)
        self._advance(len(chunk.rows) + len(chunk.damaged))

    def _check_sums(self) -> None:
        stretch = self._stretch
        expected = [values.tolist() for values in stretch.expected]
        peaks = stretch.peak.tolist()
        for slot, (vm_id, ordinal) in enumerate(zip(stretch.vm_ids, stretch.ordinal.tolist(), strict=True)):
            got = dict(zip(SUMMED, self._totals.of(slot), strict=True)) | {"peak": int(self._totals.peak[slot])}
            wanted = {name: values[slot] for name, values in zip(SUMMED, expected, strict=True)} | {"peak": peaks[slot]}
            for sums in (got, wanted):
                pair = MemoryTime(sums.pop("memory_mib_seconds"), sums.pop("memory_rest_byte_nanos"))
                sums["memory_byte_nanos"] = pair.byte_nanos
            for name, value in wanted.items():
                if got[name] == value:
                    continue
                less = " less its gaps'" if name in COUNTER_FIELDS else ""
                problem = f"{name}{less} is {value}, but facts and corrections sum to {got[name]}"
                if name == "peak":
                    problem = f"its peak is {value}, but the highest of its facts and corrections {got[name]}"
                self._findings.broke(law.SUMS, "sessions", {"vm_id": vm_id, "ordinal": ordinal}, problem)
