"""A machine: one VM as its sender sees it, with counters that misbehave and a memory of what it sent.

It does not know what is billed; it only knows where the edges are.
"""

from __future__ import annotations

from auditor.chooser import Chooser
from auditor.events import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS, Batch, Rules, Sample

MAX_COUNTER = 2**62
MAX_MEMORY_BYTES = 2**48
# 2027, on an hour.
EPOCH_NS = 1_800_000_000 * SECOND_NS

_MEMORY_BYTES = (0, 1, 2**20, 2**30 + 1, 64 * 2**30, MAX_MEMORY_BYTES)
_LONG_NS = (30 * HOUR_NS, 30 * HOUR_NS, 36 * DAY_NS)
_FIRST_VALUES = (0, 5, 10**12, MAX_COUNTER - 10**13)


class Machine:
    def __init__(self, chooser: Chooser, vm_id: str, customer_id: str) -> None:
        self._chooser = chooser
        self.vm_id = vm_id
        self.customer_id = customer_id
        # The newest time it has spoken of.
        self.now_ns = EPOCH_NS + chooser.pick((0, -1, 1, 59 * MINUTE_NS, chooser.between(0, HOUR_NS)))
        self.counters = [chooser.pick(_FIRST_VALUES)] * 5
        # Each counter's value before its latest decrease: around it the mark decides.
        self.before_decrease = list(self.counters)
        self.sent: list[Sample] = []
        self.batches: list[Batch] = []
        # Times of starts and stops that were sent.
        self.starts_ns: list[int] = []
        self.stops_ns: list[int] = []
        # A stop was sent and its sender believes it: a start comes next, or a sample that contradicts it.
        self.down = False

    def next_sample(self, rules: Rules) -> Sample:
        """One more sample, at or after the newest."""
        step_ns = self._step(rules)
        self.now_ns += step_ns
        for index, value in enumerate(self.counters):
            changed = min(max(self._changed(index, value, step_ns, rules), 0), MAX_COUNTER)
            if changed < value:
                self.before_decrease[index] = value
            self.counters[index] = changed
        sample = Sample(self.now_ns, self._chooser.pick(_MEMORY_BYTES), *self.counters)
        self.sent.append(sample)
        return sample

    def stray_sample(self, rules: Rules) -> Sample:
        """A sample that should not be: sent before, changed, or at an old time."""
        if not self.sent:
            return self.next_sample(rules)
        old = self._chooser.pick((self.sent[-1], self._chooser.pick(self.sent)))
        if self._chooser.pick((True, True, False)):
            return self._between()
        return self._chooser.pick(
            (
                old,
                old._replace(memory_bytes=old.memory_bytes ^ 1),
                old._replace(disk_write_bytes=old.disk_write_bytes + 1),
                old._replace(time_ns=old.time_ns - self._chooser.pick((1, SECOND_NS, rules.bucket_ns))),
                old._replace(time_ns=old.time_ns + 1),
                old._replace(time_ns=old.time_ns - self._chooser.pick((HOUR_NS, 34 * DAY_NS, 36 * DAY_NS))),
            )
        )

    def _between(self) -> Sample:
        """A sample that was held up: in the newest step, in an old one, in a gap, or before a stop."""
        pick, between = self._chooser.pick, self._chooser.between
        in_time = sorted(set(self.sent))
        index = pick((len(in_time) - 1, between(0, len(in_time) - 1)))
        after = in_time[index]
        before = in_time[index - 1] if index else after._replace(time_ns=after.time_ns - HOUR_NS)
        if self.stops_ns and self.stops_ns[-1] > in_time[-1].time_ns and pick((False, True)):
            # The counters of the last sample do: nobody was there to see them go on.
            before = after = in_time[-1]._replace(time_ns=self.stops_ns[-1])
            before = before._replace(time_ns=in_time[-1].time_ns)
        time_ns = pick((after.time_ns - 1, (before.time_ns + after.time_ns) // 2, before.time_ns + 1))
        counters = [
            pick(((low + high) // 2, low, high)) for low, high in zip(before.counters, after.counters, strict=True)
        ]
        index, mark = between(0, 4), pick(self.before_decrease)
        # Now and then one of them falls, or passes a mark.
        counters[index] = pick((*(counters[index],) * 6, max(0, before.counters[index] - 1), mark, counters[index] + 1))
        held = Sample(max(1, time_ns), pick(_MEMORY_BYTES), *counters)
        self.sent.append(held)
        return held

    def some_time(self, rules: Rules) -> int:
        """A time for a start or a stop: often exactly one that matters already."""
        pick = self._chooser.pick
        known = (
            self.now_ns,
            self.stops_ns[-1] if self.stops_ns else self.now_ns,
            self.sent[0].time_ns if self.sent else self.now_ns,
            self.starts_ns[-1] if self.starts_ns else self.now_ns,
            self._chooser.pick(self.sent).time_ns if self.sent else self.now_ns,
            self._chooser.pick(self.stops_ns) if self.stops_ns else self.now_ns,
            self.sent[-1].time_ns if self.sent else self.now_ns,
            self.now_ns // rules.bucket_ns * rules.bucket_ns,
        )
        offsets = (0, 0, 0, 0, 0, 0, 1, -1, SECOND_NS, -SECOND_NS, 7 * MINUTE_NS, -7 * MINUTE_NS)
        edges = (rules.gap_threshold_ns, -rules.gap_threshold_ns, rules.gap_threshold_ns + 1, 3 * HOUR_NS)
        return max(1, pick(known) + pick((*offsets, *edges)))

    def _step(self, rules: Rules) -> int:
        """How long until the next sample: dense where a rule changes its mind."""
        to_edge_ns = rules.bucket_ns - self.now_ns % rules.bucket_ns
        dull = (MINUTE_NS, 5 * MINUTE_NS, SECOND_NS, 1, 0)
        edges = (to_edge_ns, to_edge_ns - 1, to_edge_ns + 1, to_edge_ns + 2 * rules.bucket_ns)
        threshold = (rules.gap_threshold_ns, rules.gap_threshold_ns + 1, max(0, rules.gap_threshold_ns - 1))
        odd = (self._chooser.between(1, 2 * HOUR_NS), self._chooser.between(1, 10**9), self._chooser.pick(_LONG_NS))
        return self._chooser.pick((*dull, *edges, *threshold, *odd))

    def _changed(self, index: int, value: int, step_ns: int, rules: Rules) -> int:
        """What a counter shows next: mostly more, by as little as 1 or by as much as the caps allow."""
        rate = rules.max_cores if index == 0 else rules.max_gigabytes_per_second
        most = rate * (step_ns + SECOND_NS)
        mark = self.before_decrease[index]
        dull = (value, value + 1, value + 7, value + 999_999_937, value + step_ns, value + most // 3)
        kind = self._chooser.between(0, 19)
        if kind < 18:
            return dull[kind % len(dull)]
        return self._chooser.pick(
            (
                value + most,
                value + most + 1,
                value - 1,
                0,
                value // 2,
                mark,
                mark + 1,
                mark - 1,
                value + 2**61,
            )
        )
