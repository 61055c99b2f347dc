"""Data directories made of real journal rows: appended, folded, committed, as the daemon does it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from billaged.aggregator.summary import SummaryBatch
from billaged.aggregator.worker import Aggregator
from billaged.daemon import SystemClock
from billaged.intake.chain import rows_after
from billaged.intake.journal import entry_of
from billaged.intake.sqlite import SqliteJournal
from billaged.ledger import database
from billaged.ledger.reader import LedgerReader, reading
from billaged.ledger.store import LedgerStore
from billaged.model.records import (
    FoldRules,
    Heartbeat,
    MetricsBatch,
    PossibleGap,
    Record,
    Resumed,
    Tick,
    VmStarted,
    VmStopped,
)
from billaged.model.time import NANOS, parse_instant
from billaged.wire import codec
from billaged.wire.billing.v1 import billing_pb2 as pb

GIB = 2**30
MIB = 2**20
DAY = "2026-11-10"


def at(clock: str, day: str = DAY) -> int:
    """Nanoseconds of a time on the day that most of it happens on."""
    return parse_instant(f"{day}T{clock}Z")


def batch(vm_id: str, *samples: tuple[int, ...], customer: str = "acme") -> MetricsBatch:
    """Samples as (time, memory, cpu, read, write, rx, tx), missing values 0."""
    values = array("q")
    for sample in samples:
        values.extend((*sample, *[0] * (7 - len(sample))))
    return MetricsBatch(vm_id, customer, values)


def payload_of(record: Record) -> bytes:
    """The bytes that would have come with this record."""
    if isinstance(record, MetricsBatch):
        message = pb.SendMetricsBatchRequest(vm_id=record.vm_id, customer_id=record.customer_id)
        for start in range(0, len(record.samples), 7):
            time_ns, memory, cpu, read, write, rx, tx = record.samples[start : start + 7]
            added = message.metrics.add(
                memory_usage_bytes=memory,
                cpu_time_nanos=cpu,
                disk_read_bytes=read,
                disk_write_bytes=write,
                network_rx_bytes=rx,
                network_tx_bytes=tx,
            )
            added.timestamp.FromNanoseconds(time_ns)
        return message.SerializeToString()
    if isinstance(record, VmStarted):
        return pb.NotifyVmStartedRequest(
            vm_id=record.vm_id, customer_id=record.customer_id, start_time=record.start_ns
        ).SerializeToString()
    if isinstance(record, VmStopped):
        return pb.NotifyVmStoppedRequest(vm_id=record.vm_id, stop_time=record.stop_ns).SerializeToString()
    if isinstance(record, PossibleGap):
        return pb.NotifyPossibleGapRequest(
            vm_id=record.vm_id, last_sent=record.last_sent_ns, resume_time=record.resume_ns
        ).SerializeToString()
    if isinstance(record, Heartbeat):
        return pb.SendHeartbeatRequest(instance_id=record.instance_id, active_vms=record.active_vms).SerializeToString()
    assert isinstance(record, Tick | FoldRules | Resumed)
    return codec.encode_own(record)


class _Nobody:
    """Who gets the summaries."""

    def publish(self, batch: SummaryBatch) -> None:
        pass


def _fail(error: BaseException) -> None:
    raise error


class DataDir:
    """A data directory with its daemon's writing side open: ``put`` makes records durable and folds them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = SqliteJournal(path / "journal.db")
        self.store = LedgerStore(database.open_for_writing(path / "ledger.db"), self.journal.journal_id)
        self.aggregator = Aggregator(self.store, _Nobody(), SystemClock(), NANOS, _fail)
        self.aggregator.load()

    def put(self, *records: Record, fold: bool = True, received_ns: int | None = None) -> None:
        """Each is received a second after the one before, where no time is given."""
        rows = rows_after(
            self.journal.head,
            [
                (codec.kind_of(record), received_ns or at("12:00:00") + sequence * NANOS, "test", payload_of(record))
                for sequence, record in enumerate(records, self.journal.position + 1)
            ],
        )
        self.journal.append(rows)
        if fold:
            self.aggregator.replay([[entry_of(row) for row in rows]])

    def close(self) -> None:
        self.store.close()
        self.journal.close()


def data_dir(path: Path, *records: Record) -> Path:
    """A closed data directory that holds these records."""
    with closing(DataDir(path)) as made:
        made.put(*records)
    return path


@contextmanager
def ledger_of(path: Path, *records: Record) -> Iterator[LedgerReader]:
    """A reader over the ledger of these records."""
    with reading(data_dir(path, *records) / "ledger.db") as ledger:
        yield ledger
