"""The biller: docs/billing-semantics.md, read aloud. Each branch below is a row of its tables."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

from auditor.bill import Bill
from auditor.books import Books, canonical_json
from auditor.buckets import bucket_of
from auditor.events import (
    COUNTER_NAMES,
    SECOND_NS,
    Batch,
    Event,
    Heartbeat,
    PossibleGap,
    Rules,
    Sample,
    Started,
    Stopped,
    Tick,
)
from auditor.meter import Meter
from auditor.session import Posting, Session
from auditor.usage import NOTHING, Usage

Amounts = tuple[int, ...]

TOTAL_MAX = 2**63 - 1
ORDINAL_MAX = 2**31 - 1


def bill(events: Iterable[Event]) -> Bill:
    """The bill of a whole journal."""
    biller = Biller()
    for event in events:
        biller.fold(event)
    return biller.bill()


class Biller:
    def __init__(self) -> None:
        self.rules = Rules()
        self.books = Books()
        # Each VM's sessions, oldest first; only the last one can change.
        self.sessions: dict[str, list[Session]] = {}
        # Each VM's five meters, in the order of ``COUNTER_NAMES``.
        self.meters: dict[str, list[Meter]] = {}
        # Each VM's newest sample, in whichever session.
        self.newest_samples: dict[str, Sample] = {}
        self.instances: dict[str, tuple[int, str]] = {}
        self.reported_gaps: list[tuple[int, str, int, int]] = []

    def fold(self, event: Event) -> None:
        what, tallies = event.what, self.books.tallies
        if isinstance(what, Batch):
            self._whole_or_not(event.sequence, what)
        elif isinstance(what, Started):
            tallies["starts"] += 1
            self._whole_or_not(event.sequence, what)
        elif isinstance(what, Stopped):
            tallies["stops"] += 1
            self._stop(event.sequence, what)
        elif isinstance(what, Heartbeat):
            tallies["heartbeats"] += 1
            self.instances[what.instance_id] = (event.received_ns, canonical_json(sorted(set(what.active_vms))))
        elif isinstance(what, PossibleGap):
            tallies["possible_gaps"] += 1
            self.reported_gaps.append((event.sequence, *what))
        elif isinstance(what, Tick):
            tallies["ticks"] += 1
            self.books.clock.tick(what, self.rules.bucket_ns)
        else:
            self.rules = what

    def bill(self) -> Bill:
        """The bill so far."""
        return Bill.of(self.books, self.sessions, self.instances, self.reported_gaps)

    def _whole_or_not(self, sequence: int, what: Batch | Started) -> None:
        """Fold what may bill counters; where a total grows too large for its column, nothing of it is folded."""
        before = deepcopy(self.__dict__) if self._may_overflow(what) else None
        if isinstance(what, Batch):
            self._batch(sequence, what)
        else:
            self._start(sequence, what)
        newest = self._newest(what.vm_id)
        if newest is not None and (max(newest.totals.counters) > TOTAL_MAX or newest.ordinal > ORDINAL_MAX):
            if before is None:
                raise ValueError(f"{what.vm_id}: more was billed than was sent")
            self.__dict__ = before
            self.books.bury(sequence, "metrics" if isinstance(what, Batch) else "started", "overflow")

    def _may_overflow(self, what: Batch | Started) -> bool:
        """Whether even all that it speaks of together is too much: copying everything each time would take for ever."""
        newest = self._newest(what.vm_id)
        most = max(newest.totals.counters) if newest is not None else 0
        if isinstance(what, Batch):
            most += sum(sum(Sample(*row).counters) for row in what.samples)
        elif newest is not None:
            most += sum(newest.baseline_amounts)
        return most > TOTAL_MAX or (newest is not None and newest.ordinal >= ORDINAL_MAX)

    # Samples

    def _batch(self, sequence: int, batch: Batch) -> None:
        samples = sorted((Sample(*row) for row in batch.samples), key=lambda sample: sample.time_ns)
        newest = self._newest(batch.vm_id)
        if newest is not None and newest.customer_id != batch.customer_id:
            if newest.end_ns is None or (samples and samples[0].time_ns < newest.end_ns):
                self.books.bury(sequence, "metrics", "wrong_owner")
                return
            newest = None
        if samples:
            self.books.clock.sampled(samples[-1].time_ns)
        for item, sample in enumerate(samples):
            if newest is None:
                newest = self._open(batch.vm_id, batch.customer_id, sample.time_ns, explicit=False)
                self._baseline(sequence, newest, sample)
            else:
                self._sample(sequence, item, newest, sample)

    def _baseline(self, sequence: int, session: Session, sample: Sample) -> None:
        meters = self.meters[session.vm_id]
        session.baseline_amounts = tuple(
            meter.baseline(value) for meter, value in zip(meters, sample.counters, strict=True)
        )
        self._accept(sequence, session, sample)

    def _sample(self, sequence: int, item: int, session: Session, sample: Sample) -> None:
        t = sample.time_ns
        if session.newest is None and t == session.start_ns and sample == self.newest_samples.get(session.vm_id):
            # Sent again, and since then a session has begun at that very instant.
            self.books.tallies["duplicates"] += 1
            return
        if session.newest is not None and t == session.newest.time_ns:
            if sample.values == session.newest.values:
                self.books.tallies["duplicates"] += 1
            else:
                self._set_aside(sequence, item, "conflict", session, sample)
            return
        if session.end_ns is not None:
            if t <= session.end_ns:
                self._set_aside(sequence, item, "late", session, sample)
                return
            self._record(sequence, item, "contradicted_stop", session, t, {"stop_ns": session.end_ns})
            self._take_back_stop(sequence, session)
        if t < session.last_ns:
            self._set_aside(sequence, item, "late", session, sample)
            return
        self._step(sequence, item, session, sample)

    def _step(self, sequence: int, item: int, session: Session, sample: Sample) -> None:
        """From the newest sample, or from the start, to this one. The session is running."""
        meters = self.meters[session.vm_id]
        pairs = list(zip(meters, sample.counters, strict=True))
        memory_bytes = None
        if session.newest is None:
            amounts = tuple(meter.first_step(value) for meter, value in pairs)
        else:
            memory_bytes = session.newest.memory_bytes
            fallen = {
                name: [meter.last, value]
                for name, (meter, value) in zip(COUNTER_NAMES, pairs, strict=True)
                if meter.fell(value)
            }
            if fallen:
                self._record(sequence, item, "counter_reset", session, sample.time_ns, {"counters": fallen})
            amounts = tuple(meter.ordinary_step(value) for meter, value in pairs)
        a, b = session.last_ns, sample.time_ns
        amounts = self._capped(sequence, item, session, b, amounts, b - a)
        self.books.bill_span(
            sequence, session, self.rules, a, b, amounts, memory_bytes, "start" if session.newest is None else "step"
        )
        self._accept(sequence, session, sample)

    def _accept(self, sequence: int, session: Session, sample: Sample) -> None:
        session.newest = self.newest_samples[session.vm_id] = sample
        self.books.tallies["samples"] += 1
        bucket_ns = self.rules.bucket_ns
        counted = Usage(samples=1, memory_peak_bytes=sample.memory_bytes)
        self.books.post(sequence, session, Posting(bucket_of(sample.time_ns, bucket_ns), bucket_ns, counted))

    def _set_aside(self, sequence: int, item: int, kind: str, session: Session, sample: Sample) -> None:
        self.books.tallies["conflicts" if kind == "conflict" else kind] += 1
        self._record(sequence, item, kind, session, sample.time_ns, {"values": list(sample.values)})

    # Starts and stops

    def _start(self, sequence: int, start: Started) -> None:
        newest, t = self._newest(start.vm_id), start.start_ns
        if newest is None:
            self._open(start.vm_id, start.customer_id, t, explicit=True)
        elif newest.customer_id != start.customer_id:
            if newest.end_ns is None:
                self.books.bury(sequence, "started", "wrong_owner")
            elif t >= newest.end_ns:
                self._open(start.vm_id, start.customer_id, t, explicit=True)
            else:
                self._record(sequence, 0, "late_start", newest, t, {"customer_id": start.customer_id})
        elif newest.explicit and t == newest.start_ns:
            self.books.tallies["duplicate_starts"] += 1
        elif not newest.explicit and self._end_before(newest) <= t <= newest.start_ns:
            self._make_explicit(sequence, newest, t)
        elif newest.end_ns is None and t > newest.last_ns:
            newest.end_ns, newest.end_kind = newest.last_ns, "missed_stop"
            self._record(sequence, 0, "missed_stop", newest, t, {"end_ns": newest.end_ns})
            self._open(start.vm_id, start.customer_id, t, explicit=True)
        elif newest.end_ns is not None and t >= newest.end_ns:
            self._open(start.vm_id, start.customer_id, t, explicit=True)
        else:
            self._record(sequence, 0, "late_start", newest, t, {"customer_id": start.customer_id})

    def _make_explicit(self, sequence: int, session: Session, t: int) -> None:
        first = session.start_ns
        amounts = self._capped(sequence, 0, session, t, session.baseline_amounts, first - t)
        session.explicit, session.start_ns = True, t
        self.books.bill_span(sequence, session, self.rules, t, first, amounts, None, "start")

    def _stop(self, sequence: int, stop: Stopped) -> None:
        newest, t = self._newest(stop.vm_id), stop.stop_ns
        if newest is None:
            self.books.record(sequence, 0, "unknown_stop", stop.vm_id, 0, t, {})
        elif t < newest.start_ns:
            self._record(sequence, 0, "late_stop", newest, t, {})
        elif t < newest.last_ns:
            self._record(sequence, 0, "contradicted_stop", newest, t, {"last_ns": newest.last_ns})
        elif newest.end_ns is None:
            self._end(sequence, newest, t)
        elif t == newest.end_ns:
            self.books.tallies["duplicate_stops"] += 1
        elif t > newest.end_ns:
            self._record(sequence, 0, "extra_stop", newest, t, {"end_ns": newest.end_ns})
        else:
            self._record(sequence, 0, "earlier_stop", newest, t, {"end_ns": newest.end_ns})
            self._take_back_stop(sequence, newest)
            self._end(sequence, newest, t)

    def _end(self, sequence: int, session: Session, t: int) -> None:
        memory_bytes = None if session.newest is None else session.newest.memory_bytes
        session.end_ns, session.end_kind = t, "stop"
        session.tail = self.books.bill_span(
            sequence, session, self.rules, session.last_ns, t, NOTHING, memory_bytes, "stop"
        )

    def _take_back_stop(self, sequence: int, session: Session) -> None:
        if session.tail is None:
            raise ValueError(f"{session.vm_id}: a stop without a tail")
        self.books.take_back(sequence, session, session.tail)
        session.end_ns, session.end_kind, session.tail = None, None, None

    def _capped(
        self, sequence: int, item: int, session: Session, at_ns: int, amounts: Amounts, step_ns: int
    ) -> Amounts:
        """The amounts, or nothing where no machine could have run them in that time and a second."""
        time_ns = step_ns + SECOND_NS
        byte_limit = self.rules.max_gigabytes_per_second * time_ns
        if amounts[0] <= self.rules.max_cores * time_ns and all(amount <= byte_limit for amount in amounts[1:]):
            return amounts
        detail: dict[str, object] = {"amounts": list(amounts), "step_ns": step_ns}
        self._record(sequence, item, "implausible", session, at_ns, detail)
        return NOTHING

    # Sessions

    def _end_before(self, session: Session) -> int:
        """The end of the session before this one; 0 for none."""
        if session.ordinal == 1:
            return 0
        end_ns = self.sessions[session.vm_id][session.ordinal - 2].end_ns
        if end_ns is None:
            raise ValueError("only the newest session runs")
        return end_ns

    def _newest(self, vm_id: str) -> Session | None:
        sessions = self.sessions.get(vm_id)
        return sessions[-1] if sessions else None

    def _open(self, vm_id: str, customer_id: str, start_ns: int, *, explicit: bool) -> Session:
        sessions = self.sessions.setdefault(vm_id, [])
        self.meters.setdefault(vm_id, [Meter() for _ in COUNTER_NAMES])
        sessions.append(Session(vm_id, len(sessions) + 1, customer_id, start_ns, explicit))
        return sessions[-1]

    def _record(
        self, sequence: int, item: int, kind: str, session: Session, at_ns: int, detail: dict[str, object]
    ) -> None:
        self.books.record(sequence, item, kind, session.vm_id, session.ordinal, at_ns, detail)
