"""Why a span was not measured: the reasons of the silences that overlap it, and what senders said."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from itertools import accumulate
from typing import Final

from billaged.ledger.reader import LedgerReader
from billaged.ledger.views import Span, Subject
from billaged.model.time import INT64_MAX

NO_SAMPLES: Final = "no_samples"
REPORTED: Final = "reported"
# In the order in which they are told: what is known best comes first.
_REASONS: Final = ("silent_vm", "silent_host", "vanished", "billaged_down", REPORTED, NO_SAMPLES)
# The VM id of what is about all of them.
_ALL_VMS: Final = ""


class _Spans:
    """Spans in which one looks for an overlap."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []
        self._latest: list[int] | None = None

    def add(self, start_ns: int, end_ns: int) -> None:
        self._spans.append((start_ns, end_ns))
        self._latest = None

    def overlap(self, start_ns: int, end_ns: int) -> bool:
        if self._latest is None:
            self._spans.sort()
            # The latest end of all that start no later, so that one look finds an overlap.
            self._latest = list(accumulate((end for _, end in self._spans), max))
        before = bisect_left(self._spans, (end_ns,))
        return before > 0 and self._latest[before - 1] > start_ns


class Reasons:
    """The reasons for any span inside the hull that it was made for."""

    def __init__(self, reader: LedgerReader, subject: Subject, hull: Span) -> None:
        self._known: dict[tuple[str, str], _Spans] = defaultdict(_Spans)
        # VMs with a silence that no point has ended.
        self.silent_vms: set[str] = set()
        for silence in reader.silences(subject, hull):
            end_ns = INT64_MAX if silence.end_ns is None else silence.end_ns
            if end_ns > silence.start_ns:
                self._known[silence.vm_id, silence.reason].add(silence.start_ns, end_ns)
            if silence.end_ns is None:
                self.silent_vms.add(silence.vm_id)
        for said in reader.reported_gaps(subject._replace(customer_id=None), hull):
            self._known[said.vm_id, REPORTED].add(said.last_sent_ns, said.resume_ns)

    def of(self, vm_id: str, start_ns: int, end_ns: int | None) -> tuple[str, ...]:
        """Never none; ``no_samples`` where nothing is known. A span without an end is open."""
        end_ns = INT64_MAX if end_ns is None else end_ns
        found = tuple(
            reason
            for reason in _REASONS
            if any(
                (spans := self._known.get((whose, reason))) is not None and spans.overlap(start_ns, end_ns)
                for whose in (vm_id, _ALL_VMS)
            )
        )
        return found or (NO_SAMPLES,)
