"""The RPCs as data: what both doors serve, and under which names."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from google.protobuf.message import Message

from billaged.model.records import Kind

# Imported for its descriptors: without it reflection knows the second name but not what is in it.
from billaged.wire.billaged.v1 import billing_pb2 as _later_name
from billaged.wire.billing.v1 import billing_pb2 as pb
from billaged.wire.billing.v1 import usage_stream_pb2 as stream_pb


class Method(NamedTuple):
    """One unary RPC. ``success`` is the serialized answer to a taken request.

    SendMetricsBatch answers with the count as well: see ``processed``.
    """

    name: str
    kind: Kind
    request: type[Message]
    response: type[Message]
    success: bytes


METHODS: Final = (
    Method(
        "SendMetricsBatch",
        Kind.METRICS,
        pb.SendMetricsBatchRequest,
        pb.SendMetricsBatchResponse,
        pb.SendMetricsBatchResponse(success=True).SerializeToString(),
    ),
    Method(
        "SendHeartbeat",
        Kind.HEARTBEAT,
        pb.SendHeartbeatRequest,
        pb.SendHeartbeatResponse,
        pb.SendHeartbeatResponse(success=True).SerializeToString(),
    ),
    Method(
        "NotifyVmStarted",
        Kind.STARTED,
        pb.NotifyVmStartedRequest,
        pb.NotifyVmStartedResponse,
        pb.NotifyVmStartedResponse(success=True).SerializeToString(),
    ),
    Method(
        "NotifyVmStopped",
        Kind.STOPPED,
        pb.NotifyVmStoppedRequest,
        pb.NotifyVmStoppedResponse,
        pb.NotifyVmStoppedResponse(success=True).SerializeToString(),
    ),
    Method(
        "NotifyPossibleGap",
        Kind.POSSIBLE_GAP,
        pb.NotifyPossibleGapRequest,
        pb.NotifyPossibleGapResponse,
        pb.NotifyPossibleGapResponse(success=True).SerializeToString(),
    ),
)

# The service and its later name: the same methods over the same messages.
BILLING_SERVICES: Final[tuple[str, ...]] = (
    pb.DESCRIPTOR.services_by_name["BillingService"].full_name,
    _later_name.DESCRIPTOR.services_by_name["BillingService"].full_name,
)
STREAM_SERVICE: Final[str] = stream_pb.DESCRIPTOR.services_by_name["UsageStreamService"].full_name
WATCH_METHOD: Final = "WatchSummaries"
SERVICES: Final = (*BILLING_SERVICES, STREAM_SERVICE)

NO_METRICS: Final = pb.SendMetricsBatchResponse(success=False, message="no metrics provided").SerializeToString()


@lru_cache(maxsize=1024)
def processed(sample_count: int) -> bytes:
    """The serialized answer to a batch of this many samples; few counts are common, so they are kept."""
    answer = pb.SendMetricsBatchResponse(success=True, message=f"processed {sample_count} metrics")
    return answer.SerializeToString()
