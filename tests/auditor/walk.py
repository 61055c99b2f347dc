"""The walk over one instant: each method below is a row of the document's first table."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from auditor.billed import Amounts, Billed, Record
from auditor.events import COUNTER_NAMES, SECOND_NS, Rules, Sample
from auditor.instant import Instant
from auditor.state import Life, Span, State
from auditor.text import canonical_json
from auditor.usage import NOTHING


class Walked(NamedTuple):
    after: State
    billed: Billed


def walk(before: State, instant: Instant, implicit_ordinal: int, customer_id: str) -> Walked:
    """Over all points of an instant of this customer's. ``implicit_ordinal`` is for a sample that opens a session."""
    walker = _Walker(before, instant, implicit_ordinal, instant.rules.for_customer(customer_id))
    acts = {"start": walker.start, "sample": walker.sample, "stop": walker.stop}
    for sort in instant.order(running=before.running):
        acts[sort]()
    return Walked(walker.state, walker.billed)


class _Walker:
    def __init__(self, before: State, instant: Instant, implicit_ordinal: int, rules: Rules) -> None:
        self.state = before
        self.billed = Billed()
        self._instant = instant
        self._implicit_ordinal = implicit_ordinal
        self._rules = rules

    def start(self) -> None:
        life, t = self.state.life, self._instant.time_ns
        if life is not None and life.end_ns is None:
            self._record("missed_stop", t, {"end_ns": life.last_ns})
            self._live(life._replace(end_ns=life.last_ns, end_kind="missed_stop"))
        if self._instant.start_ordinal is None:
            raise ValueError("an instant without a start")
        self.state = State(self.state.meters, self._instant.start_ordinal)
        self._live(Life(t, True, t))

    def sample(self) -> None:
        sample, life = self._instant.sample, self.state.life
        if sample is None:
            raise ValueError("an instant without a sample")
        if life is None:
            self.state = replace(self.state, ordinal=self._implicit_ordinal)
            self._accept(sample, Life(sample.time_ns, False, sample.time_ns), first=False)
            return
        if life.end_ns is not None:
            self._contradict(life, life.end_ns, sample)
            life = life._replace(end_ns=None, end_kind=None)
        self._step(life, sample)

    def stop(self) -> None:
        life, t, newest = self.state.life, self._instant.time_ns, self.state.newest
        if life is None:
            self._record("unknown_stop", t, {})
        elif life.end_ns is not None:
            self._record("extra_stop", t, {"end_ns": life.end_ns})
        else:
            tail = Span(life.last_ns, t, None if newest is None else newest.memory_bytes, self._rules)
            self.billed.span(self.state.ordinal, tail, NOTHING, "stop")
            self.state = replace(self.state, tail=tail)
            self._live(life._replace(end_ns=t, end_kind="stop"))

    def _contradict(self, life: Life, end_ns: int, sample: Sample) -> None:
        if self.state.tail is None:
            raise ValueError("a stop without a tail")
        self.billed.take_back(self.state.ordinal, self.state.tail)
        self.billed.notable.add("contradicted")
        self._record("contradicted_stop", end_ns, {"sample_ns": sample.time_ns})
        self.state = replace(self.state, tail=None)

    def _step(self, life: Life, sample: Sample) -> None:
        """From the newest sample, or from the start, to this one."""
        pairs = list(zip(self.state.meters, sample.counters, strict=True))
        newest = self.state.newest
        first = newest is None
        if first:
            amounts = tuple(meter.first_amount(value) for meter, value in pairs)
        else:
            fallen = {
                name: [meter.last, value]
                for name, (meter, value) in zip(COUNTER_NAMES, pairs, strict=True)
                if meter.falls(value)
            }
            if fallen:
                self._record("counter_reset", sample.time_ns, {"counters": fallen})
            amounts = tuple(meter.ordinary_amount(value) for meter, value in pairs)
        memory_bytes = None if newest is None else newest.memory_bytes
        span = Span(life.last_ns, sample.time_ns, memory_bytes, self._rules)
        self.billed.span(self.state.ordinal, span, self._capped(span, amounts), "start" if first else "step")
        self._accept(sample, life._replace(last_ns=sample.time_ns), first=first)

    def _capped(self, span: Span, amounts: Amounts) -> Amounts:
        """The amounts, or nothing where no machine could have run them in that time and a second."""
        step_ns = span.to_ns - span.from_ns
        cpu_limit = span.rules.max_cores * (step_ns + SECOND_NS)
        byte_limit = span.rules.max_gigabytes_per_second * (step_ns + SECOND_NS)
        if amounts[0] <= cpu_limit and all(amount <= byte_limit for amount in amounts[1:]):
            return amounts
        self.billed.notable.add("implausible")
        self._record("implausible", span.to_ns, {"amounts": list(amounts), "step_ns": step_ns})
        return NOTHING

    def _accept(self, sample: Sample, life: Life, *, first: bool) -> None:
        pairs = list(zip(self.state.meters, sample.counters, strict=True))
        if any(meter.falls(value) for meter, value in pairs):
            self.billed.notable.add("decrease")
        if any(meter.passes(value) for meter, value in pairs):
            self.billed.notable.add("passed")
        meters = tuple(meter.after_first(value) if first else meter.after(value) for meter, value in pairs)
        self.state = replace(self.state, meters=meters, newest=sample)
        self._live(life)
        self.billed.count(self.state.ordinal, sample, self._rules)

    def _live(self, life: Life) -> None:
        self.state = replace(self.state, life=life)
        self.billed.lives[self.state.ordinal] = life

    def _record(self, kind: str, at_ns: int, detail: dict[str, object]) -> None:
        ordinal = 0 if self.state.life is None else self.state.ordinal
        self.billed.records.append(Record(kind, ordinal, at_ns, canonical_json(detail)))
