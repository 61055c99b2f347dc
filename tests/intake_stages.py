"""Intake, journal writer, journal and fold, joined as the daemon joins them; the disk can be made to wait."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

from client_fixtures import NOW_NS, SECOND, ToldClock

from billaged.aggregator.summary import SummaryBatch
from billaged.aggregator.worker import Aggregator
from billaged.intake.clock import ClockWatch
from billaged.intake.journal import JournalRow
from billaged.intake.service import Intake
from billaged.intake.sqlite import SqliteJournal
from billaged.intake.validation import Limits
from billaged.intake.writer import JournalWriter
from billaged.ledger.database import open_for_writing
from billaged.ledger.store import LedgerStore
from billaged.model.records import MetricsBatch, Record, VmStarted, VmStopped
from billaged.wire.billing.v1 import billing_pb2 as pb


class GatedJournal(SqliteJournal):
    """The real journal; each commit waits at a gate first, as it would for a slow disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = 0  # commits that came to it
        self.group_sizes: list[int] = []

    def append(self, rows: Sequence[JournalRow]) -> None:
        self.at_gate += 1
        if not self.gate.wait(20):
            raise TimeoutError("nobody opened the gate")
        super().append(rows)
        self.group_sizes.append(len(rows))


class NoSink:
    def publish(self, batch: SummaryBatch) -> None:
        """Nobody reads summaries here."""


class Stages:
    """Intake, writer, journal and fold, joined as the daemon joins them."""

    def __init__(self, folder: Path, **bounds: int) -> None:
        self.path = folder / "journal.db"
        self.fatal: list[BaseException] = []
        self.clock = ToldClock()
        self.journal = GatedJournal(self.path)
        self.ledger = LedgerStore(open_for_writing(None), self.journal.journal_id)
        self.fold = Aggregator(self.ledger, NoSink(), self.clock, SECOND, self.fatal.append)
        self.writer = JournalWriter(
            self.journal,
            self.fold,
            asyncio.get_running_loop(),
            bounds.get("group_max_records", 1000),
            bounds.get("group_max_bytes", 2**20),
            self.fatal.append,
        )
        self.intake = Intake(
            self.writer,
            self.fold,
            ClockWatch(self.clock, 0),
            Limits(),
            bounds.get("queue_max_records", 1000),
            bounds.get("queue_max_bytes", 2**20),
            bounds.get("max_vms", 1000),
        )
        self.intake.open()

    def submit(self, record: Record) -> asyncio.Task[None]:
        return asyncio.create_task(self.intake.submit(record, payload_of(record), "test"))

    def rows(self) -> list[tuple]:
        """What another process would find in the file now."""
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(
                "SELECT sequence, kind, caller, payload FROM journal ORDER BY sequence"
            ).fetchall()


@asynccontextmanager
async def stages(folder: Path, *, folding: bool = True, **bounds: int) -> AsyncIterator[Stages]:
    all_of_them = Stages(folder, **bounds)
    all_of_them.writer.start()
    if folding:
        all_of_them.fold.start()
    try:
        yield all_of_them
    finally:
        all_of_them.journal.gate.set()
        await asyncio.to_thread(all_of_them.writer.stop)
        await asyncio.to_thread(all_of_them.fold.stop)
        all_of_them.ledger.close()
        all_of_them.journal.close()


def metrics(vm_id: str, customer_id: str = "acme", time_ns: int = NOW_NS) -> MetricsBatch:
    return MetricsBatch(vm_id, customer_id, array("q", [time_ns, 1, 2, 3, 4, 5, 6]))


def payload_of(record: Record) -> bytes:
    if isinstance(record, MetricsBatch):
        request = pb.SendMetricsBatchRequest(vm_id=record.vm_id, customer_id=record.customer_id)
        sample = request.metrics.add(memory_usage_bytes=1, cpu_time_nanos=2, disk_read_bytes=3, disk_write_bytes=4)
        sample.network_rx_bytes, sample.network_tx_bytes = 5, 6
        sample.timestamp.seconds, sample.timestamp.nanos = divmod(record.samples[0], SECOND)
        return request.SerializeToString()
    if isinstance(record, VmStarted):
        return pb.NotifyVmStartedRequest(
            vm_id=record.vm_id, customer_id=record.customer_id, start_time=record.start_ns
        ).SerializeToString()
    if isinstance(record, VmStopped):
        return pb.NotifyVmStoppedRequest(vm_id=record.vm_id, stop_time=record.stop_ns).SerializeToString()
    raise TypeError(record)
