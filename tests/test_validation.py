"""What a record may not hold: one clear error each, naming the field; on both doors of a real daemon too."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import pytest
from daemon_calls import SECOND, batch
from daemon_process import DaemonProcess
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from billaged.intake.validation import Limits, Now, validate
from billaged.model.errors import InvalidField, NotServing
from billaged.model.records import MAX_MEMORY_BYTES, Heartbeat, MetricsBatch, PossibleGap, Record, VmStarted, VmStopped
from billaged.wire.billing.v1 import billing_pb2 as pb

DAY = 86_400 * SECOND
NOW = 1_795_255_200 * SECOND
LIMITS = Limits(max_samples_per_batch=5, max_active_vms_per_heartbeat=3)


# --- the rules by themselves, time passed in -----------------------------------------


def samples(*rows: tuple[int, ...]) -> array:
    return array("q", [value for row in rows for value in (*row, *[0] * (7 - len(row)))])


def metrics(*rows: tuple[int, ...]) -> MetricsBatch:
    return MetricsBatch("vm-1", "acme", samples(*rows))


@pytest.mark.parametrize(
    "record",
    [
        metrics((NOW,)),
        metrics((NOW - 35 * DAY,)),
        metrics((NOW + 300 * SECOND,)),
        metrics((NOW, MAX_MEMORY_BYTES, 2**63 - 1)),
        metrics(*[(NOW,)] * 5),
        MetricsBatch("a" * 255, "AZaz09._:/@-", samples((NOW,))),
        Heartbeat("host-1", ()),
        Heartbeat("host-1", ("vm-1", "vm-2", "vm-3")),
        # A VM may have lived for years.
        VmStarted("vm-1", "acme", NOW - 2000 * DAY),
        VmStopped("vm-1", NOW - 36 * DAY),
        PossibleGap("vm-1", NOW, NOW),
    ],
)
def test_what_is_within_the_limits_is_taken(record: Record) -> None:
    validate(record, LIMITS, Now(NOW))


@pytest.mark.parametrize(
    ("record", "field", "problem"),
    [
        (metrics((NOW,))._replace(vm_id=""), "vm_id", "must not be empty"),
        (metrics((NOW,))._replace(vm_id="v" * 256), "vm_id", "255 bytes"),
        (metrics((NOW,))._replace(vm_id="vm 1"), "vm_id", "letters, digits"),
        (metrics((NOW,))._replace(vm_id="vm-1\n"), "vm_id", "letters, digits"),
        (metrics((NOW,))._replace(customer_id=""), "customer_id", "must not be empty"),
        (metrics((NOW,))._replace(customer_id="ä"), "customer_id", "letters, digits"),
        (metrics(), "metrics", "must not be empty"),
        (metrics(*[(NOW,)] * 6), "metrics", "holds 6 samples, at most 5"),
        (metrics((NOW, -1)), "metrics[0].memory_usage_bytes", "negative: -1"),
        (metrics((NOW,), (NOW, 0, -5)), "metrics[1].cpu_time_nanos", "negative: -5"),
        (metrics((NOW, 0, 0, -1)), "metrics[0].disk_read_bytes", "negative"),
        (metrics((NOW, 0, 0, 0, -1)), "metrics[0].disk_write_bytes", "negative"),
        (metrics((NOW, 0, 0, 0, 0, -1)), "metrics[0].network_rx_bytes", "negative"),
        (metrics((NOW, 0, 0, 0, 0, 0, -(2**63))), "metrics[0].network_tx_bytes", "negative"),
        (metrics((NOW, MAX_MEMORY_BYTES + 1)), "metrics[0].memory_usage_bytes", "2^48"),
        (metrics((NOW,), (NOW - 35 * DAY - 1,)), "metrics[1].timestamp", "in the past"),
        (metrics((NOW + 300 * SECOND + 1,)), "metrics[0].timestamp", "ahead"),
        (metrics((NOW,), (NOW,), (NOW + DAY,)), "metrics[2].timestamp", "ahead"),
        (Heartbeat("", ()), "instance_id", "must not be empty"),
        (Heartbeat("host-1", ("vm-1", "")), "active_vms[1]", "must not be empty"),
        (Heartbeat("host-1", ("a", "b", "c", "d")), "active_vms", "lists 4 VMs, at most 3"),
        (VmStarted("", "acme", NOW), "vm_id", "must not be empty"),
        (VmStarted("vm-1", "", NOW), "customer_id", "must not be empty"),
        (VmStarted("vm-1", "acme", 0), "start_time", "is missing"),
        (VmStarted("vm-1", "acme", -1), "start_time", "negative"),
        (VmStarted("vm-1", "acme", NOW // 10**9), "start_time", "looks like seconds"),
        (VmStarted("vm-1", "acme", NOW // 10**6), "start_time", "looks like milliseconds"),
        (VmStarted("vm-1", "acme", NOW // 10**3), "start_time", "looks like microseconds"),
        (VmStarted("vm-1", "acme", NOW + DAY), "start_time", "ahead"),
        (VmStopped("vm-1", 0), "stop_time", "is missing"),
        (VmStopped("", NOW), "vm_id", "must not be empty"),
        (VmStopped("vm-1", 2**63 - 1), "stop_time", "ahead"),
        (PossibleGap("", NOW, NOW), "vm_id", "must not be empty"),
        (PossibleGap("vm-1", 0, NOW), "last_sent", "is missing"),
        (PossibleGap("vm-1", NOW, 0), "resume_time", "is missing"),
        (PossibleGap("vm-1", NOW, NOW - 1), "resume_time", "before last_sent"),
    ],
)
def test_what_is_not_is_refused_by_its_field(record: Record, field: str, problem: str) -> None:
    with pytest.raises(InvalidField) as caught:
        validate(record, LIMITS, Now(NOW))
    assert caught.value.field == field
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    "record",
    [
        metrics((NOW + DAY,)),
        metrics((NOW,), (NOW + DAY,)),
        VmStarted("vm-1", "acme", NOW + DAY),
        VmStopped("vm-1", NOW + DAY),
    ],
)
def test_after_a_step_back_of_our_own_clock_the_future_is_not_the_callers_fault(record: Record) -> None:
    with pytest.raises(NotServing, match="clock cannot be trusted") as caught:
        validate(record, LIMITS, Now(NOW, stepped_back=True))
    assert caught.value.retry_after_seconds
    # Everything else stays the caller's.
    with pytest.raises(InvalidField):
        validate(metrics((NOW, -1)), LIMITS, Now(NOW, stepped_back=True))


# --- the same through the real doors -------------------------------------------------


class Bad(NamedTuple):
    method: str
    request: Message
    field: str


def sample(time_ns: int | None, **values: int) -> pb.VMMetrics:
    metrics = pb.VMMetrics(**values)
    if time_ns is not None:
        metrics.timestamp.seconds, metrics.timestamp.nanos = divmod(time_ns, SECOND)
    return metrics


def bad_requests() -> dict[str, Bad]:
    now_ns = time.time_ns()

    def bad_batch(*rows: pb.VMMetrics, vm_id: str = "vm-1", customer_id: str = "acme") -> Message:
        return pb.SendMetricsBatchRequest(vm_id=vm_id, customer_id=customer_id, metrics=rows)

    far = pb.VMMetrics()
    far.timestamp.seconds = 2**62
    good = sample(now_ns)
    send, start = "SendMetricsBatch", "NotifyVmStarted"
    return {
        "empty vm_id": Bad(send, bad_batch(good, vm_id=""), "vm_id"),
        "long customer_id": Bad(send, bad_batch(good, customer_id="c" * 256), "customer_id"),
        "odd vm_id": Bad(send, bad_batch(good, vm_id="vm\x00"), "vm_id"),
        "negative": Bad(send, bad_batch(good, sample(now_ns, cpu_time_nanos=-1)), "metrics[1].cpu_time_nanos"),
        "memory": Bad(send, bad_batch(sample(now_ns, memory_usage_bytes=2**48 + 1)), "metrics[0].memory_usage_bytes"),
        "no timestamp": Bad(send, bad_batch(good, sample(None)), "metrics[1].timestamp"),
        "seconds out of range": Bad(send, bad_batch(far), "metrics[0].timestamp"),
        "old": Bad(send, bad_batch(sample(now_ns - 36 * DAY)), "metrics[0].timestamp"),
        "ahead": Bad(send, bad_batch(sample(now_ns + 600 * SECOND)), "metrics[0].timestamp"),
        "too many": Bad(send, bad_batch(*[good] * 101), "metrics"),
        "no instance": Bad("SendHeartbeat", pb.SendHeartbeatRequest(active_vms=["vm-1"]), "instance_id"),
        "bad vm": Bad(
            "SendHeartbeat", pb.SendHeartbeatRequest(instance_id="h", active_vms=["a", "b c"]), "active_vms[1]"
        ),
        "no start": Bad(start, pb.NotifyVmStartedRequest(vm_id="v", customer_id="c"), "start_time"),
        "seconds": Bad(
            start, pb.NotifyVmStartedRequest(vm_id="v", customer_id="c", start_time=now_ns // SECOND), "start_time"
        ),
        "milliseconds": Bad(
            "NotifyVmStopped", pb.NotifyVmStoppedRequest(vm_id="v", stop_time=now_ns // 10**6), "stop_time"
        ),
        "negative stop": Bad("NotifyVmStopped", pb.NotifyVmStoppedRequest(vm_id="v", stop_time=-1), "stop_time"),
        "backward gap": Bad(
            "NotifyPossibleGap",
            pb.NotifyPossibleGapRequest(vm_id="v", last_sent=now_ns, resume_time=now_ns - 1),
            "resume_time",
        ),
    }


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon") / "var", {"MAX_SAMPLES_PER_BATCH": "100"}) as process:
        yield process
        assert process.stop() == 0
        # Nothing of what was refused has been written.
        tables = process.ledger()
        assert {row[0] for row in tables["sessions"]} <= {"vm-good"}
        assert tables["instances"] == tables["reported_gaps"] == tables["dead_letters"] == tables["anomalies"] == []


@pytest.mark.parametrize("name", bad_requests())
def test_both_doors_refuse_it_and_name_the_field(daemon: DaemonProcess, name: str) -> None:
    bad = bad_requests()[name]
    with pytest.raises(grpc.RpcError) as caught:
        daemon.call(bad.method, bad.request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(f"{bad.field}: ")
    if name == "seconds out of range":
        return  # protobuf's JSON has no way to write it
    body: dict[str, Any] = MessageToDict(bad.request)
    answer = daemon.post(bad.method, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
    assert answer.json()["message"].startswith(f"{bad.field}: ")


def test_a_good_request_between_the_bad_ones_is_taken(daemon: DaemonProcess) -> None:
    assert daemon.call("SendMetricsBatch", batch("vm-good", time.time_ns())).success
