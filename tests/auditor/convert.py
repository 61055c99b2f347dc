"""Between the auditor's events and the daemon's records and payloads. The only door to billaged."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from auditor.events import (
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
from billaged.model import records
from billaged.wire import codec
from billaged.wire.billing.v1 import billing_pb2 as pb


def to_record(what: What) -> tuple[records.Record, bytes]:
    """The record and its journal payload: protobuf bytes for what callers send, JSON for the daemon's own."""
    if isinstance(what, Batch):
        flat = array("q", (value for row in what.samples for value in row))
        return records.MetricsBatch(what.vm_id, what.customer_id, flat), _metrics_payload(what)
    if isinstance(what, Started):
        started = pb.NotifyVmStartedRequest(vm_id=what.vm_id, customer_id=what.customer_id, start_time=what.start_ns)
        return records.VmStarted(*what), started.SerializeToString()
    if isinstance(what, Stopped):
        stopped = pb.NotifyVmStoppedRequest(vm_id=what.vm_id, stop_time=what.stop_ns)
        return records.VmStopped(*what), stopped.SerializeToString()
    if isinstance(what, Heartbeat):
        beat = pb.SendHeartbeatRequest(instance_id=what.instance_id, active_vms=what.active_vms)
        return records.Heartbeat(what.instance_id, tuple(what.active_vms)), beat.SerializeToString()
    if isinstance(what, PossibleGap):
        gap = pb.NotifyPossibleGapRequest(vm_id=what.vm_id, last_sent=what.last_sent_ns, resume_time=what.resume_ns)
        return records.PossibleGap(*what), gap.SerializeToString()
    own = _own(what)
    return own, codec.encode_own(own)


def _own(what: Tick | Rules | Resumed) -> records.Tick | records.FoldRules | records.Resumed:
    """What the daemon itself writes."""
    if isinstance(what, Tick):
        return records.Tick(*what)
    if isinstance(what, Resumed):
        return records.Resumed(*what)
    return records.FoldRules(*what)._replace(gap_thresholds=tuple(sorted(what.gap_thresholds)))


def to_entry(event: Event) -> records.JournalEntry:
    """The journal row of an event."""
    record, payload = to_record(event.what)
    kind = codec.kind_of(record)
    return records.JournalEntry(event.sequence, kind, event.received_ns, event.caller, payload, record)


def to_entries(events: Iterable[Event]) -> list[records.JournalEntry]:
    return [to_entry(event) for event in events]


def to_event(entry: records.JournalEntry) -> Event:
    """The event of a journal row: the way back.

    Raises:
        TypeError: the auditor knows no such record.
    """
    return Event(entry.sequence, entry.received_ns, entry.caller, to_what(entry.record))


def to_events(entries: Iterable[records.JournalEntry]) -> Iterator[Event]:
    return (to_event(entry) for entry in entries)


def to_what(record: records.Record) -> What:
    """Raises TypeError for a record the auditor does not know."""
    if isinstance(record, records.MetricsBatch):
        width = records.SAMPLE_WIDTH
        rows = [Sample(*record.samples[at : at + width]) for at in range(0, len(record.samples), width)]
        return Batch(record.vm_id, record.customer_id, rows)
    if isinstance(record, records.VmStarted):
        return Started(*record)
    if isinstance(record, records.VmStopped):
        return Stopped(*record)
    if isinstance(record, records.Heartbeat):
        return Heartbeat(*record)
    if isinstance(record, records.PossibleGap):
        return PossibleGap(*record)
    if isinstance(record, records.Tick):
        return Tick(*record)
    if isinstance(record, records.FoldRules):
        return Rules(*record)
    if isinstance(record, records.Resumed):
        return Resumed(*record)
    raise TypeError(f"no event for {record!r}")


def _metrics_payload(batch: Batch) -> bytes:
    message = pb.SendMetricsBatchRequest(vm_id=batch.vm_id, customer_id=batch.customer_id)
    for row in batch.samples:
        sample = Sample(*row)
        metrics = message.metrics.add()
        metrics.timestamp.seconds, metrics.timestamp.nanos = divmod(sample.time_ns, SECOND_NS)
        metrics.cpu_time_nanos = sample.cpu_time_ns
        metrics.memory_usage_bytes = sample.memory_bytes
        metrics.disk_read_bytes = sample.disk_read_bytes
        metrics.disk_write_bytes = sample.disk_write_bytes
        metrics.network_rx_bytes = sample.network_rx_bytes
        metrics.network_tx_bytes = sample.network_tx_bytes
    return message.SerializeToString()
