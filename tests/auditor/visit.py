"""A visit: what one record does to one VM, on a copy of it and in a draft, so that it can be all or nothing."""

from __future__ import annotations

from auditor.draft import Draft
from auditor.events import Batch, Rules, Sample, Started, Stopped
from auditor.instant import Point
from auditor.timeline import Put
from auditor.vm import Session, Vm

_CAUSES = {"sample": "backfill", "start": "start", "stop": "stop"}


class DeadLetterError(Exception):
    """The record cannot be placed; the message is the reason."""


class Visit:
    def __init__(self, vm: Vm, draft: Draft, rules: Rules, latest_ns: int | None) -> None:
        self.vm = vm
        self.draft = draft
        self._rules = rules
        self._latest_ns = latest_ns

    def batch(self, batch: Batch) -> None:
        """Raises DeadLetterError where it is another customer's and no timeline begins there."""
        samples = sorted((Sample(*row) for row in batch.samples), key=lambda sample: sample.time_ns)
        newest = self.vm.newest
        if newest is not None and newest.customer_id != batch.customer_id:
            if newest.life.end_ns is None or (samples and not self._is_after_all(newest, samples[0].time_ns)):
                raise DeadLetterError("wrong_owner")
            if samples:
                self.vm.begin_anew()
        for item, sample in enumerate(samples):
            self._sample(item, sample)

    def start(self, start: Started) -> None:
        """Raises DeadLetterError where another customer's session runs."""
        newest, t = self.vm.newest, start.start_ns
        if newest is not None and newest.customer_id != start.customer_id:
            if newest.life.end_ns is None:
                raise DeadLetterError("wrong_owner")
            if not self._is_after_all(newest, t):
                self._late_start(start)
                return
            self.vm.begin_anew()
        elif newest is not None and newest.life.explicit and newest.life.start_ns == t:
            self.draft.tallies["duplicate_starts"] += 1
            return
        put = self._put(0, Point("start", t))
        if put.how == "duplicate":
            self.draft.tallies["duplicate_starts"] += 1
        elif put.how == "refused":
            self._late_start(start)

    def stop(self, stop: Stopped) -> None:
        put = self._put(0, Point("stop", stop.stop_ns))
        if put.how == "duplicate":
            self.draft.tallies["duplicate_stops"] += 1
        elif put.how == "refused":
            self._refuse_stop(stop.stop_ns)

    def _sample(self, item: int, sample: Sample) -> None:
        put = self._put(item, Point("sample", sample.time_ns, sample))
        tallies = self.draft.tallies
        if put.how == "duplicate":
            tallies["duplicates"] += 1
        elif put.how in ("conflict", "refused"):
            kind, tally = ("conflict", "conflicts") if put.how == "conflict" else ("late", "late")
            tallies[tally] += 1
            self.draft.record(item, kind, self.vm.newest_ordinal, sample.time_ns, {"values": list(sample.values)})
        else:
            tallies["samples"] += 1
            tallies["backfilled"] += put.how == "inserted"

    def _put(self, item: int, point: Point) -> Put:
        vm, before = self.vm, self.vm.timeline.state
        vm.timeline.customer_id = self.draft.customer_id
        put = vm.timeline.put(point, self._rules, self._latest_ns, vm.free_ordinal)
        if put.is_newest:
            if vm.vanished and before.life is not None and point.sort == "sample":
                detail: dict[str, object] = {"sample_ns": point.time_ns}
                self.draft.record(item, "returned", before.ordinal, before.life.last_ns, detail)
            vm.vanished = vm.silent = False
            if self.draft.spoken_ns is None:
                self.draft.spoken_ns = point.time_ns
        if put.how in ("appended", "inserted"):
            self.draft.change(item, put.change, "step" if put.how == "appended" else _CAUSES[point.sort])
            vm.live(put, self.draft.customer_id)
        return put

    def _is_after_all(self, newest: Session, t: int) -> bool:
        newest_ns = self.vm.timeline.newest_ns
        return t >= max(time_ns for time_ns in (newest.life.end_ns, newest_ns) if time_ns is not None)

    def _late_start(self, start: Started) -> None:
        detail: dict[str, object] = {"customer_id": start.customer_id}
        self.draft.record(0, "late_start", self.vm.newest_ordinal, start.start_ns, detail)

    def _refuse_stop(self, t: int) -> None:
        state = self.vm.timeline.state
        if state.life is not None and state.newest is not None and state.life.start_ns <= t < state.newest.time_ns:
            detail: dict[str, object] = {"sample_ns": state.newest.time_ns}
            self.draft.record(0, "contradicted_stop", state.ordinal, t, detail)
        else:
            self.draft.record(0, "late_stop", state.ordinal, t, {})
