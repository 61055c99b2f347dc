"""The fleet: which VM lives where, and what becomes of it. VMs stop, boot, move and die; so do hosts."""

from __future__ import annotations

from collections import Counter
from random import Random

from auditor.events import HOUR_NS, MINUTE_NS, SECOND_NS

from simulation.agenda import Act, Agenda
from simulation.host import Guest, Host
from simulation.network import Door
from simulation.plan import Plan
from simulation.truth import Truth
from simulation.vm import Vm


class Fleet:
    def __init__(self, plan: Plan, chance: Random, agenda: Agenda, door: Door, truth: Truth) -> None:
        self._plan, self._chance, self._agenda = plan, chance, agenda
        self.seen: Counter[str] = Counter()
        self._over = False
        self.hosts = [Host(f"host-{number}", plan, chance, agenda, door, truth) for number in range(1, plan.hosts + 1)]
        self._customers = plan.customer_ids
        for number in range(1, plan.vms + 1):
            vm = Vm(f"vm-{number}", chance.choice(self._customers), chance, truth)
            agenda.after(chance.randint(0, plan.length_ns // 8), lambda vm=vm: self._boot(vm, None))
        self._again(plan.host_crash_hours, self._crash_some_host)
        self._again(plan.clock_steps_hours, self._step_some_clock)

    def end(self) -> None:
        """The days are over: nothing new begins, no VM is sampled any more; what is on its way arrives."""
        self._over = True
        for host in self.hosts:
            host.end()

    # --- one VM ------------------------------------------------------------------

    def _boot(self, vm: Vm, host: Host | None) -> None:
        if self._over:
            return
        if host is None or not host.up:
            up = [other for other in self.hosts if other.up]
            if not up:
                self._agenda.after(5 * MINUTE_NS, lambda: self._boot(vm, host))
                return
            host = self._chance.choice(up)
        self.seen["boots"] += 1
        guest = host.place(vm, vm.boot(self._agenda.now_ns), announced=True)
        self._live_on(vm, host, guest)

    def _live_on(self, vm: Vm, host: Host, guest: Guest) -> None:
        life_ns = int(self._chance.expovariate(1 / self._plan.life_mean_ns))
        self._agenda.after(life_ns, lambda: self._end(vm, host, guest))

    def _end(self, vm: Vm, host: Host, guest: Guest) -> None:
        """What comes after some time of life."""
        if self._over or not guest.here:
            return
        chance, plan = self._chance, self._plan
        if chance.random() < plan.unannounced:
            self._unannounced(vm, host, guest)
        elif chance.random() < plan.live_migrations and any(other.up for other in self.hosts if other is not host):
            self._migrate_live(vm, host, guest)
        elif chance.random() < 0.3:
            self._reboot(vm, host, guest)
        else:
            self._stop(vm, host, guest)

    def _unannounced(self, vm: Vm, host: Host, guest: Guest) -> None:
        """A reset inside, or the whole VM is gone and nobody says so."""
        if self._chance.random() < 0.5:
            self.seen["resets without a word"] += 1
            guest.here = False
            host.guests.pop(vm.vm_id, None)
            anew = host.place(vm, vm.boot(self._agenda.now_ns), announced=False)
            anew.buffer = guest.buffer
            self._live_on(vm, host, anew)
        else:
            self.seen["deaths without a word"] += 1
            host.remove(guest, announced=False)
            self._boot_later(vm, host)

    def _reboot(self, vm: Vm, host: Host, guest: Guest) -> None:
        """Stopped and started, or started only, within a moment or the same one."""
        self.seen["reboots"] += 1
        host.remove(guest, announced=self._chance.random() < 0.7)
        self._agenda.after(self._chance.choice((0, 1, 20 * SECOND_NS)), lambda: self._boot(vm, host))

    def _stop(self, vm: Vm, host: Host, guest: Guest) -> None:
        self.seen["stops"] += 1
        host.remove(guest, announced=True)
        if self._chance.random() < 0.05:
            return
        if self._chance.random() < self._plan.takeovers:
            self.seen["takeovers"] += 1
            customer_id = self._chance.choice(self._customers)
            vm = vm.handed_to(customer_id)
        self._boot_later(vm, host)

    def _boot_later(self, vm: Vm, host: Host) -> None:
        """Here at any time, elsewhere not before every clock agrees that it was stopped."""
        chance = self._chance
        if chance.random() < 0.5:
            self._agenda.after(chance.randint(SECOND_NS, HOUR_NS), lambda: self._boot_here(vm, host))
        else:
            apart_ns = 2 * min(self._plan.skew_max_ns, MINUTE_NS) + MINUTE_NS
            self._agenda.after(apart_ns + chance.randint(0, HOUR_NS), lambda: self._boot(vm, None))

    def _boot_here(self, vm: Vm, host: Host) -> None:
        if host.up:
            self._boot(vm, host)
        else:
            self._agenda.after(MINUTE_NS, lambda: self._boot_here(vm, host))

    def _migrate_live(self, vm: Vm, host: Host, guest: Guest) -> None:
        """For a while both hosts report it; the new one from zero, or with the counters it had."""
        self.seen["live migrations"] += 1
        other = self._chance.choice([other for other in self.hosts if other is not host and other.up])
        host.freeze(guest)
        now_ns = self._agenda.now_ns
        stream = vm.boot(now_ns) if self._chance.random() < 0.5 else vm.carry_on(now_ns, guest.stream)
        moved = other.place(vm, stream, announced=False)
        self._agenda.after(self._chance.choice((0, 5, 40)) * MINUTE_NS, lambda: self._forget(host, guest))
        self._live_on(vm, other, moved)

    def _forget(self, host: Host, guest: Guest) -> None:
        if guest.here:
            host.remove(guest, announced=False)

    # --- hosts -------------------------------------------------------------------

    def _crash_some_host(self) -> None:
        host = self._chance.choice(self.hosts)
        if self._over or not host.up:
            return
        self.seen["host crashes"] += 1
        crashed_ns = host.clock.now_ns()
        lost = host.crash()
        tells = self._chance.random() < 0.5
        down_ns = self._chance.randint(2 * MINUTE_NS, HOUR_NS)
        self._agenda.after(down_ns, lambda: host.come_back(lost, crashed_ns, tells=tells))
        for guest in lost:
            if not guest.frozen:
                self._agenda.after(down_ns, lambda vm=guest.vm: self._boot_later(vm, host))

    def _step_some_clock(self) -> None:
        self.seen["clock steps"] += 1
        # Further ahead than five minutes nothing is taken any more.
        offset_ns = self._chance.choice((0, 0, SECOND_NS, MINUTE_NS, 4 * MINUTE_NS, HOUR_NS, -MINUTE_NS, -HOUR_NS))
        self._chance.choice(self.hosts).clock.be_off_by(offset_ns)

    def _again(self, mean_hours: float, act: Act) -> None:
        """Do something now and then."""
        if not mean_hours:
            return

        def once() -> None:
            if not self._over:
                act()
                self._again(mean_hours, act)

        self._agenda.after(int(self._chance.expovariate(1 / (mean_hours * HOUR_NS))), once)
