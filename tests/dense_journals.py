"""Journals of one VM in which nearly everything touches: few times, many points at them, in any order."""

from __future__ import annotations

import random

from auditor.events import (
    HOUR_NS,
    MINUTE_NS,
    SECOND_NS,
    Batch,
    Event,
    Heartbeat,
    Rules,
    Sample,
    Started,
    Stopped,
    Tick,
    What,
)
from auditor.machine import EPOCH_NS

_DAY_NS = 24 * HOUR_NS
_VM = "vm"
_MOST = 2**63 - 1


def crowded(seed: int, length: int) -> list[Event]:
    """Points at each other's times, thresholds of seconds, other customers, jumps of weeks, counters at the edge."""
    chance = random.Random(seed)
    rules = [
        Rules(gap_threshold_ns=seconds * SECOND_NS, bucket_ns=bucket_ns, gap_thresholds=apart)
        for seconds in (5, 20, 900)
        for bucket_ns in (MINUTE_NS, HOUR_NS)
        for apart in ((), (("a", 60 * SECOND_NS), ("b", 10 * SECOND_NS)))
    ]
    back, bounds = chance.choice((0.1, 0.3, 0.6)), chance.choice((0.05, 0.2, 0.4))
    wild, jumps = chance.choice((0, 0.05, 0.3)), chance.choice((0, 0, 0.02))
    others, ticks, edge = chance.choice((0, 0.05, 0.2)), chance.choice((0.05, 0.2)), chance.random() < 0.05
    times = [EPOCH_NS]

    def time_ns() -> int:
        if chance.random() < back:
            near = chance.choice(times[-12:])
            return chance.choice(
                (
                    near,
                    near + chance.choice((-1, 1)) * SECOND_NS,
                    chance.choice(times) + chance.randrange(-8, 9) * SECOND_NS,
                )
            )
        times.append(times[-1] + chance.choice((1, 1, 2, 3, 7, 30)) * SECOND_NS)
        if chance.random() < jumps:
            times[-1] += chance.choice((20, 34, 36)) * _DAY_NS
        return times[-1]

    def sample() -> Sample:
        at_ns = time_ns()
        ordinary = [100 + (at_ns - EPOCH_NS) // SECOND_NS % 10**7 * number for number in range(1, 6)]
        values = [
            chance.choice((0, value // 2, value + 50, value + 1_000, 10**9, value - 30))
            if chance.random() < wild
            else value
            for value in ordinary
        ]
        if edge and chance.random() < 0.3:
            values = [chance.choice((0, 1, _MOST, 2**62)) for _ in values]
        return Sample(at_ns, chance.choice((0, 1, 5, 2**30)), *(max(0, value) for value in values))

    whats: list[What] = [chance.choice(rules)]
    while len(whats) < length:
        which = chance.random()
        customer = "b" if chance.random() < others else "a"
        if which < ticks:
            wall_ns = times[-1] + chance.choice((0, 0, HOUR_NS, -HOUR_NS))
            whats.append(Tick(wall_ns, chance.choice((1, 5, 10, 60)) * MINUTE_NS, chance.random() < 0.5))
        elif which < ticks + 0.02:
            whats.append(chance.choice(rules))
        elif which < ticks + 0.05:
            whats.append(Heartbeat(chance.choice("ij"), chance.choice(((), (_VM,), (_VM, "other")))))
        elif which < ticks + 0.05 + bounds / 2:
            whats.append(Started(_VM, customer, 10**17 if edge and chance.random() < 0.3 else time_ns()))
        elif which < ticks + 0.05 + bounds:
            whats.append(Stopped(_VM, time_ns()))
        else:
            rows = [sample() for _ in range(chance.choice((1, 1, 1, 2, 4, 8)))]
            chance.shuffle(rows)
            whats.append(Batch(_VM, customer, rows))
    return _events(whats)


def with_closed_runs(seed: int, length: int) -> list[Event]:
    """Runs of which nothing is kept between open places; points into the early ones, and at the newest two."""
    chance = random.Random(seed)
    threshold = chance.choice((5, 60))
    now, value = EPOCH_NS, 1_000
    open_ns: list[int] = []
    # The customer's, and that of all others.
    apart, common = (("a", threshold * SECOND_NS),), chance.choice((threshold, 1, 900))
    rules = Rules(gap_threshold_ns=common * SECOND_NS, bucket_ns=chance.choice((MINUTE_NS, HOUR_NS)))
    whats: list[What] = [rules._replace(gap_thresholds=() if common == threshold else apart)]

    def batch(at_ns: int, value: int) -> Batch:
        counters = [max(0, value + number * chance.choice((0, 0, 1))) for number in range(5)]
        return Batch(_VM, "a", [Sample(at_ns, chance.choice((0, 7)), *counters)])

    while len(whats) < length:
        which = chance.random()
        if which < 0.06:
            whats.append(Tick(now, 10 * MINUTE_NS, False))
        elif which < 0.45:
            for _ in range(chance.choice((1, 3, 12))):
                now, value = now + chance.choice((1, 2, 3)) * SECOND_NS, value + chance.choice((0, 1, 5))
                whats.append(batch(now, value))
        elif which < 0.55:
            now += (threshold + chance.randrange(2, 20)) * SECOND_NS
            value = max(5, value + chance.choice((0, 10, -300, 40)))
            open_ns.append(now)
            whats.append(batch(now, value))
        elif which < 0.6:
            now += SECOND_NS
            open_ns.append(now)
            whats.append(chance.choice((Started(_VM, "a", now), Stopped(_VM, now))))
        elif which < 0.75:
            newest_ns = now - chance.choice((0, 0, 1, 2)) * SECOND_NS
            whats.append(chance.choice((Started(_VM, "a", newest_ns), Stopped(_VM, newest_ns))))
        elif open_ns:
            at_ns = chance.choice(open_ns) + chance.randrange(-2 * threshold, 2 * threshold) * SECOND_NS // 2
            late = value + chance.choice((-200, -50, -10, 0, 3, 8, 20, 60, 200, 1_000))
            whats.append(chance.choice((*[batch(at_ns, late)] * 5, Stopped(_VM, at_ns), Started(_VM, "a", at_ns))))
    return _events(whats)


def calm(seed: int, length: int) -> list[Event]:
    """A fleet whose counters rise: mostly folded over columns. Now and then a step is at somebody's threshold."""
    chance = random.Random(seed)
    apart = (("a", 60 * SECOND_NS), ("b", 600 * SECOND_NS))
    rules = [Rules(300 * SECOND_NS, bucket_ns, gap_thresholds=apart) for bucket_ns in (MINUTE_NS, HOUR_NS)]
    whats: list[What] = [chance.choice(rules)]
    vms = [(f"vm-{number}", "abc"[number % 3]) for number in range(9)]
    times, values = dict.fromkeys(vms, EPOCH_NS), dict.fromkeys(vms, 1_000)
    while len(whats) < length:
        if chance.random() < 0.01:
            whats.append(chance.choice((*rules, Rules(60 * SECOND_NS), Tick(max(times.values()), SECOND_NS, False))))
        vm_id, customer = vm = chance.choice(vms)
        samples = []
        for _ in range(chance.choice((1, 1, 3))):
            edge_ns = chance.choice((60, 300, 600)) * SECOND_NS + chance.choice((0, 1))
            times[vm] += edge_ns if chance.random() < 0.05 else chance.randrange(1, 60 * SECOND_NS)
            values[vm] += chance.choice((0, 1, 999_999_937))
            samples.append(Sample(times[vm], chance.choice((0, 7, 2**30 + 1)), *[values[vm]] * 5))
        whats.append(Batch(vm_id, customer, samples))
    return _events(whats)


def _events(whats: list[What]) -> list[Event]:
    return [Event(sequence, EPOCH_NS + sequence, "", what) for sequence, what in enumerate(whats, 1)]
