"""What is said to a daemon: one RPC, a batch with plausible values, and waiting for what it does about it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from billaged.wire.billing.v1 import billing_pb2 as pb

DEADLINE_SECONDS = 30.0
SECOND = 10**9
GIB = 2**30
BILLING = "billing.v1.BillingService"


class NotInTime(Exception):
    """What was waited for did not come."""


def call(channel: grpc.Channel, method: str, request: Message | bytes, service: str = BILLING) -> Message:
    """One RPC; bytes go as they are. Raises grpc.RpcError."""
    payload = request if isinstance(request, bytes) else request.SerializeToString()
    response = getattr(pb, f"{method}Response").FromString
    send = channel.unary_unary(f"/{service}/{method}", request_serializer=None, response_deserializer=response)
    return send(payload, timeout=DEADLINE_SECONDS)


def retry_delay_seconds(error: grpc.RpcError) -> float | None:
    """What the daemon asks to wait; None where it asks for nothing."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return info.retry_delay.ToNanoseconds() / SECOND
    return None


def until(found: Callable[[], Any], what: str, within_seconds: float = DEADLINE_SECONDS) -> Any:
    """What ``found`` gives once it is true; a short pause between two looks.

    Raises:
        NotInTime: it never was.
    """
    deadline = time.monotonic() + within_seconds
    pause = threading.Event()
    while not (result := found()):
        if time.monotonic() > deadline:
            raise NotInTime(f"not within {within_seconds} s: {what}")
        pause.wait(0.01)
    return result


def batch(
    vm_id: str, *times_ns: int, customer_id: str = "acme", cpu_ns_per_second: int = SECOND
) -> pb.SendMetricsBatchRequest:
    """A sample at each of these times; the counters grow with the time itself, memory is 1 GiB."""
    request = pb.SendMetricsBatchRequest(vm_id=vm_id, customer_id=customer_id)
    for time_ns in times_ns:
        grown = time_ns % (10**15)
        metrics = request.metrics.add(
            cpu_time_nanos=grown * cpu_ns_per_second // SECOND,
            memory_usage_bytes=GIB,
            disk_read_bytes=grown // 10**6,
            disk_write_bytes=grown // 10**7,
            network_rx_bytes=grown // 10**5,
            network_tx_bytes=grown // 10**8,
        )
        metrics.timestamp.seconds, metrics.timestamp.nanos = divmod(time_ns, SECOND)
    return request
