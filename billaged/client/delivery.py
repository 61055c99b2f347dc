"""What is sent in one call: one notice, or the samples of one VM that waited together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError, Message

from billaged.client.methods import METHODS
from billaged.client.segment import SpoolRecord
from billaged.model.records import Kind
from billaged.wire.billing.v1 import billing_pb2 as pb

MAX_SAMPLES = 1_000


@dataclass(slots=True)
class Delivery:
    """One call: all of the records have this kind, and belong to this VM and customer.

    One that ``is_unreadable`` holds one record, which is no request of its kind and cannot be sent.
    """

    kind: Kind
    vm_id: str
    customer_id: str = ""
    records: list[SpoolRecord] = field(default_factory=list)
    is_unreadable: bool = False

    def request(self) -> Message:
        if self.kind is not Kind.METRICS:
            message: Message = METHODS[self.kind].request.FromString(self.records[0].payload)
            return message
        batch = pb.SendMetricsBatchRequest(vm_id=self.vm_id, customer_id=self.customer_id)
        for record in self.records:
            batch.metrics.extend(pb.SendMetricsBatchRequest.FromString(record.payload).metrics)
        return batch

    def halves(self) -> list[Delivery]:
        middle = len(self.records) // 2
        return [
            Delivery(self.kind, self.vm_id, self.customer_id, part)
            for part in (self.records[:middle], self.records[middle:])
        ]


def join(records: Iterable[SpoolRecord]) -> list[Delivery]:
    """Deliveries that send the records, each VM's in its order; samples of a VM with nothing between them in one."""
    deliveries: list[Delivery] = []
    open_batches: dict[str, Delivery] = {}
    for record in records:
        try:
            message = METHODS[record.kind].request.FromString(record.payload)
        except DecodeError:
            deliveries.append(Delivery(record.kind, "", records=[record], is_unreadable=True))
            continue
        vm_id, customer_id = str(getattr(message, "vm_id", "")), str(getattr(message, "customer_id", ""))
        batch = open_batches.get(vm_id)
        fits = batch is not None and batch.customer_id == customer_id and len(batch.records) < MAX_SAMPLES
        if record.kind is Kind.METRICS and batch is not None and fits:
            batch.records.append(record)
            continue
        delivery = Delivery(record.kind, vm_id, customer_id, [record])
        deliveries.append(delivery)
        if record.kind is Kind.METRICS:
            open_batches[vm_id] = delivery
        else:
            open_batches.pop(vm_id, None)
    return deliveries
