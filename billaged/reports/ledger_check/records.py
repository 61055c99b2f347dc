"""What stands beside the usage: anomalies, silences, dead letters, hosts, and the tallies of it all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

from billaged.aggregator.changes import ANOMALY_COLUMNS
from billaged.aggregator.packing import unpack
from billaged.ledger.audit_chunk import Chunk
from billaged.ledger.audit_reader import AuditReader
from billaged.ledger.views import Subject
from billaged.model.errors import StorageError
from billaged.model.records import Kind
from billaged.model.time import NANOS
from billaged.reports.ledger_check import invariants as law
from billaged.reports.ledger_check import words
from billaged.reports.ledger_check.bucket_check import Advance
from billaged.reports.ledger_check.findings import Findings, Key
from billaged.reports.ledger_check.stretch import Stretch

_ANOMALY_KEY: Final = ANOMALY_COLUMNS[:5]
_KINDS: Final = frozenset(kind.name.lower() for kind in Kind)


class RecordCheck:
    """``counted`` is what the tallies have to be, as far as rows say it."""

    def __init__(self, reader: AuditReader, subject: Subject, findings: Findings, advance: Advance) -> None:
        self._reader = reader
        self._subject = subject
        self._findings = findings
        self._advance = advance
        self.counted: Counter[str] = Counter()

    def anomalies(self, stretch: Stretch) -> None:
        """Those of a stretch's VMs."""
        for chunk in self._take(self._reader.rows("anomalies", self._subject, stretch.vms), law.REFERENCES):
            for sequence, item, kind, vm_id, at_ns, ordinal, detail in chunk.rows:
                key = dict(zip(_ANOMALY_KEY, (sequence, item, kind, vm_id, at_ns), strict=True))
                self._sequence("anomalies", key, sequence)
                if kind in ("late", "conflict"):
                    self.counted["late" if kind == "late" else "conflicts"] += 1
                if ordinal and stretch.slot(vm_id, ordinal) < 0 and not stretch.is_damaged(vm_id, ordinal):
                    self._findings.broke(law.REFERENCES, "anomalies", key, f"the VM has no session {ordinal}")
                if kind not in words.ANOMALY_KINDS or item < 0 or not _is_object(detail):
                    problem = f"kind is {kind!r}, item {item}, detail {detail!r}"
                    self._findings.broke(law.VALUES, "anomalies", key, problem)

    def kept_instants(self, stretch: Stretch) -> None:
        """What a late point of a stretch's VMs would be put beside."""
        for chunk in self._take(self._reader.rows("kept_instants", self._subject, stretch.vms), law.REFERENCES):
            for vm_id, timeline, time_ns, content in chunk.rows:
                key = {"vm_id": vm_id, "timeline": timeline, "time_ns": time_ns}
                try:
                    ordinals = unpack(time_ns, content).ordinals()
                except StorageError:
                    self._findings.broke(law.VALUES, "kept_instants", key, f"content is {content.hex()}")
                    continue
                for ordinal in sorted(ordinals):
                    if ordinal and stretch.slot(vm_id, ordinal) < 0 and not stretch.is_damaged(vm_id, ordinal):
                        self._findings.broke(law.REFERENCES, "kept_instants", key, f"the VM has no session {ordinal}")

    def silences(self) -> None:
        for chunk in self._take(self._reader.silences(self._subject), law.SILENCES, law.REFERENCES):
            for vm_id, start_ns, reason, end_ns, sequence, end_kind, last_ns in chunk.rows:
                key = {"vm_id": vm_id, "start_ns": start_ns, "reason": reason}
                self._sequence("silences", key, sequence)
                if reason not in words.SILENCE_REASONS or (reason == "billaged_down") != (vm_id == ""):
                    self._findings.broke(law.VALUES, "silences", key, "no such VM is silent for this reason")
                if vm_id and last_ns is None:
                    self._findings.broke(law.REFERENCES, "silences", key, "the VM has no session")
                for problem in _silence_problems(vm_id, start_ns, end_ns, end_kind, last_ns):
                    self._findings.broke(law.SILENCES, "silences", key, problem)

    def of_the_whole(self) -> None:
        """What is no VM's."""
        for chunk in self._take(self._reader.rows("dead_letters", self._subject), law.REFERENCES):
            for sequence, kind, reason, _, _ in chunk.rows:
                key = {"sequence": sequence}
                self._sequence("dead_letters", key, sequence)
                if kind not in _KINDS or reason not in words.DEAD_LETTER_REASONS:
                    self._findings.broke(law.VALUES, "dead_letters", key, f"kind is {kind!r}, reason {reason!r}")
        for chunk in self._take(self._reader.rows("instances", self._subject)):
            for instance_id, _, active_vms, heard_seconds, silent in chunk.rows:
                key = {"instance_id": instance_id}
                if not _is_list_of_ids(active_vms):
                    self._findings.broke(law.VALUES, "instances", key, f"active_vms is {active_vms[:200]!r}")
                if silent not in (0, 1) or not 0 <= heard_seconds <= self._reader.passed_ns // NANOS:
                    problem = (
                        f"silent is {silent}, heard_seconds {heard_seconds} of {self._reader.passed_ns} ns of ticks"
                    )
                    self._findings.broke(law.VALUES, "instances", key, problem)

    def reported_gaps(self) -> None:
        for chunk in self._take(self._reader.rows("reported_gaps", self._subject), law.REFERENCES):
            self.counted["possible_gaps"] += len(chunk.rows) + len(chunk.damaged)
            for row in chunk.rows:
                self._sequence("reported_gaps", {"sequence": row[0]}, row[0])

    def tallies(self) -> None:
        self.counted["dead_letters"] = self._reader.count("dead_letters", self._subject)
        found: dict[str, int] = {}
        for chunk in self._take(self._reader.rows("tallies", self._subject), law.TALLIES):
            for name, value in chunk.rows:
                found[name] = value
                if name not in words.TALLIES:
                    self._findings.broke(law.VALUES, "tallies", {"name": name}, "nothing is counted under this name")
                if value < 0:
                    self._findings.broke(law.TALLIES, "tallies", {"name": name}, f"it is negative: {value}")
        for name, count in sorted(self.counted.items()):
            if found.get(name, 0) != count:
                problem = f"it is {found.get(name, 0)}, but the rows make {count}"
                self._findings.broke(law.TALLIES, "tallies", {"name": name}, problem)

    def _take(self, chunks: Iterator[Chunk], *invariants: str) -> Iterator[Chunk]:
        for chunk in chunks:
            self._findings.take(chunk, law.VALUES, *invariants)
            self._advance(len(chunk.rows) + len(chunk.damaged))
            yield chunk

    def _sequence(self, table: str, key: Key, sequence: int) -> None:
        position = self._reader.position.sequence
        if not 1 <= sequence <= position:
            problem = f"it names journal row {sequence}, but the ledger has come to {position}"
            self._findings.broke(law.REFERENCES, table, key, problem)


def _silence_problems(
    vm_id: str, start_ns: int, end_ns: int | None, end_kind: str | None, last_ns: int | None
) -> Iterator[str]:
    """``end_kind`` and ``last_ns`` are those of the VM's newest session."""
    if end_ns is not None:
        if end_ns < start_ns:
            yield f"it ends at {end_ns}, before it starts"
    elif not vm_id:
        yield "one of all VMs is open"
    elif last_ns is None:
        # Said already, of any silence.
        return
    elif end_kind not in (None, "vanished"):
        yield f"it is open, but the VM's session has ended ({end_kind})"
    elif start_ns != last_ns:
        yield f"it is open, but the VM's newest sample is that of {last_ns}"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _is_object(text: str) -> bool:
    return isinstance(_parsed(text), dict)


def _is_list_of_ids(text: str) -> bool:
    ids = _parsed(text)
    if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
        return False
    return all(before < after for before, after in pairwise(ids))
