"""The fold alone, in this process: a group of samples, and the end of an interval."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import mean, median
from typing import NamedTuple

from bench.collector import calm_collector
from bench.fleet import Fleet, Journaled
from bench.report import Report, percentile, ratio
from billaged.aggregator.changes import Checkpoint
from billaged.aggregator.engine import Engine
from billaged.model.records import COUNTERS, JournalEntry, Kind, MetricsBatch, Tick
from billaged.model.time import HOUR_NANOS, MINUTE_NANOS, NANOS

GROUP = 1_000
TARGET_MICROSECONDS = 0.5
TARGET_HELD_MILLISECONDS = 50.0
# The aggregator flushes when this many rows wait for the ledger.
_FLUSH_ROWS = 200_000
_START_NANOS = 500_000 * HOUR_NANOS
_STEP_NANOS = 5 * MINUTE_NANOS


class Size(NamedTuple):
    vms: tuple[int, ...] = (1_000, 100_000)
    groups: int = 300
    interval_vms: int = 100_000
    intervals: int = 5


class Fold:
    """An engine that knows a fleet, each VM with its first sample."""

    def __init__(self, vms: int) -> None:
        self.fleet = Fleet(vms, _START_NANOS, _STEP_NANOS)
        self.engine = Engine(Checkpoint())
        self._journal = Journaled()
        for entries in self.round(0):
            self.engine.fold(entries)
        self.engine.collect()

    def round(self, nth: int) -> Iterator[list[JournalEntry]]:
        """The nth sample of every VM, in groups, each made when it is asked for."""
        for first in range(0, self.fleet.vms, GROUP):
            vms = range(first, min(first + GROUP, self.fleet.vms))
            yield self._journal.entries(Kind.METRICS, (self.fleet.sample(vm, nth) for vm in vms))

    def groups(self) -> Iterator[list[JournalEntry]]:
        """Round after round, for ever."""
        nth = 0
        while True:
            nth += 1
            yield from self.round(nth)

    def close_interval(self, nth: int) -> float:
        """End an interval after the nth round; the seconds that it took."""
        tick = Tick(_START_NANOS + nth * _STEP_NANOS + NANOS, MINUTE_NANOS, closes_interval=True)
        self._journal.position += 1
        entry = JournalEntry(self._journal.position, Kind.TICK, tick.time_ns, "", b"", tick)
        began = time.perf_counter()
        (summaries,) = self.engine.fold([entry]).summaries
        seconds = time.perf_counter() - began
        if len(summaries) != self.fleet.vms:
            raise RuntimeError(f"{len(summaries)} summaries of {self.fleet.vms} VMs")
        return seconds


def fold(report: Report, size: Size) -> None:
    """Microseconds a sample."""
    report.title(f"fold: groups of {GROUP:,} single-sample VMs, five minutes apart, merges included")
    for vms in size.vms:
        known = Fold(vms)
        plain = PlainFold()
        taken: list[float] = []
        plain_taken: list[float] = []
        groups = known.groups()
        with calm_collector():
            for turn in range(size.groups):
                entries = next(groups)
                # As the aggregator does before it takes the lock; it also leaves the ids hashed, as the door would.
                if known.engine.unknown_vms(entries):
                    raise RuntimeError("a VM of the fleet is unknown")
                began = time.perf_counter()
                known.engine.fold(entries)
                taken.append((time.perf_counter() - began) * 1e6 / len(entries))
                if turn % 5 == 0:
                    began = time.perf_counter()
                    plain.fold(entries)
                    plain_taken.append((time.perf_counter() - began) * 1e6 / len(entries))
                if known.engine.waiting_rows() > _FLUSH_ROWS:
                    known.engine.collect()
        baseline = median(plain_taken)
        report.line(f"{vms:,} VMs known: plain loop (baseline)", f"{baseline:.2f} us")
        note = f"{ratio(mean(taken), baseline)}; median {median(taken):.2f} us, p99 {percentile(taken, 99):.2f} us"
        report.line(f"{vms:,} VMs known: the fold, mean", f"{mean(taken):.2f} us", note)
        report.target(
            f"at most {TARGET_MICROSECONDS} us a sample, {vms:,} VMs known",
            f"mean {mean(taken):.2f} us",
            mean(taken) <= TARGET_MICROSECONDS,
        )


def interval(report: Report, size: Size) -> None:
    """How long the lock is held when an interval ends."""
    vms = size.interval_vms
    report.title(f"interval: its end with {vms:,} VMs touched")
    known = Fold(vms)
    plain = PlainFold()
    closing: list[float] = []
    collecting: list[float] = []
    plain_closing: list[float] = []
    with calm_collector():
        for nth in range(1, size.intervals + 1):
            for entries in known.round(nth):
                known.engine.fold(entries)
                plain.fold(entries)
            closing.append(known.close_interval(nth) * 1e3)
            began = time.perf_counter()
            known.engine.collect()
            collecting.append((time.perf_counter() - began) * 1e3)
            began = time.perf_counter()
            plain.close()
            plain_closing.append((time.perf_counter() - began) * 1e3)
    baseline = median(plain_closing)
    report.line("plain loop over the VMs (baseline)", f"{baseline:.0f} ms")
    note = f"{ratio(median(closing), baseline)}; slowest {max(closing):.1f} ms"
    report.line("the end of the interval, median", f"{median(closing):.1f} ms", note)
    note = "without the lock: all of them changed since the last flush"
    report.line("what a flush takes out, median", f"{median(collecting):.0f} ms", note)
    report.target(
        f"at most {TARGET_HELD_MILLISECONDS:.0f} ms for {vms:,} VMs",
        f"{median(closing):.1f} ms",
        median(closing) <= TARGET_HELD_MILLISECONDS,
    )


class PlainFold:
    """What anyone would write first: one VM at a time, its totals in a list. No gaps, no buckets, no anomalies."""

    def __init__(self) -> None:
        # The newest sample of each VM, the totals so far, and those at the interval's beginning.
        self._last: dict[str, Sequence[int]] = {}
        self._totals: dict[str, list[int]] = {}
        self._base: dict[str, list[int]] = {}

    def fold(self, entries: Sequence[JournalEntry]) -> None:
        for entry in entries:
            batch = entry.record
            if not isinstance(batch, MetricsBatch):
                continue
            sample = batch.samples
            last = self._last.get(batch.vm_id)
            self._last[batch.vm_id] = sample
            if last is None:
                self._totals[batch.vm_id] = [0] * (COUNTERS + 2)
                continue
            totals = self._totals[batch.vm_id]
            if batch.vm_id not in self._base:
                self._base[batch.vm_id] = totals.copy()
            for index in range(COUNTERS):
                totals[index] += max(0, sample[index + 2] - last[index + 2])
            totals[COUNTERS] += last[1] * (sample[0] - last[0])
            totals[COUNTERS + 1] += 1

    def close(self) -> list[tuple[str, list[int]]]:
        """The usage of every VM in the interval."""
        windows = [
            (vm_id, [now - then for now, then in zip(self._totals[vm_id], base, strict=True)])
            for vm_id, base in self._base.items()
        ]
        self._base.clear()
        return windows
