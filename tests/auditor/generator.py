"""Hostile journals: what a small fleet, its network and its clocks can do to a biller.

A journal is a list of events that the doors would have let through (ids, ranges),
and nothing more is promised of it: samples repeat, contradict, come late, jump and
fall; they are held up and come after what they lie before; starts and stops come
early, doubled, from the past and for other owners; instances list VMs and forget
them; ticks have odd lengths; the rules change on the way; the daemon is away.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from auditor.chooser import Chooser, DrawnChooser, SeededChooser
from auditor.events import (
    HOUR_NS,
    MINUTE_NS,
    SECOND_NS,
    Batch,
    Event,
    Heartbeat,
    PossibleGap,
    Resumed,
    Rules,
    Sample,
    Started,
    Stopped,
    Tick,
    What,
)
from auditor.machine import EPOCH_NS, Machine

CUSTOMERS = ("acme", "globex")
INSTANCES = ("host-1", "host-2", "host-3")
CALLERS = ("", "spiffe://example.org/metald")

_THRESHOLDS_NS = (15 * MINUTE_NS, MINUTE_NS, 3 * MINUTE_NS, 4 * HOUR_NS, SECOND_NS, 48 * HOUR_NS)
_BUCKETS_NS = (HOUR_NS, MINUTE_NS, 5 * MINUTE_NS, 15 * MINUTE_NS, 30 * MINUTE_NS)
_TICK_LENGTHS_NS = (
    *(MINUTE_NS, 10 * MINUTE_NS, 10 * MINUTE_NS - 1, 0, SECOND_NS, HOUR_NS, 7 * MINUTE_NS + 13),
    *(90 * SECOND_NS, 90 * SECOND_NS - 1, 15 * MINUTE_NS, HOUR_NS),
)


def seeded_journal(seed: int, events: int = 60, machines: int | None = None) -> list[Event]:
    """A hostile journal from a seed: the same seed, the same journal."""
    fleet = Fleet(SeededChooser(seed), machines)
    return [fleet.next_event() for _ in range(events)]


@st.composite
def journals(draw: st.DrawFn, events_max: int = 30) -> list[Event]:
    """Hostile journals for hypothesis. Each starts with its rules."""
    fleet = Fleet(DrawnChooser(draw), None)
    journal = [fleet.next_event()]
    # Asked before each event, so that shrinking can leave any of them out.
    while len(journal) < events_max and draw(st.integers(0, 15)) > 0:
        journal.append(fleet.next_event())
    return journal


class Fleet:
    """Some VMs, their senders, and the daemon's clock."""

    def __init__(self, chooser: Chooser, machines: int | None) -> None:
        self._chooser = chooser
        self._sequence = 0
        self._rules = Rules()
        self._wall_ns = EPOCH_NS
        count = chooser.between(1, 6) if machines is None else machines
        self._machines = [Machine(chooser, f"vm-{number}", chooser.pick(CUSTOMERS)) for number in range(1, count + 1)]
        # What each instance lists, and which samples each machine's network holds up.
        self._lists: dict[str, set[str]] = {}
        self._held: dict[str, list[Sample]] = {}
        # The dull ones first, and as often as a real journal has them.
        self._acts: tuple[Callable[[Machine], What], ...] = (
            *[self._sampled] * 6,
            *[self._mixed] * 3,
            self._retried,
            self._of_another_owner,
            *[self._in_disorder] * 2,
            *[self._released] * 3,
            *[self._started] * 3,
            *[self._stopped] * 3,
            *[self._ticked] * 3,
            *[self._beaten] * 4,
            self._gap_reported,
            self._resumed,
            *[self._quiet] * 3,
            self._ruled,
        )

    def next_event(self) -> Event:
        machine = self._chooser.pick(self._machines)
        if not self._sequence:
            what: What = self._ruled(machine)
        elif machine.down and self._chooser.pick((True, False)):
            what = self._started(machine)
        else:
            what = self._chooser.pick(self._acts)(machine)
        self._sequence += 1
        return Event(self._sequence, self._wall_ns, self._chooser.pick(CALLERS), what)

    def _rules_of(self, machine: Machine) -> Rules:
        """Where its edges are."""
        return self._rules.for_customer(machine.customer_id)

    def _batch(self, machine: Machine, samples: list[Sample]) -> Batch:
        batch = Batch(machine.vm_id, machine.customer_id, samples)
        machine.batches.append(batch)
        self._wall_ns = max(self._wall_ns, machine.now_ns)
        return batch

    def _sampled(self, machine: Machine) -> Batch:
        """In order, as a good sender does it."""
        count = self._chooser.pick((1, 1, 1, 2, 5))
        return self._batch(machine, [machine.next_sample(self._rules_of(machine)) for _ in range(count)])

    def _mixed(self, machine: Machine) -> Batch:
        """Unsorted, with strays in between."""
        samples = [machine.next_sample(self._rules_of(machine)) for _ in range(self._chooser.between(0, 3))]
        for _ in range(self._chooser.between(1, 3)):
            samples.insert(self._chooser.between(0, len(samples)), machine.stray_sample(self._rules_of(machine)))
        return self._batch(machine, samples[:: self._chooser.pick((1, -1))])

    def _in_disorder(self, machine: Machine) -> Batch:
        """The newest first, and the others in a batch to come."""
        samples = [machine.next_sample(self._rules_of(machine)) for _ in range(self._chooser.between(2, 5))]
        self._held[machine.vm_id] = samples[:-1]
        return self._batch(machine, samples[-1:])

    def _released(self, machine: Machine) -> Batch:
        """What was held back, whole or in parts."""
        held = self._held.get(machine.vm_id)
        if not held:
            return self._mixed(machine)
        count = self._chooser.pick((len(held), 1))
        self._held[machine.vm_id] = held[count:]
        return self._batch(machine, held[:count][:: self._chooser.pick((1, -1))])

    def _retried(self, machine: Machine) -> Batch:
        if not machine.batches:
            return self._sampled(machine)
        return self._chooser.pick((machine.batches[-1], self._chooser.pick(machine.batches)))

    def _of_another_owner(self, machine: Machine) -> Batch:
        """By mistake, or for good."""
        mine = machine.customer_id
        other = CUSTOMERS[mine == CUSTOMERS[0]]
        machine.customer_id = other
        batch = self._sampled(machine)
        machine.customer_id = self._chooser.pick((mine, mine, mine, other))
        return batch

    def _started(self, machine: Machine) -> Started:
        start_ns = self._chooser.pick(
            (machine.some_time(self._rules_of(machine)),) * 12 + (1, EPOCH_NS - 400 * 24 * HOUR_NS)
        )
        machine.starts_ns.append(start_ns)
        machine.down = False
        machine.now_ns = max(machine.now_ns, self._chooser.pick((start_ns, machine.now_ns)))
        owner = self._chooser.pick((machine.customer_id,) * 10 + CUSTOMERS)
        if self._chooser.pick((False, True)):
            # A fresh boot: the counters begin again.
            machine.before_decrease = list(machine.counters)
            machine.counters = [self._chooser.pick((0, 3, 10**9))] * 5
        return Started(machine.vm_id, owner, start_ns)

    def _stopped(self, machine: Machine) -> Stopped:
        stop_ns = machine.some_time(self._rules_of(machine))
        machine.stops_ns.append(stop_ns)
        machine.down = self._chooser.pick((True, False))
        machine.now_ns = max(machine.now_ns, self._chooser.pick((stop_ns, machine.now_ns)))
        return Stopped(machine.vm_id, stop_ns)

    def _ticked(self, _: Machine) -> Tick:
        """Time passes; now and then the clock steps."""
        length_ns = self._chooser.pick(_TICK_LENGTHS_NS)
        step_ns = self._chooser.pick((0, 0, 0, 0, HOUR_NS, -HOUR_NS, 26 * HOUR_NS, -1))
        self._wall_ns += length_ns + step_ns
        return Tick(self._wall_ns, length_ns, self._chooser.pick((False, True)))

    def _beaten(self, machine: Machine) -> Heartbeat:
        """Lists change: VMs move, are on two hosts at once, or on none."""
        instance = self._chooser.pick((INSTANCES[0], *INSTANCES))
        listed = set(self._lists.get(instance, ()))
        ids = [each.vm_id for each in self._machines]
        listed = self._chooser.pick(
            (
                listed | {*ids},
                listed,
                listed,
                listed | {*ids},
                listed | {machine.vm_id},
                listed - {machine.vm_id},
                set(),
                {"vm-other"},
            )
        )
        self._lists[instance] = listed
        vms = sorted(listed)
        return Heartbeat(instance, tuple(vms * self._chooser.pick((1, 1, 1, 2))))

    def _quiet(self, _: Machine) -> Tick:
        """A long tick, by which many go silent."""
        length_ns = self._chooser.pick((*(80 * SECOND_NS,) * 3, 90 * SECOND_NS, 15 * MINUTE_NS, HOUR_NS, HOUR_NS))
        self._wall_ns += length_ns
        return Tick(self._wall_ns, length_ns, False)

    def _resumed(self, _: Machine) -> Resumed:
        down_ns = self._chooser.pick((0, 1, MINUTE_NS, 2 * HOUR_NS))
        self._wall_ns += down_ns
        return Resumed(self._wall_ns - down_ns, self._wall_ns)

    def _gap_reported(self, machine: Machine) -> PossibleGap:
        return PossibleGap(machine.vm_id, machine.now_ns, machine.now_ns + self._chooser.pick((0, MINUTE_NS, HOUR_NS)))

    def _ruled(self, _: Machine) -> Rules:
        bucket_ns = self._chooser.pick(_BUCKETS_NS)
        # A measured step crosses many buckets, but not so many that runs get slow.
        common_ns, apart_ns = (min(self._chooser.pick(_THRESHOLDS_NS), 100 * bucket_ns) for _ in range(2))
        both = ((CUSTOMERS[0], apart_ns), (CUSTOMERS[1], SECOND_NS))
        self._rules = Rules(
            gap_threshold_ns=common_ns,
            bucket_ns=bucket_ns,
            vanish_after_ns=self._chooser.pick((HOUR_NS, HOUR_NS, 10 * MINUTE_NS, SECOND_NS)),
            max_cores=self._chooser.pick((256, 1, 16)),
            max_gigabytes_per_second=self._chooser.pick((50, 1)),
            gap_thresholds=self._chooser.pick(((), (), ((CUSTOMERS[0], apart_ns),), both)),
        )
        return self._rules
