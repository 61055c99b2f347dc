"""The biller: docs/billing-semantics.md, read aloud."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from auditor.bill import Bill
from auditor.books import TOTAL_MAX, Anomaly, Books
from auditor.draft import Draft
from auditor.events import Batch, Event, Heartbeat, PossibleGap, Resumed, Rules, Sample, Started, Stopped, Tick
from auditor.hearing import Hearing
from auditor.usage import Usage
from auditor.visit import DeadLetterError, Visit
from auditor.vm import Vm

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
        self.hearing = Hearing()
        self.vms: dict[str, Vm] = {}
        self.reported_gaps: list[tuple[int, str, int, int]] = []

    def fold(self, event: Event) -> None:
        sequence, what, tallies = event.sequence, event.what, self.books.tallies
        if isinstance(what, Batch):
            batch = what
            if self._visit(sequence, what, what.customer_id, lambda visit: visit.batch(batch), "metrics"):
                for row in what.samples:
                    self.books.clock.sampled(row[0])
        elif isinstance(what, Started):
            start = what
            tallies["starts"] += 1
            self._visit(sequence, what, what.customer_id, lambda visit: visit.start(start), "started")
        elif isinstance(what, Stopped):
            stop = what
            tallies["stops"] += 1
            self._visit(sequence, what, self._customer(what.vm_id), lambda visit: visit.stop(stop), "stopped")
        elif isinstance(what, Heartbeat):
            tallies["heartbeats"] += 1
            self.hearing.beat(event.received_ns, what)
            for vm_id in self.vms.keys() & set(what.active_vms):
                self._note_listed(self.vms[vm_id])
        elif isinstance(what, PossibleGap):
            tallies["possible_gaps"] += 1
            self.reported_gaps.append((sequence, *what))
        elif isinstance(what, Tick):
            tallies["ticks"] += 1
            self._tick(sequence, what)
        elif isinstance(what, Resumed):
            self.hearing.resumed(sequence, what)
        else:
            self.rules = what

    def bill(self) -> Bill:
        """The bill so far."""
        sessions = {vm.vm_id: vm.all_sessions() for vm in self.vms.values()}
        return Bill.of(self.books, sessions, self.hearing, self.reported_gaps)

    def _visit(
        self, sequence: int, what: Batch | Started | Stopped, customer_id: str, act: Callable[[Visit], None], kind: str
    ) -> bool:
        """Do it whole, or not at all and give a dead letter: False."""
        vm_id = what.vm_id
        known = self.vms.get(vm_id)
        vm = Vm(vm_id) if known is None else known
        fits_surely = self._fits_surely(vm, what)
        if not fits_surely:
            vm = vm.copy()
        draft = Draft(sequence, vm_id, customer_id)
        try:
            act(Visit(vm, draft, self.rules, self.books.clock.latest_ns))
        except DeadLetterError as error:
            self.books.bury(sequence, kind, str(error))
            return False
        if not self.books.fits(draft) or len(vm.sessions) > ORDINAL_MAX:
            if fits_surely:
                raise ValueError(f"{vm_id}: more was billed than was sent")
            self.books.bury(sequence, kind, "overflow")
            return False
        self.books.enter(draft)
        vm.heard_seconds = self.hearing.seconds
        if draft.spoken_ns is not None:
            self.hearing.spoke(vm_id, draft.spoken_ns)
        self._note_listed(vm)
        self.vms[vm_id] = vm
        return True

    def _fits_surely(self, vm: Vm, what: Batch | Started | Stopped) -> bool:
        """Whether samples are appended and all that they say fits: a copy each time would take for ever."""
        newest_ns = vm.timeline.newest_ns
        if not isinstance(what, Batch) or newest_ns is None or any(row[0] <= newest_ns for row in what.samples):
            return False
        total = self.books.totals.get((vm.vm_id, vm.newest_ordinal), Usage())
        return max(total.counters) + sum(sum(Sample(*row).counters) for row in what.samples) <= TOTAL_MAX

    def _tick(self, sequence: int, tick: Tick) -> None:
        self.books.clock.tick(tick, self.rules.bucket_ns)
        for vm in self.hearing.tick(sequence, tick.length_ns, self.rules, self.vms):
            newest = vm.newest
            if newest is not None:
                self.books.anomalies.append(
                    Anomaly(sequence, 0, "vanished", vm.vm_id, newest.life.last_ns, vm.newest_ordinal, "{}")
                )

    def _note_listed(self, vm: Vm) -> None:
        if vm.running and self.hearing.lists(vm.vm_id):
            vm.listed.add(vm.newest_ordinal)

    def _customer(self, vm_id: str) -> str:
        """Whose the VM is; nobody's where it has no session."""
        vm = self.vms.get(vm_id)
        newest = None if vm is None else vm.newest
        return "" if newest is None else newest.customer_id
