"""Summaries on their way out: the log's scopes, the watchers' queues, and that nobody holds up the fold."""

from __future__ import annotations

import asyncio
import logging
import threading
from array import array
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from door_fixtures import until

from billaged.aggregator.changes import Checkpoint
from billaged.aggregator.columns import TOTALS_WIDTH
from billaged.aggregator.engine import Engine
from billaged.aggregator.summary import Summary, SummaryBatch
from billaged.model.errors import NotServing, Overloaded
from billaged.model.quantity import ScoreWeights, Usage
from billaged.model.records import JournalEntry, Kind, MetricsBatch, Record, Tick, VmStarted, VmStopped
from billaged.model.time import HOUR_NANOS, NANOS
from billaged.summaries import broadcast
from billaged.summaries.broadcast import Broadcast
from billaged.summaries.feed import WatchedSummaries
from billaged.summaries.log import SummaryLog, exact_sums, readable_line, usage_fields
from billaged.summaries.mean import memory_mean_bytes
from billaged.wire.billing.v1.usage_stream_pb2 import UsageSummary

EPOCH = 500_000 * HOUR_NANOS
GIB, MIB = 2**30, 2**20
WEIGHTS = ScoreWeights()
KINDS = {MetricsBatch: Kind.METRICS, VmStarted: Kind.STARTED, VmStopped: Kind.STOPPED, Tick: Kind.TICK}


def interval(owners: dict[str, str]) -> SummaryBatch:
    """What the fold sums up of a minute in which each VM ran 10 s on 2 GiB, 20 s of CPU, 6 MiB of disk."""
    records: list[Record] = [Tick(EPOCH, 0, closes_interval=False)]
    for vm_id, customer_id in owners.items():
        rows = [(0, 2 * GIB, 0, 0, 0, 0, 0), (10, 2 * GIB, 20 * NANOS, 4 * MIB, 2 * MIB, 11, 12)]
        values = array("q", [value for row in rows for value in (EPOCH + row[0] * NANOS, *row[1:])])
        records += [VmStarted(vm_id, customer_id, EPOCH), MetricsBatch(vm_id, customer_id, values)]
    records.append(Tick(EPOCH + 60 * NANOS, 60 * NANOS, closes_interval=True))
    engine = Engine(Checkpoint())
    (batch,) = engine.fold(
        [JournalEntry(at, KINDS[type(record)], EPOCH, "", b"", record) for at, record in enumerate(records, 1)]
    ).summaries
    return batch


OWNERS = {"vm-1": "acme", "vm-2": "globex", "vm-3": "acme"}


# --- the log -------------------------------------------------------------------------


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="billaged.summary")
    return caplog


def test_a_line_for_each_vm_has_the_window_and_the_session(logged: pytest.LogCaptureFixture) -> None:
    SummaryLog("vm", WEIGHTS, readable=False).publish(interval(OWNERS))
    assert sorted(vars(record)["vm_id"] for record in logged.records) == ["vm-1", "vm-2", "vm-3"]
    line = vars(next(record for record in logged.records if vars(record)["vm_id"] == "vm-2"))
    assert line["message"] == "vm usage summary"
    assert (line["customer_id"], line["session_number"], line["final"], line["replayed"]) == ("globex", 1, False, False)
    assert (line["window_start"], line["window_end"]) == ("2027-01-15T08:00:00Z", "2027-01-15T08:01:00Z")
    assert (line["session_start"], line["session_end"]) == ("2027-01-15T08:00:00Z", "2027-01-15T08:00:10Z")
    usage = {
        "cpu_time_nanos": 20 * NANOS,
        "memory_mean_bytes": 2 * GIB,
        "memory_peak_bytes": 2 * GIB,
        "memory_byte_seconds": 20 * GIB,
        "disk_read_bytes": 4 * MIB,
        "disk_write_bytes": 2 * MIB,
        "network_rx_bytes": 11,
        "network_tx_bytes": 12,
        "samples": 2,
        "measured_seconds": "10",
        "gap_seconds": "0",
    }
    # CPU 20 + memory 0.5 * 2 GB + disk 0.3 * 6 MB; the window's memory is its mean over the whole minute.
    assert line["session"] == usage | {"resource_score": str(Decimal("22.800000"))}
    assert line["window"] == usage | {"resource_score": str(Decimal("21.966667"))}


