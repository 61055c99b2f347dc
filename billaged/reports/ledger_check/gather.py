"""Sessions and gaps, read side by side: each VM's are checked together, some VMs make a stretch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, groupby
from typing import Final

from billaged.ledger.audit_chunk import Chunk
from billaged.ledger.audit_reader import AuditReader, VmRange
from billaged.ledger.views import Subject
from billaged.reports.ledger_check import invariants as law
from billaged.reports.ledger_check.bucket_check import Advance
from billaged.reports.ledger_check.findings import Findings
from billaged.reports.ledger_check.rows import GapRow, SessionRow
from billaged.reports.ledger_check.sessions import check_vm, key_of
from billaged.reports.ledger_check.stretch import Gathering, Stretch

# How many sessions are in memory at a time: some 100 MB. Facts are read once for so many.
WEIGHT_MAX: Final = 250_000


class Gatherer:
    """``samples`` is how many all sessions have, once all have been read."""

    def __init__(
        self, reader: AuditReader, subject: Subject, findings: Findings, advance: Advance, weight_max: int = WEIGHT_MAX
    ) -> None:
        self.samples = 0
        self._reader = reader
        self._subject = subject
        self._findings = findings
        self._advance = advance
        self._weight_max = weight_max
        self._customer_codes: dict[str, int] = {}
        self._damaged: dict[str, set[int]] = defaultdict(set)

    def stretches(self) -> Iterator[Stretch]:
        """At least one, and together all VMs."""
        gaps = _Ahead(map(GapRow._make, self._rows(self._reader.gaps(self._subject))))
        sessions = map(SessionRow._make, self._rows(self._reader.sessions(self._subject)))
        after: str | None = None
        gathering = Gathering(self._customer_codes, self._damaged)
        for vm_id, group in groupby(sessions, key=lambda session: session.vm_id):
            for gap in gaps.before(vm_id):
                self._stray(gap)
            its_sessions, its_gaps = list(group), list(gaps.of(vm_id))
            self.samples += sum(session.samples for session in its_sessions)
            damaged = self._damaged.get(vm_id, set())
            check_vm(its_sessions, its_gaps, damaged, self._reader.position.sequence, self._findings)
            gathering.add(vm_id, its_sessions, its_gaps)
            if gathering.weight >= self._weight_max:
                yield Stretch(gathering, VmRange(after, vm_id))
                after = vm_id
                gathering = Gathering(self._customer_codes, self._damaged)
        for gap in gaps.rest():
            self._stray(gap)
        yield Stretch(gathering, VmRange(after, None))

    def _rows(self, chunks: Iterator[Chunk]) -> Iterator[tuple[object, ...]]:
        return chain.from_iterable(map(self._take, chunks))

    def _take(self, chunk: Chunk) -> Iterator[tuple[object, ...]]:
        # What they are held against is counted VM by VM.
        self._findings.take(chunk)
        self._advance(len(chunk.rows) + len(chunk.damaged))
        for damaged in chunk.damaged:
            if damaged.table == "sessions":
                self._damaged[damaged.key["vm_id"]].add(damaged.key["ordinal"])
        return iter(chunk.rows)

    def _stray(self, gap: GapRow) -> None:
        self._findings.hold(1, law.VALUES, law.REFERENCES)
        if gap.ordinal not in self._damaged.get(gap.vm_id, ()):
            self._findings.broke(law.REFERENCES, "gaps", key_of(gap), "there is no such session")


class _Ahead:
    """Gaps in the order of their VMs, with a look at the next one."""

    def __init__(self, gaps: Iterator[GapRow]) -> None:
        self._gaps = gaps
        self._next = next(gaps, None)

    def before(self, vm_id: str) -> Iterator[GapRow]:
        while (gap := self._next) is not None and gap.vm_id < vm_id:
            self._next = next(self._gaps, None)
            yield gap

    def of(self, vm_id: str) -> Iterator[GapRow]:
        while (gap := self._next) is not None and gap.vm_id == vm_id:
            self._next = next(self._gaps, None)
            yield gap

    def rest(self) -> Iterator[GapRow]:
        while (gap := self._next) is not None:
            self._next = next(self._gaps, None)
            yield gap
