"""The five RPCs of the contract, by the kind of record that each carries."""

from __future__ import annotations

from typing import Final, NamedTuple

from google.protobuf.message import Message

from billaged.model.records import Kind
from billaged.wire.billing.v1 import billing_pb2 as pb

SERVICE: Final = "billing.v1.BillingService"


class Method(NamedTuple):
    """One unary RPC: its name in the service and its two message types."""

    name: str
    request: type[Message]
    response: type[Message]

    @property
    def path(self) -> str:
        return f"/{SERVICE}/{self.name}"


METHODS: Final[dict[Kind, Method]] = {
    Kind.METRICS: Method("SendMetricsBatch", pb.SendMetricsBatchRequest, pb.SendMetricsBatchResponse),
    Kind.HEARTBEAT: Method("SendHeartbeat", pb.SendHeartbeatRequest, pb.SendHeartbeatResponse),
    Kind.STARTED: Method("NotifyVmStarted", pb.NotifyVmStartedRequest, pb.NotifyVmStartedResponse),
    Kind.STOPPED: Method("NotifyVmStopped", pb.NotifyVmStoppedRequest, pb.NotifyVmStoppedResponse),
    Kind.POSSIBLE_GAP: Method("NotifyPossibleGap", pb.NotifyPossibleGapRequest, pb.NotifyPossibleGapResponse),
}