def test_a_line_for_each_customer_adds_its_vms(logged: pytest.LogCaptureFixture) -> None:
    SummaryLog("customer", WEIGHTS, readable=False).publish(interval(OWNERS))
    lines = [vars(record) for record in logged.records]
    assert [(line["customer_id"], line["vms"]) for line in lines] == [("acme", 2), ("globex", 1)]
    assert [line["window"]["cpu_time_nanos"] for line in lines] == [40 * NANOS, 20 * NANOS]
    assert lines[0]["window"]["memory_byte_seconds"] == 40 * GIB
    assert lines[0]["window"]["memory_peak_bytes"] == 2 * GIB


def test_one_line_for_all(logged: pytest.LogCaptureFixture) -> None:
    log = SummaryLog("total", WEIGHTS, readable=False)
    log.publish(interval(OWNERS))
    log.publish(interval({}))
    (line,) = (vars(record) for record in logged.records)
    assert (line["vms"], line["customers"], line["window"]["samples"]) == (3, 2, 6)


def test_no_line_at_all(logged: pytest.LogCaptureFixture) -> None:
    SummaryLog("off", WEIGHTS, readable=False).publish(interval(OWNERS))
    assert logged.records == []


@pytest.mark.parametrize(("scope", "lines"), [("vm", 3), ("customer", 2), ("total", 1)])
def test_lines_for_eyes_say_the_same(logged: pytest.LogCaptureFixture, scope: str, lines: int) -> None:
    SummaryLog(scope, WEIGHTS, readable=True).publish(interval(OWNERS))
    texts = [record.getMessage() for record in logged.records]
    assert len(texts) == lines
    assert all("mem 2.00 GiB" in text and "score" in text for text in texts)


def test_what_a_stop_that_came_late_takes_back_is_below_zero_by_as_much() -> None:
    taken_back = Usage(measured_ns=-1_500_000_000, gap_ns=-1_750_000_000)
    fields = usage_fields(taken_back, 60 * NANOS, WEIGHTS)
    assert (fields["measured_seconds"], fields["gap_seconds"]) == ("-1.5", "-1.75")


def test_times_for_eyes_have_their_units() -> None:
    summary = interval({"vm-1": "acme"}).row(0)
    window = replace(summary.window, measured_ns=-300 * NANOS, gap_ns=607_000_000)
    line = readable_line(summary._replace(window=window), WEIGHTS)
    assert "measured -5m gap 600ms" in line
    assert "measured 10s gap 0s" in line


def test_sums_over_many_vms_do_not_wrap() -> None:
    """Three times nearly the largest int64, and a correction below zero: exact where int64 would wrap."""
    totals = np.zeros((4, TOTALS_WIDTH), dtype=np.int64)
    totals[:3, 0] = 2**63 - 1
    totals[3, 0] = -5
    totals[:, TOTALS_WIDTH - 1] = (7, 9, 8, 1)
    sums = exact_sums(totals)
    assert sums[0] == 3 * (2**63 - 1) - 5
    assert sums[-1] == 9, "a peak is the highest, not the sum"


class BrokenRow(SummaryBatch):
    """A batch with one VM whose summary nobody can make."""

    __slots__ = ()

    def row(self, index: int) -> Summary:
        if self.vm_ids[index] == "vm-2":
            raise ValueError("no such number")
        return super().row(index)


def test_one_vms_trouble_takes_no_other_line_with_it(logged: pytest.LogCaptureFixture) -> None:
    SummaryLog("vm", WEIGHTS, readable=False).publish(BrokenRow(*interval(OWNERS)))
    lines = [vars(record) for record in logged.records if record.name == "billaged.summary"]
    assert sorted(line["vm_id"] for line in lines if "vm_id" in line) == ["vm-1", "vm-3"]
    assert "the summary of VM vm-2 cannot be logged" in logged.text


