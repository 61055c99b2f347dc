"""A host: its guests, its clock, and the agent that samples, buffers and sends."""

from __future__ import annotations

from random import Random

from auditor.events import SECOND_NS, Batch, Heartbeat, PossibleGap, Sample, Started, Stopped

from simulation.agenda import Agenda
from simulation.clocks import HostClock
from simulation.network import Door, Line
from simulation.plan import Plan
from simulation.truth import Stream, Truth
from simulation.vm import Vm


class Guest:
    """A VM on one host."""

    def __init__(self, vm: Vm, stream: Stream) -> None:
        self.vm = vm
        self.stream = stream
        self.here = True
        self.buffer: list[Sample] = []
        self.last: Sample | None = None
        # Moved away: its counters stand still, and its host has not noticed yet.
        self.frozen = False


class Host:
    def __init__(self, name: str, plan: Plan, chance: Random, agenda: Agenda, door: Door, truth: Truth) -> None:
        self.name, self.up, self._over = name, True, False
        self._plan, self._chance, self._agenda, self._truth = plan, chance, agenda, truth
        skew_ns = chance.randint(-plan.skew_max_ns, plan.skew_max_ns)
        self.clock = HostClock(agenda, skew_ns, chance.choice((0, 0, -3, 3)), coarse=plan.coarse_clocks)
        caller = f"spiffe://example.org/{name}"
        self._usage = Line(plan, chance, agenda, door, caller, lanes=plan.lanes, retries=plan.retries)
        self._notices = Line(plan, chance, agenda, door, caller, lanes=4, retries=True)
        self._beats = Line(plan, chance, agenda, door, caller, lanes=100, retries=False)
        self.lines = (self._usage, self._notices, self._beats)
        self.guests: dict[str, Guest] = {}
        agenda.after(chance.randint(0, plan.heartbeat_ns), self._beat)

    # --- guests ------------------------------------------------------------------

    def place(self, vm: Vm, stream: Stream, *, announced: bool) -> Guest:
        guest = self.guests[vm.vm_id] = Guest(vm, stream)
        if announced:
            start_ns = self.clock.now_ns()
            self._truth.started(vm.vm_id, start_ns, stream)
            self._notice(Started(vm.vm_id, vm.customer_id, start_ns))
        self._agenda.after(self._chance.choice((0, 0, self._pause_ns())), lambda: self._sample(guest))
        return guest

    def freeze(self, guest: Guest) -> None:
        """Take a last sample, and show no other values from then on."""
        self._read(guest)
        guest.frozen = True

    def remove(self, guest: Guest, *, announced: bool) -> None:
        """The guest is no more here."""
        chance = self._chance
        if not guest.frozen and chance.random() < 0.5:
            self._read(guest)
        stop_ns = self.clock.now_ns()
        guest.here = False
        if self.guests.get(guest.vm.vm_id) is guest:
            del self.guests[guest.vm.vm_id]
        if announced and chance.random() < 0.5:
            # Before the last samples are even sent.
            self._notice(Stopped(guest.vm.vm_id, stop_ns))
            announced = False
        self._agenda.after(chance.randint(0, self._plan.latency_max_ns), lambda: self._send(guest))
        if announced:
            self._notice(Stopped(guest.vm.vm_id, stop_ns))

    # --- a crash -----------------------------------------------------------------

    def crash(self) -> list[Guest]:
        """All guests are gone, and what the agent had in memory."""
        self.up = False
        guests = list(self.guests.values())
        for guest in guests:
            guest.here = False
            guest.buffer.clear()
        self.guests.clear()
        for line in self.lines:
            line.crash(keeps=self._plan.spool_on_disk and line is not self._beats)
        return guests

    def come_back(self, lost: list[Guest], crashed_ns: int, *, tells: bool) -> None:
        """``crashed_ns`` by the clock of this host."""
        self.up = True
        for guest in lost if tells else ():
            self._notice(Stopped(guest.vm.vm_id, crashed_ns))
            if guest.last is not None:
                resume_ns = max(self.clock.now_ns(), guest.last.time_ns)
                self._notice(PossibleGap(guest.vm.vm_id, guest.last.time_ns, resume_ns))
        for line in self.lines:
            line.resume()

    def end(self) -> None:
        """The agent sends what it has, and samples no more."""
        self._over = True
        for guest in self.guests.values():
            self._send(guest)

    # --- the agent ---------------------------------------------------------------

    def _sample(self, guest: Guest) -> None:
        if self._over or not guest.here:
            return
        self._read(guest)
        self._agenda.after(self._pause_ns(), lambda: self._sample(guest))
        if len(guest.buffer) >= self._chance.randint(1, self._plan.batch_samples_max):
            self._send(guest)

    def _read(self, guest: Guest) -> None:
        label_ns, vm = self.clock.now_ns(), guest.vm
        if guest.frozen:
            if guest.last is None:
                return
            sample = guest.last._replace(time_ns=label_ns)
            self._truth.sampled(vm.vm_id, guest.stream, sample)
        elif self._chance.random() < self._plan.failed_reads:
            guest.buffer.append(vm.failed_read(label_ns))
            return
        else:
            sample = vm.sample(self._agenda.now_ns, label_ns, guest.stream)
        guest.last = sample
        guest.buffer.append(sample)

    def _send(self, guest: Guest) -> None:
        if guest.buffer and self.up:
            self._usage.send(Batch(guest.vm.vm_id, guest.vm.customer_id, guest.buffer))
            guest.buffer = []

    def _beat(self) -> None:
        if self._over:
            return
        if self.up:
            self._beats.send(Heartbeat(self.name, tuple(self.guests)))
        self._agenda.after(self._plan.heartbeat_ns, self._beat)

    def _notice(self, notice: Started | Stopped | PossibleGap) -> None:
        chance, plan = self._chance, self._plan
        if chance.random() < plan.lost_notices:
            self._notices.seen["notices lost"] += 1
        elif chance.random() < plan.slow_notices:
            self._agenda.after(chance.randint(0, plan.slow_notice_max_ns), lambda: self._notices.send(notice))
        else:
            self._notices.send(notice)

    def _pause_ns(self) -> int:
        jitter_ns = min(self._plan.sample_ns // 10, 5 * SECOND_NS)
        return self._plan.sample_ns + self._chance.randint(-jitter_ns, jitter_ns)
