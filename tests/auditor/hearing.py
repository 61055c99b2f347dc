"""Who is heard and who is silent, counted in ticks and never by a clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from auditor.events import SECOND_NS, Heartbeat, Resumed, Rules
from auditor.vm import Vm

INSTANCE_SILENT_SECONDS = 90
ALL_VMS = ""


@dataclass
class Instance:
    last_seen_ns: int
    vm_ids: tuple[str, ...]
    heard_seconds: int
    silent: bool = False


class SilenceKey(NamedTuple):
    vm_id: str
    start_ns: int
    reason: str


@dataclass
class Silence:
    sequence: int
    end_ns: int | None = None


class Hearing:
    def __init__(self) -> None:
        self.passed_ns = 0
        self.instances: dict[str, Instance] = {}
        self.silences: dict[SilenceKey, Silence] = {}
        # Those that are open.
        self._of_vms: defaultdict[str, list[Silence]] = defaultdict(list)
        # When each VM was last listed that no instance lists any more.
        self._unlisted_seconds: dict[str, int] = {}

    @property
    def seconds(self) -> int:
        """Of ticks, so far, whole ones."""
        return self.passed_ns // SECOND_NS

    def beat(self, received_ns: int, beat: Heartbeat) -> None:
        before = self.instances.get(beat.instance_id)
        vm_ids = tuple(sorted(set(beat.active_vms)))
        self.instances[beat.instance_id] = Instance(received_ns, vm_ids, self.seconds)
        for vm_id in () if before is None else before.vm_ids:
            if not self.lists(vm_id):
                self._unlisted_seconds[vm_id] = self.seconds

    def lists(self, vm_id: str) -> bool:
        """Whether any instance lists it, silent or not."""
        return any(vm_id in instance.vm_ids for instance in self.instances.values())

    def resumed(self, sequence: int, resumed: Resumed) -> None:
        if resumed.up_ns > resumed.down_from_ns:
            key = SilenceKey(ALL_VMS, resumed.down_from_ns, "billaged_down")
            self.silences.setdefault(key, Silence(sequence, resumed.up_ns))

    def spoke(self, vm_id: str, at_ns: int) -> None:
        """A point was appended to the VM's timeline, or put at its newest instant: its silences end there."""
        for silence in self._of_vms.pop(vm_id, ()):
            silence.end_ns = at_ns

    def tick(self, sequence: int, length_ns: int, rules: Rules, vms: Mapping[str, Vm]) -> list[Vm]:
        """Time passes. Gives the VMs that have vanished by it."""
        self.passed_ns += length_ns
        running = [vm for vm in vms.values() if vm.running]
        for instance_id in sorted(self.instances):
            self._hear_instance(sequence, instance_id, running)
        for vm in running:
            quiet_ns = (self.seconds - vm.heard_seconds) * SECOND_NS
            if not vm.silent and quiet_ns >= rules.for_customer(vm.timeline.customer_id).gap_threshold_ns:
                vm.silent = True
                self._open(sequence, vm, self._reason(vm.vm_id))
        return self._vanish(sequence, rules, running)

    def _hear_instance(self, sequence: int, instance_id: str, running: Iterable[Vm]) -> None:
        instance = self.instances[instance_id]
        if instance.silent or self.seconds - instance.heard_seconds < INSTANCE_SILENT_SECONDS:
            return
        instance.silent = True
        for vm in running:
            if vm.vm_id in instance.vm_ids and self._reason(vm.vm_id) == "silent_host":
                self._open(sequence, vm, "silent_host")

    def _reason(self, vm_id: str) -> str:
        silent = [instance.silent for instance in self.instances.values() if vm_id in instance.vm_ids]
        if not silent:
            return "no_samples"
        return "silent_host" if all(silent) else "silent_vm"

    def _vanish(self, sequence: int, rules: Rules, running: Iterable[Vm]) -> list[Vm]:
        vanished = []
        # All at once: asked one by one, many VMs and many instances take for ever.
        listed = {vm_id for instance in self.instances.values() for vm_id in instance.vm_ids}
        for vm in running:
            if vm.newest_ordinal not in vm.listed or vm.vm_id in listed:
                continue
            seen_seconds = max(vm.heard_seconds, self._unlisted_seconds[vm.vm_id])
            if (self.seconds - seen_seconds) * SECOND_NS >= rules.vanish_after_ns:
                vm.vanished = True
                self._open(sequence, vm, "vanished")
                vanished.append(vm)
        return vanished

    def _open(self, sequence: int, vm: Vm, reason: str) -> None:
        life = vm.timeline.state.life
        if life is None:
            raise ValueError(f"{vm.vm_id}: no session to be silent")
        key = SilenceKey(vm.vm_id, life.last_ns, reason)
        if key not in self.silences:
            self.silences[key] = Silence(sequence)
            self._of_vms[vm.vm_id].append(self.silences[key])
