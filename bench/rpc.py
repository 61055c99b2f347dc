"""Durable calls a second against an empty handler, and how long an acknowledgement takes at half that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.empty import METHOD, SERVICE
from bench.fleet import Fleet
from bench.load import LoadResult, closed_loop, open_loop
from bench.process import Running, daemon, empty_server, scratch, sync_milliseconds
from bench.report import Report, percentile, ratio, spread

PATH = f"/{SERVICE}/{METHOD}"
CONNECTIONS = 4
STREAMS = 32
TARGET_RATIO = 0.6
TARGET_P99_MILLISECONDS = 50.0
# 300 s ahead is what the daemon takes at most.
_STEP_NANOS = 250_000_000


class Size(NamedTuple):
    """``rounds`` of one call for every VM in ``turns`` turns, product and baselines alternating."""

    vms: int = 1_000
    rounds: int = 6
    turns: int = 4


def rpc(report: Report, size: Size) -> None:
    """Calls a second with 128 in flight."""
    report.title(
        f"rpc: one-sample SendMetricsBatch of {size.vms:,} VMs, {CONNECTIONS * STREAMS} in flight"
        f" over {CONNECTIONS} connections; each server on its own, in turns"
    )
    with _Scene(report, size, ("raw", "parsed", "door")) as scene:
        rates: dict[str, list[float]] = {name: [] for name in scene.servers}
        p99: dict[str, list[float]] = {name: [] for name in scene.servers}
        busy = 0.0
        for payloads in scene.turns(size.turns):
            for name in scene.servers:
                result = scene.closed(name, payloads)
                rates[name].append(result.per_second)
                p99[name].append(percentile(result.latencies, 99) * 1e3)
                busy = max(busy, result.busy)
        for name, text in (
            ("parsed", "empty handler, parsed messages (baseline)"),
            ("raw", "empty handler, bytes"),
            ("door", "billaged's door, no intake behind it"),
            ("durable", "billaged, durable"),
        ):
            share = [mine / base for mine, base in zip(rates[name], rates["parsed"], strict=True)]
            note = f"{median(share):.2f} of the baseline ({spread(share)}), p99 {median(p99[name]):.0f} ms"
            report.line(text, f"{median(rates[name]):,.0f} /s", note)
        report.line("the load's own share of a core", f"{busy:.2f}", "at most; near 1.00 it measures itself")
        scene.account()
        share = [mine / base for mine, base in zip(rates["durable"], rates["parsed"], strict=True)]
        held = median(share) >= TARGET_RATIO
        report.target(f"at least {TARGET_RATIO} of an empty handler", f"{median(share):.2f}", held)


def latency(report: Report, size: Size) -> None:
    """Time to the acknowledgement at half the rate that the daemon can take."""
    report.title("latency: calls at a steady rate, from when each was due to its acknowledgement")
    with _Scene(report, size, ("parsed",)) as scene:
        most = median(scene.closed("durable", payloads).per_second for payloads in scene.turns(2))
        rate = most / 2
        report.line("rate", f"{rate:,.0f} /s", f"half of {most:,.0f} /s")
        found: dict[str, list[list[float]]] = {"parsed": [], "durable": []}
        for payloads in scene.turns(max(1, size.turns - 1)):
            for name, results in found.items():
                results.append(scene.open(name, payloads, rate).latencies)
        p99 = {}
        for name, text in (("parsed", "empty handler (baseline)"), ("durable", "billaged, durable")):
            p50, p99[name] = (median(percentile(each, at) for each in found[name]) * 1e3 for at in (50, 99))
            worst = max(map(max, found[name])) * 1e3
            report.line(text, f"p99 {p99[name]:.1f} ms", f"p50 {p50:.1f} ms, slowest {worst:.1f} ms")
        scene.account()
        held = p99["durable"] < TARGET_P99_MILLISECONDS
        measured = f"{p99['durable']:.1f} ms, {ratio(p99['durable'], p99['parsed'])}"
        report.target(f"ack p99 under {TARGET_P99_MILLISECONDS:.0f} ms at half the load", measured, held)


class _Scene:
    """The daemon and its baselines, running, and a fleet whose clocks go on. A context manager."""

    def __init__(self, report: Report, size: Size, baselines: tuple[str, ...]) -> None:
        self._report = report
        self._size = size
        self._baselines = baselines
        self._stack = ExitStack()
        self.servers: dict[str, Running] = {}
        # The next sample of every VM, and the calls that the daemon was sent and acknowledged.
        self._next = 0
        self._sent = 0
        self._acknowledged = 0

    def __enter__(self) -> _Scene:
        with ExitStack() as stack:
            directory: Path = stack.enter_context(scratch())
            self._report.line("write and fdatasync of 4 KiB", f"{sync_milliseconds(directory):.2f} ms")
            for name in self._baselines:
                self.servers[name] = stack.enter_context(empty_server(name, directory))
            self.servers["durable"] = stack.enter_context(daemon(directory))
            self._fleet = Fleet(self._size.vms, time.time_ns(), _STEP_NANOS)
            # Every VM's first sample opens its session, which costs more and comes once in a VM's life.
            first = self._payloads(1)
            for name in self.servers:
                self.closed(name, first)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def turns(self, count: int) -> Iterator[list[list[bytes]]]:
        """The payloads of one turn after the other, for each connection the samples of its own VMs."""
        for _ in range(count):
            yield self._payloads(self._size.rounds)

    def _payloads(self, rounds: int) -> list[list[bytes]]:
        numbers = range(self._next, self._next + rounds)
        self._next += rounds
        return [
            [self._fleet.sample(vm, nth) for nth in numbers for vm in range(connection, self._size.vms, CONNECTIONS)]
            for connection in range(CONNECTIONS)
        ]

    def closed(self, name: str, payloads: list[list[bytes]]) -> LoadResult:
        return self._count(name, closed_loop(self.servers[name].port, PATH, payloads, STREAMS))

    def open(self, name: str, payloads: list[list[bytes]], per_second: float) -> LoadResult:
        return self._count(name, open_loop(self.servers[name].port, PATH, payloads, per_second))

    def _count(self, name: str, result: LoadResult) -> LoadResult:
        if result.failed:
            self._report.line(
                f"{name}: calls that failed", f"{result.failed} of {result.calls}", repr(result.why[-60:])
            )
        if name == "durable":
            self._sent += result.calls
            self._acknowledged += result.calls - result.failed
            # What it still has to write belongs to its own turn.
            self.servers[name].settle()
        return result

    def account(self) -> None:
        """Compare what was acknowledged with what the daemon has folded.

        Raises:
            RuntimeError: an acknowledged sample is missing, or one is there that nobody sent.
        """
        folded = self.servers["durable"].settle()
        if not self._acknowledged <= folded <= self._sent:
            raise RuntimeError(f"{self._acknowledged} of {self._sent} calls acknowledged, but {folded} samples folded")
        self._report.line("acknowledged calls, samples folded", f"{self._acknowledged:,}", f"{folded:,}")
