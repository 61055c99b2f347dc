"""The instances (host agents) that send heartbeats: when each was last heard, and the VMs it lists."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Final, NamedTuple

# Two heartbeats may get lost: agents send one each 30 s.
SILENT_AFTER_SECONDS: Final = 90
# Looking one id up in a sorted list costs about this many times what passing by an id does.
_LOOK_UP_COST: Final = 10


class Instance:
    """``heard_seconds`` is of the sum of ticks; ``vm_ids`` are sorted, each once."""

    __slots__ = ("heard_seconds", "last_seen_ns", "silent", "vm_ids")

    def __init__(self, last_seen_ns: int, heard_seconds: int, *, silent: bool, vm_ids: tuple[str, ...]) -> None:
        self.last_seen_ns = last_seen_ns
        self.heard_seconds = heard_seconds
        self.silent = silent
        self.vm_ids = vm_ids

    def lists(self, vm_id: str) -> bool:
        at = bisect_left(self.vm_ids, vm_id)
        return at < len(self.vm_ids) and self.vm_ids[at] == vm_id


class ListChange(NamedTuple):
    """What a heartbeat lists that the one before did not, and the other way round."""

    added: Collection[str]
    removed: Collection[str]


_NO_CHANGE: Final = ListChange((), ())


class Instances:
    """By id. One that is silent and lists nothing is of no account, and forgotten: the ledger has its row."""

    def __init__(self) -> None:
        self._by_id: dict[str, Instance] = {}

    def __getitem__(self, instance_id: str) -> Instance:
        return self._by_id[instance_id]

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._by_id.values())

    def restore(self, instance_id: str, instance: Instance) -> None:
        if instance.vm_ids or not instance.silent:
            self._by_id[instance_id] = instance

    def changed_by(self, instance_id: str, listed: Collection[str]) -> bool:
        """Whether a heartbeat with this list would change what the instance lists."""
        instance = self._by_id.get(instance_id)
        before = () if instance is None else instance.vm_ids
        if listed == before:
            return False
        # Without sorting: this is asked of each heartbeat, and nearly all change nothing.
        now = set(listed)
        return len(now) != len(before) or not now.issuperset(before)

    def beat(
        self,
        instance_id: str,
        received_ns: int,
        passed_seconds: int,
        listed: Collection[str],
        shared: Callable[[str], str],
    ) -> ListChange:
        """Take a heartbeat. ``shared`` gives the string to keep of an id: one that is in memory anyway."""
        changed = self.changed_by(instance_id, listed)
        instance = self._by_id.get(instance_id)
        if instance is None:
            instance = self._by_id[instance_id] = Instance(received_ns, passed_seconds, silent=False, vm_ids=())
        instance.last_seen_ns, instance.heard_seconds, instance.silent = received_ns, passed_seconds, False
        if not changed:
            return _NO_CHANGE
        vm_ids, before = sorted(set(listed)), set(instance.vm_ids)
        added = [vm_id for vm_id in vm_ids if vm_id not in before]
        removed = before.difference(vm_ids)
        kept = {vm_id: vm_id for vm_id in instance.vm_ids}
        instance.vm_ids = tuple([shared(kept.get(vm_id, vm_id)) for vm_id in vm_ids])
        return ListChange(added, removed)

    def share(self, shared: Callable[[str], str]) -> None:
        """Keep ``shared``'s strings in the place of equal ones."""
        for instance in self._by_id.values():
            instance.vm_ids = tuple(map(shared, instance.vm_ids))

    def fall_silent(self, passed_seconds: int) -> list[str]:
        """The ids of those that are silent from now on, sorted."""
        latest = passed_seconds - SILENT_AFTER_SECONDS
        due = [
            instance_id
            for instance_id, instance in self._by_id.items()
            if instance.heard_seconds <= latest and not instance.silent
        ]
        for instance_id in due:
            self._by_id[instance_id].silent = True
        return sorted(due)

    def forget_if_idle(self, instance_id: str) -> None:
        """It has fallen silent: where it lists nothing, nothing depends on it any more."""
        if not self._by_id[instance_id].vm_ids:
            del self._by_id[instance_id]

    def silent_listings(self, vm_ids: Collection[str]) -> Counter[str]:
        """How many silent instances list each of these VMs."""
        found: Counter[str] = Counter()
        wanted = set(vm_ids)
        for instance in self._by_id.values():
            if not instance.silent:
                continue
            if len(wanted) * _LOOK_UP_COST < len(instance.vm_ids):
                found.update(vm_id for vm_id in wanted if instance.lists(vm_id))
            else:
                found.update(wanted.intersection(instance.vm_ids))
        return found
