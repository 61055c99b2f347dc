"""Between protobuf bytes and model records, both ways.

Decoding checks only what the wire itself can break (bytes that are no message, a
timestamp that is missing or out of range); what a value may be is the intake's.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError

from billaged.model.errors import InvalidField
from billaged.model.records import (
    FoldRules,
    Heartbeat,
    Kind,
    MetricsBatch,
    PossibleGap,
    Record,
    Resumed,
    Tick,
    VmStarted,
    VmStopped,
)
from billaged.model.time import NANOS
from billaged.wire.billing.v1 import billing_pb2 as pb

# The seconds of a protobuf Timestamp that fit int64 nanoseconds (it ends in 2262).
_MAX_SECONDS: Final = 9_223_372_036


def metrics_from_message(message: pb.SendMetricsBatchRequest) -> MetricsBatch:
    """Raises InvalidField for a timestamp that is missing or out of range."""
    samples = array("q")
    for index, metrics in enumerate(message.metrics):
        timestamp = metrics.timestamp
        seconds, nanos = timestamp.seconds, timestamp.nanos
        if not seconds and not metrics.HasField("timestamp"):
            raise InvalidField(f"metrics[{index}].timestamp", "is missing")
        if not 0 <= seconds < _MAX_SECONDS:
            raise InvalidField(f"metrics[{index}].timestamp", f"seconds {seconds} are out of range")
        if not 0 <= nanos < NANOS:
            raise InvalidField(f"metrics[{index}].timestamp", f"nanos {nanos} are out of range")
        samples.extend(
            (
                seconds * NANOS + nanos,
                metrics.memory_usage_bytes,
                metrics.cpu_time_nanos,
                metrics.disk_read_bytes,
                metrics.disk_write_bytes,
                metrics.network_rx_bytes,
                metrics.network_tx_bytes,
            )
        )
    return MetricsBatch(message.vm_id, message.customer_id, samples)


def heartbeat_from_message(message: pb.SendHeartbeatRequest) -> Heartbeat:
    return Heartbeat(message.instance_id, tuple(message.active_vms))


def started_from_message(message: pb.NotifyVmStartedRequest) -> VmStarted:
    return VmStarted(message.vm_id, message.customer_id, message.start_time)


def stopped_from_message(message: pb.NotifyVmStoppedRequest) -> VmStopped:
    return VmStopped(message.vm_id, message.stop_time)


def possible_gap_from_message(message: pb.NotifyPossibleGapRequest) -> PossibleGap:
    return PossibleGap(message.vm_id, message.last_sent, message.resume_time)


def rules_to_json(rules: FoldRules) -> dict[str, Any]:
    """The rules as an object for JSON, in the journal and in the ledger."""
    fields = rules._asdict()
    # Left out where there are none: such rules read as they always did, also by what was written before.
    if thresholds := dict(fields.pop("gap_thresholds")):
        fields["gap_thresholds"] = thresholds
    return fields


def rules_from_json(fields: Mapping[str, Any]) -> FoldRules:
    """The way back.

    Raises:
        TypeError: these are no rules.
    """
    thresholds = fields.get("gap_thresholds", {})
    if not isinstance(thresholds, dict):
        raise TypeError(f"gap thresholds are no object: {thresholds!r}")
    return FoldRules(**{**fields, "gap_thresholds": tuple(sorted(thresholds.items()))})


Message = TypeVar("Message")


def _decoder(parse: Callable[[bytes], Message], convert: Callable[[Message], Record]) -> Callable[[bytes], Record]:
    def decode(payload: bytes) -> Record:
        try:
            message = parse(payload)
        except DecodeError as error:
            raise InvalidField("", "the request is not a valid protobuf message of its type") from error
        return convert(message)

    return decode


_DECODERS: Final[dict[Kind, Callable[[bytes], Record]]] = {
    Kind.METRICS: _decoder(pb.SendMetricsBatchRequest.FromString, metrics_from_message),
    Kind.HEARTBEAT: _decoder(pb.SendHeartbeatRequest.FromString, heartbeat_from_message),
    Kind.STARTED: _decoder(pb.NotifyVmStartedRequest.FromString, started_from_message),
    Kind.STOPPED: _decoder(pb.NotifyVmStoppedRequest.FromString, stopped_from_message),
    Kind.POSSIBLE_GAP: _decoder(pb.NotifyPossibleGapRequest.FromString, possible_gap_from_message),
    Kind.TICK: lambda payload: Tick(**json.loads(payload)),
    Kind.RULES: lambda payload: rules_from_json(json.loads(payload)),
    Kind.RESUMED: lambda payload: Resumed(**json.loads(payload)),
}

_KINDS: Final[dict[type, Kind]] = {
    MetricsBatch: Kind.METRICS,
    Heartbeat: Kind.HEARTBEAT,
    VmStarted: Kind.STARTED,
    VmStopped: Kind.STOPPED,
    PossibleGap: Kind.POSSIBLE_GAP,
    Tick: Kind.TICK,
    FoldRules: Kind.RULES,
    Resumed: Kind.RESUMED,
}


def kind_of(record: Record) -> Kind:
    """The journal's number for a record."""
    return _KINDS[type(record)]


def decode(kind: Kind, payload: bytes) -> Record:
    """The record that a request's or a journal row's bytes hold.

    Raises:
        InvalidField: the bytes are no such message, or a timestamp in it is out of range.
    """
    return _DECODERS[kind](payload)


def encode_own(record: Tick | FoldRules | Resumed) -> bytes:
    """The journal payload of one of the daemon's own records."""
    fields = rules_to_json(record) if isinstance(record, FoldRules) else record._asdict()
    return json.dumps(fields, separators=(",", ":")).encode()