def test_the_mean_of_what_is_left_of_a_stop_taken_back_lies_between_nothing_and_the_peak() -> None:
    """15 minutes less 15 minutes and a nanosecond, 256 TiB more than nothing: no mean of anything."""
    assert (
        memory_mean_bytes(Usage(memory_byte_nanos=2**48 * 900 * NANOS, measured_ns=1, memory_peak_bytes=2**48)) == 2**48
    )
    assert memory_mean_bytes(Usage(memory_byte_nanos=-5 * GIB, measured_ns=1, memory_peak_bytes=GIB)) == 0
    assert memory_mean_bytes(Usage(memory_byte_nanos=30 * GIB, measured_ns=10, memory_peak_bytes=4 * GIB)) == 3 * GIB


# --- the thread ----------------------------------------------------------------------


class Gate:
    """A reader that takes its time."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.given: list[SummaryBatch] = []

    def publish(self, batch: SummaryBatch) -> None:
        self.entered.set()
        if not self.opened.wait(20):
            raise TimeoutError("nobody opened the gate")
        self.given.append(batch)


class Broken:
    def publish(self, batch: SummaryBatch) -> None:
        raise ValueError("cannot write")


def test_a_slow_reader_loses_the_oldest_and_the_fold_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "_QUEUE_MAX", 3)
    gate = Gate()
    out = Broadcast([gate])
    out.start()
    batches = [interval({f"vm-{number}": "acme"}) for number in range(6)]
    out.publish(batches[0])
    assert gate.entered.wait(20)
    for batch in batches[1:]:
        out.publish(batch)
    assert out.dropped == 2
    gate.opened.set()
    out.stop()
    assert [batch.vm_ids[0] for batch in gate.given] == ["vm-0", "vm-3", "vm-4", "vm-5"]


def test_one_readers_trouble_is_not_the_others(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    gate.opened.set()
    out = Broadcast([Broken(), gate])
    out.start()
    out.publish(interval(OWNERS))
    out.publish(interval(OWNERS))
    out.stop()
    assert len(gate.given) == 2
    assert "cannot write" in caplog.text


# --- those who watch -----------------------------------------------------------------


class Reader:
    """Reads a stream to its end, in a task."""

    def __init__(
        self, feed: WatchedSummaries, customer_ids: tuple[str, ...] = (), vm_ids: tuple[str, ...] = ()
    ) -> None:
        self.seen: list[UsageSummary] = []
        self.task = asyncio.create_task(self._read(feed.watch(customer_ids, vm_ids)))

    async def _read(self, stream: AsyncIterator[UsageSummary]) -> None:
        async with aclosing(stream) as summaries:  # type: ignore[type-var]
            async for summary in summaries:
                self.seen.append(summary)


async def test_each_watcher_gets_what_it_asked_for() -> None:
    feed = WatchedSummaries(asyncio.get_running_loop(), WEIGHTS, 100)
    readers = {
        "all": Reader(feed),
        "acme": Reader(feed, ("acme",)),
        "vm-2": Reader(feed, (), ("vm-2", "vm-9")),
        "neither": Reader(feed, ("acme",), ("vm-2",)),
    }
    await until(lambda: len(feed._watchers) == 4, "all watch")
    await asyncio.to_thread(feed.publish, interval(OWNERS))
    await feed.end(5)
    await asyncio.gather(*(reader.task for reader in readers.values()))
    seen = {name: sorted(summary.vm_id for summary in reader.seen) for name, reader in readers.items()}
    assert seen == {"all": ["vm-1", "vm-2", "vm-3"], "acme": ["vm-1", "vm-3"], "vm-2": ["vm-2"], "neither": []}
    summary = readers["vm-2"].seen[0]
    assert (summary.window_start_nanos, summary.window_end_nanos) == (EPOCH, EPOCH + 60 * NANOS)
    assert (summary.session_start_nanos, summary.session_end_nanos) == (EPOCH, EPOCH + 10 * NANOS)
    assert (summary.session.cpu_time_nanos, summary.session.memory_byte_seconds) == (20 * NANOS, 20 * GIB)
    assert (summary.session_number, summary.final, summary.replayed) == (1, False, False)
    assert Decimal(summary.session.resource_score) == Decimal("22.8")


async def test_one_vms_trouble_takes_no_other_summary_with_it(caplog: pytest.LogCaptureFixture) -> None:
    feed = WatchedSummaries(asyncio.get_running_loop(), WEIGHTS, 100)
    readers = [Reader(feed), Reader(feed)]
    await until(lambda: len(feed._watchers) == 2, "both watch")
    await asyncio.to_thread(feed.publish, BrokenRow(*interval(OWNERS)))
    await feed.end(5)
    await asyncio.gather(*(reader.task for reader in readers))
    assert [sorted(summary.vm_id for summary in reader.seen) for reader in readers] == [["vm-1", "vm-3"]] * 2
    assert caplog.text.count("the summary of VM vm-2 cannot be given out") == 1


async def test_a_window_that_a_stop_was_taken_back_in_is_given_out() -> None:
    """A nanosecond is measured, with 15 minutes of all the memory there can be: its mean would not fit 64 bits."""
    minutes = 60 * NANOS
    records: list[Record] = [
        MetricsBatch("vm", "acme", array("q", [EPOCH, 1, 0, 0, 0, 0, 0])),
        VmStopped("vm", EPOCH + 15 * minutes),
        Tick(EPOCH, 0, closes_interval=True),
    ]
    restart = EPOCH + 15 * minutes + NANOS
    for time_ns, memory in ((restart, 2**48), (restart + 15 * minutes, 0), (restart + 15 * minutes + 1, 0)):
        records.append(MetricsBatch("vm", "acme", array("q", [time_ns, memory, 0, 0, 0, 0, 0])))
    records.append(Tick(EPOCH, 0, closes_interval=True))
    engine = Engine(Checkpoint())
    *_, batch = engine.fold(
        [JournalEntry(at, KINDS[type(record)], EPOCH, "", b"", record) for at, record in enumerate(records, 1)]
    ).summaries
    feed = WatchedSummaries(asyncio.get_running_loop(), WEIGHTS, 100)
    reader = Reader(feed)
    await until(lambda: len(feed._watchers) == 1, "it watches")
    await asyncio.to_thread(feed.publish, batch)
    await feed.end(5)
    await reader.task
    (summary,) = reader.seen
    assert (summary.window.measured_nanos, summary.window.memory_mean_bytes) == (1, 2**48)


async def test_one_that_falls_behind_is_cut_off_with_what_it_had(caplog: pytest.LogCaptureFixture) -> None:
    feed = WatchedSummaries(asyncio.get_running_loop(), WEIGHTS, 4)
    stream = feed.watch((), ())
    attentive = Reader(feed)
    # Its first step takes its place; then it reads nothing.
    first = asyncio.ensure_future(anext(stream))
    await until(lambda: len(feed._watchers) == 2, "both watch")
    feed.publish(interval(OWNERS))
    assert (await first).vm_id == "vm-1"
    await until(lambda: len(attentive.seen) == 3, "the first interval is read")
    feed.publish(interval(OWNERS))
    await until(lambda: len(attentive.seen) == 6, "the second interval is read")
    assert [(await anext(stream)).vm_id, (await anext(stream)).vm_id] == ["vm-2", "vm-3"]
    with pytest.raises(Overloaded, match="more than 4 summaries behind"):
        await anext(stream)
    assert len(feed._watchers) == 1
    await feed.end(5)
    await attentive.task


async def test_after_the_end_nobody_may_begin_to_watch() -> None:
    feed = WatchedSummaries(asyncio.get_running_loop(), WEIGHTS, 4)
    await feed.end(5)
    with pytest.raises(NotServing, match="stopping"):
        await anext(feed.watch((), ()))


async def test_the_end_waits_only_so_long_for_one_that_does_not_read() -> None:
    feed = WatchedSummaries(asyncio.get_running_loop(), WEIGHTS, 100)
    stream = feed.watch((), ())
    first = asyncio.ensure_future(anext(stream))
    await until(lambda: len(feed._watchers) == 1, "it watches")
    feed.publish(interval(OWNERS))
    await first
    async with asyncio.timeout(5):
        await feed.end(0.05)
    await stream.aclose()
