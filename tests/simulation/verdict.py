"""The bill against the truth: no counter, no memory and no time beyond what was really used.

Three bounds, which hold for whatever part of the points was taken, and why:

**Counters.** A step within one boot, in which counters never fall, bills at most what the counter rose by; marks
stand above the last value, so they only make that less. A step into another boot bills at most the counter's
value there: the whole of it after a start, else its difference to the last. So a VM's counters bill at most the sum
over its boots of their highest sample, less the very first sample where no start opened the VM's first session.
Where two boots alternate (a live migration to counters from zero, a failed read) each leaves its value as the newest
mark when it is left downwards, and meets that mark or the other's higher value when it comes back: so it bills its
own rise only. Where a third comes between, a value that comes back cannot be told from a rise since a reset; and where
clocks make a boot's counters fall, or show some of an earlier boot after a start, nothing can be said: such VMs are
counted as ``untrusted``.

**Memory x time.** At any time at most the newest sample's memory is billed, and only for the gap threshold after it.
So no more than the most memory of any sample in the last gap threshold, over the time between the points.

**Time.** A session begins and ends at points, and sessions do not overlap: a VM lives no longer than from its
first point to its last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from itertools import pairwise

from auditor.bill import Bill
from auditor.events import COUNTER_NAMES, Event, Rules
from auditor.invariants import Named
from auditor.usage import MEMORY_UNIT_BYTE_NANOS

from simulation.points import Points, points_of
from simulation.truth import Truth


def of_truth(bill: Bill, events: list[Event], truth: Truth, seen: Counter[str]) -> list[str]:
    """What is billed beyond the truth; ``seen`` counts VMs that can be judged whole."""
    rules = [event.what for event in events if isinstance(event.what, Rules)]
    sessions: defaultdict[str, list[Named]] = defaultdict(list)
    for row in bill.rows("sessions"):
        sessions[row["vm_id"]].append(row)
    found = []
    for vm_id, points in points_of(events).items():
        rows = sorted(sessions[vm_id], key=lambda row: (row["start_ns"], row["last_ns"]))
        if not rows:
            continue
        found += _times(vm_id, rows, points)
        customers = {row["customer_id"] for row in rows}
        longest_ns = max(each.for_customer(customer).gap_threshold_ns for each in rules for customer in customers)
        found += _memory(vm_id, rows, points, longest_ns)
        if in_order(vm_id, points, truth):
            seen["VMs trusted"] += 1
            found += _counters(vm_id, rows, points, truth)
        else:
            seen["VMs untrusted"] += 1
    return found


def _times(vm_id: str, rows: list[Named], points: Points) -> list[str]:
    found = []
    times_ns = points.times_ns
    known = set(times_ns)
    lived_ns = 0
    for row in rows:
        until_ns = row["last_ns"] if row["end_ns"] is None else row["end_ns"]
        lived_ns += until_ns - row["start_ns"]
        if not {row["start_ns"], row["last_ns"], until_ns} <= known:
            found.append(f"{vm_id}: a session has a time that no point has: {row}")
    if lived_ns > times_ns[-1] - times_ns[0]:
        found.append(f"{vm_id}: lived {lived_ns} ns, but there are points of {times_ns[-1] - times_ns[0]} ns only")
    return found


def _memory(vm_id: str, rows: list[Named], points: Points, threshold_ns: int) -> list[str]:
    billed = sum(row["memory_mib_seconds"] * MEMORY_UNIT_BYTE_NANOS + row["memory_rest_byte_nanos"] for row in rows)
    sampled_ns = [sample.time_ns for sample in points.samples]
    most, oldest = 0, 0
    for time_ns, next_ns in pairwise(points.times_ns):
        while oldest < len(sampled_ns) and sampled_ns[oldest] < time_ns - threshold_ns:
            oldest += 1
        newest = bisect_left(sampled_ns, time_ns + 1)
        highest = max((sample.memory_bytes for sample in points.samples[oldest:newest]), default=0)
        most += highest * min(next_ns - time_ns, threshold_ns)
    return [f"{vm_id}: memory x time {billed} is more than there was, {most}"] if billed > most else []


def _counters(vm_id: str, rows: list[Named], points: Points, truth: Truth) -> list[str]:
    first = rows[0]
    highest: dict[int, tuple[int, ...]] = {}
    for sample in points.samples:
        boot = truth.stream_of(vm_id, sample).boot
        highest[boot] = tuple(map(max, highest.get(boot, sample.counters), sample.counters))
    used = [sum(values) for values in zip(*highest.values(), strict=True)] or [0] * 5
    if not first["explicit"]:
        # Whoever came first at that time is the baseline; the lowest is the safe one.
        begun = [sample for sample in points.samples if sample.time_ns == first["start_ns"]]
        for index in range(5):
            used[index] -= min(sample.counters[index] for sample in begun)
    return [
        f"{vm_id}: {name} billed {billed}, truly used {most} since its first baseline"
        for index, (name, most) in enumerate(zip(COUNTER_NAMES, used, strict=True))
        if (billed := sum(row[name] for row in rows)) > most
    ]


def in_order(vm_id: str, points: Points, truth: Truth) -> bool:
    """Whether the times of a VM's points tell what came after what, as far as the bound on counters needs it."""
    began: dict[int, int] = {}
    ended: dict[int, int] = {}
    # By stream: when it was read last, and what it showed.
    latest: dict[int, tuple[int, tuple[int, ...]]] = {}
    # Of two at one time either may be taken, and the later stream's is as good as any.
    read = sorted((sample.time_ns, truth.stream_of(vm_id, sample).number, sample) for sample in points.samples)
    for time_ns, number, sample in read:
        before_ns, counters = latest.get(number, (time_ns, sample.counters))
        if before_ns != time_ns and any(a > b for a, b in zip(counters, sample.counters, strict=True)):
            return False
        latest[number] = (time_ns, tuple(map(max, counters, sample.counters)))
        began.setdefault(number, time_ns)
        ended[number] = time_ns
    if _mixed(vm_id, [number for _, number, _ in read], truth):
        return False
    for start_ns in points.starts_ns:
        first = truth.stream_of_start(vm_id, start_ns).number
        if any(ended[number] > start_ns for number in ended if number < first):
            return False
        if any(began[number] < start_ns for number in began if number >= first):
            return False
    return not any(_moves_while_it_reads(vm_id, stream.number, began, points, truth) for stream in truth.streams[vm_id])


def _mixed(vm_id: str, numbers: list[int], truth: Truth) -> bool:
    """Whether two others are read, or more, between the first read of a stream and its last.

    All in between counts, since any of it may be refused. Failed reads stand at zero: that bills nothing.
    """
    failed = truth.failed_reads_of(vm_id)
    first_place: dict[int, int] = {}
    last_place: dict[int, int] = {}
    for place, number in enumerate(numbers):
        first_place.setdefault(number, place)
        last_place[number] = place
    return any(
        len({*numbers[first_place[number] : last_place[number]]} - {number}) > 1
        for number in first_place
        if failed is None or number != failed.number
    )


def _moves_while_it_reads(vm_id: str, number: int, began: dict[int, int], points: Points, truth: Truth) -> bool:
    """Whether a stream that carries another's counters on begins before the other has stopped rising."""
    stream = truth.streams[vm_id][number]
    if stream.boot == number or number not in began:
        return False
    return any(
        sample.time_ns >= began[number]
        and truth.stream_of(vm_id, sample).number < number
        and any(value < begun for value, begun in zip(sample.counters, stream.begun, strict=True))
        for sample in points.samples
    )
