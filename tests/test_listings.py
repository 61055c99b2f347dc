"""Which instances list which VMs: counted as they change, whether a VM is in memory or not."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from billaged.aggregator.columns import LISTED, RUNNING, Columns
from billaged.aggregator.instances import Instance, Instances
from billaged.aggregator.listings import Listings


def test_an_instance_is_forgotten_once_nothing_depends_on_it() -> None:
    instances = Instances()
    instances.beat("host", 7, 0, ("b", "a", "b"), str)
    assert instances["host"].vm_ids == ("a", "b")
    assert (instances["host"].lists("b"), instances["host"].lists("c")) == (True, False)
    assert instances.fall_silent(89) == []
    assert instances.fall_silent(90) == ["host"]
    instances.forget_if_idle("host")
    assert instances.silent_listings(["a", "c"]) == Counter(a=1)
    change = instances.beat("host", 8, 100, (), str)
    assert (list(change.added), set(change.removed)) == ([], {"a", "b"})
    assert instances.fall_silent(190) == ["host"]
    instances.forget_if_idle("host")
    assert list(instances) == []


def test_a_list_that_is_sent_again_keeps_its_strings() -> None:
    instances = Instances()
    instances.beat("host", 0, 0, [f"vm-{number}" for number in range(3)], str)
    before = instances["host"].vm_ids
    assert not instances.changed_by("host", [f"vm-{number}" for number in (2, 0, 1)])
    instances.beat("host", 0, 0, [f"vm-{number}" for number in (2, 0, 3)], str)
    after = instances["host"].vm_ids
    assert after == ("vm-0", "vm-2", "vm-3")
    assert after[0] is before[0] and after[1] is before[2]


def test_strings_are_kept_once() -> None:
    instances = Instances()
    instances.restore("host", Instance(0, 0, silent=False, vm_ids=("vm-1", "vm-2")))
    own = {vm_id: vm_id for vm_id in [f"vm-{number}" for number in (1, 3)]}
    instances.share(lambda vm_id: own.get(vm_id, vm_id))
    first, second = instances["host"].vm_ids
    assert (first, second) == ("vm-1", "vm-2")
    assert first is own["vm-1"]
    instances.beat("host", 0, 0, [f"vm-{number}" for number in (2, 3)], lambda vm_id: own.get(vm_id, vm_id))
    assert instances["host"].vm_ids[0] is second
    assert instances["host"].vm_ids[1] is own["vm-3"]


def test_silent_instances_are_looked_through_either_way() -> None:
    instances = Instances()
    many = tuple(f"vm-{number:03}" for number in range(200))
    instances.restore("one", Instance(0, 0, silent=True, vm_ids=many))
    instances.restore("two", Instance(0, 0, silent=False, vm_ids=many))
    instances.restore("three", Instance(0, 0, silent=True, vm_ids=many[:100]))
    assert instances.silent_listings(["vm-050", "vm-150", "x"]) == {"vm-050": 2, "vm-150": 1}
    assert instances.silent_listings(many) == Counter(many) + Counter(many[:100])


@pytest.mark.parametrize("seed", range(5))
def test_listings_are_counted_whether_a_row_is_there_or_not(seed: int) -> None:
    chance = random.Random(seed)
    columns, listings = Columns(), Listings()
    vms, hosts = [f"vm-{number}" for number in range(6)], range(4)
    lists: dict[int, set[str]] = {host: set() for host in hosts}
    for _ in range(500):
        vm_id, host = chance.choice(vms), chance.choice(hosts)
        row = columns.row_of.get(vm_id)
        if chance.random() < 0.2:
            if row is None:
                row = columns.add(vm_id)
                columns.flags[row] = RUNNING | chance.choice((0, LISTED))
                listings.adopt(columns, [row])
            else:
                listings.release(columns, [row])
                columns.evict([row])
        elif vm_id in lists[host]:
            lists[host].remove(vm_id)
            gone = listings.remove(columns, vm_id)
            assert gone == (None if any(vm_id in each for each in lists.values()) else row)
        else:
            lists[host].add(vm_id)
            assert listings.add(columns, vm_id) == row
        if chance.random() < 0.1:
            listings.compact()
        for vm_id in vms:
            count = sum(vm_id in each for each in lists.values())
            row = columns.row_of.get(vm_id)
            if row is not None:
                assert bool(columns.flags[row] & LISTED) == (count > 0)
                if count:
                    assert listings.count_each(columns, [row]) == [count]
