"""A real daemon, asked over its real doors: what it takes, answers, sums up and refuses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count

import grpc
import pytest
from daemon_calls import BILLING, SECOND, batch, call, until
from daemon_process import DaemonProcess, is_summary
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from billaged import __version__
from billaged.wire.billing.v1 import billing_pb2 as pb

_numbers = count(1)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One for all tests of this file: no input of any of them may disturb the others."""
    with DaemonProcess(tmp_path_factory.mktemp("daemon") / "var", {"AGGREGATION_INTERVAL": "1s"}) as process:
        yield process
        assert process.stop() == 0
        assert process.other_output == ""
        assert [line for line in process.log if line["level"] == "error"] == []


def new_vm() -> str:
    return f"vm-{next(_numbers)}"


def some_seconds_ago(seconds: int = 10) -> int:
    return time.time_ns() - seconds * SECOND


def refused(daemon: DaemonProcess, method: str, request: Message | bytes) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        daemon.call(method, request)
    return caught.value


# --- what it takes -------------------------------------------------------------------


@pytest.mark.parametrize("service", [BILLING, "billaged.v1.BillingService"])
def test_both_names_of_the_service_acknowledge_every_method(daemon: DaemonProcess, service: str) -> None:
    now_ns, vm_id = time.time_ns(), new_vm()
    before = daemon.stats()["journal"]["position"]
    requests = {
        "NotifyVmStarted": pb.NotifyVmStartedRequest(vm_id=vm_id, customer_id="acme", start_time=now_ns - 5 * SECOND),
        "SendMetricsBatch": batch(vm_id, now_ns - 2 * SECOND, now_ns - SECOND),
        "SendHeartbeat": pb.SendHeartbeatRequest(instance_id=f"host-of-{vm_id}", active_vms=[vm_id]),
        "NotifyPossibleGap": pb.NotifyPossibleGapRequest(vm_id=vm_id, last_sent=now_ns - SECOND, resume_time=now_ns),
        "NotifyVmStopped": pb.NotifyVmStoppedRequest(vm_id=vm_id, stop_time=now_ns),
    }
    answers = {method: daemon.call(method, request, service) for method, request in requests.items()}
    assert all(answer.success for answer in answers.values())
    assert answers["SendMetricsBatch"].message == "processed 2 metrics"
    assert daemon.stats()["journal"]["position"] >= before + len(requests)
    tables = until(lambda: _with_session(daemon, vm_id, ended=True), "the stop in the ledger")
    assert [row[0] for row in tables["instances"] if vm_id in row[2]] == [f"host-of-{vm_id}"]
    assert vm_id in [row[1] for row in tables["reported_gaps"]]


def _with_session(daemon: DaemonProcess, vm_id: str, *, ended: bool) -> dict[str, list[tuple]] | None:
    tables = daemon.ledger()
    return tables if [row for row in tables["sessions"] if row[0] == vm_id and (row[6] is not None) == ended] else None


@pytest.mark.parametrize("service", [BILLING, "billaged.v1.BillingService"])
def test_the_descriptions_own_curl_works_with_a_present_day_timestamp(daemon: DaemonProcess, service: str) -> None:
    vm_id = new_vm()
    sample = {
        "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cpu_time_nanos": 1000000000,
        "memory_usage_bytes": 1073741824,
    }
    body = {"vm_id": vm_id, "customer_id": "customer-456", "metrics": [sample]}
    answer = daemon.post("SendMetricsBatch", body, service)
    assert answer.status_code == 200
    assert answer.json() == {"success": True, "message": "processed 1 metrics"}
    assert daemon.wait_for(lambda line: is_summary(line, vm_id=vm_id), "its summary")["window"]["samples"] == 1


def test_an_empty_batch_is_no_success_and_no_error(daemon: DaemonProcess) -> None:
    answer = daemon.call("SendMetricsBatch", pb.SendMetricsBatchRequest(vm_id=new_vm(), customer_id="acme"))
    assert (answer.success, answer.message) == (False, "no metrics provided")


# --- health and stats ----------------------------------------------------------------


def test_health_says_who_it_is(daemon: DaemonProcess) -> None:
    answer = daemon.get("/health")
    body = answer.json()
    assert answer.status_code == 200
    assert body.pop("uptime_seconds") > 0
    assert body == {"status": "ok", "service": "billaged", "version": __version__}


def test_stats_count_what_came(daemon: DaemonProcess) -> None:
    before = until(lambda: (s := daemon.stats())["queue_depth"] == 0 and s, "all that came before is folded")
    assert before["aggregation_interval"] == "1s"
    now_ns = time.time_ns()
    daemon.call("SendMetricsBatch", batch(new_vm(), now_ns - 3600 * SECOND, now_ns - SECOND, customer_id="stats-inc"))
    after = until(lambda: (s := daemon.stats())["samples"] >= before["samples"] + 2 and s, "two samples folded")
    # An hour without samples is a gap.
    assert after["gaps"] == before["gaps"] + 1
    assert after["active_vms"] == before["active_vms"] + 1
    assert after["known_vms"] == before["known_vms"] + 1
    assert after["customers"] == before["customers"] + 1
    assert after["taking_usage"] is True
    after = until(
        lambda: (s := daemon.stats())["journal"]["ledger_position"] >= after["journal"]["folded_position"] and s,
        "what was folded is in the ledger",
    )
    assert after["journal"]["position"] >= after["journal"]["ledger_position"] > before["journal"]["ledger_position"]
    assert after["journal"]["lag"] == after["journal"]["position"] - after["journal"]["ledger_position"]
    assert until(lambda: daemon.stats()["queue_depth"] == 0, "an empty queue")


# --- whose VM ------------------------------------------------------------------------


def test_a_vm_of_another_customer_is_refused_until_it_has_stopped(daemon: DaemonProcess) -> None:
    vm_id, start_ns = new_vm(), some_seconds_ago(60)
    with daemon.channel() as channel:
        call(channel, "SendMetricsBatch", batch(vm_id, start_ns, customer_id="acme"))
        for method, request in (
            ("SendMetricsBatch", batch(vm_id, start_ns + SECOND, customer_id="globex")),
            (
                "NotifyVmStarted",
                pb.NotifyVmStartedRequest(vm_id=vm_id, customer_id="globex", start_time=start_ns + SECOND),
            ),
        ):
            # Known once it is folded, which an ack does not wait for.
            error = until(lambda method=method, request=request: _error(channel, method, request), "a refusal")
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "customer_id" in error.details()
            assert "acme" not in error.details()
        # A stop, a start and a sample right behind each other: nobody waits for the fold.
        now_ns = start_ns + 2 * SECOND
        call(channel, "NotifyVmStopped", pb.NotifyVmStoppedRequest(vm_id=vm_id, stop_time=now_ns))
        started = pb.NotifyVmStartedRequest(vm_id=vm_id, customer_id="globex", start_time=now_ns)
        assert call(channel, "NotifyVmStarted", started).success
        assert call(channel, "SendMetricsBatch", batch(vm_id, now_ns + SECOND, customer_id="globex")).success
    tables = until(
        lambda: (t := daemon.ledger()) and [r for r in t["sessions"] if r[:2] == (vm_id, 2)] and t, "session 2"
    )
    owners = [row[2] for row in tables["sessions"] if row[0] == vm_id]
    assert owners == ["acme", "globex"]
    refusal = daemon.post("NotifyVmStarted", {"vmId": vm_id, "customerId": "acme", "startTime": str(now_ns + SECOND)})
    assert (refusal.status_code, refusal.json()["code"]) == (400, "failed_precondition")


def _error(channel: grpc.Channel, method: str, request: Message) -> grpc.RpcError | None:
    try:
        call(channel, method, request)
    except grpc.RpcError as error:
        return error
    return None


# --- bad input -----------------------------------------------------------------------


def test_a_broken_message_is_the_callers_error_on_both_doors(daemon: DaemonProcess) -> None:
    assert refused(daemon, "SendMetricsBatch", b"\xff\xff\xff").code() is grpc.StatusCode.INVALID_ARGUMENT
    answer = daemon.post("SendMetricsBatch", {"vmId": ["no", "text"]})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")


def test_a_message_over_the_limit_is_refused_on_both_doors(daemon: DaemonProcess) -> None:
    assert refused(daemon, "SendMetricsBatch", b"\0" * (5 * 2**20)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    answer = daemon.post("SendMetricsBatch", {"vmId": "x" * (5 * 2**20)})
    assert 400 <= answer.status_code < 500
    assert answer.json()["code"] == "resource_exhausted"


def test_an_error_names_its_field_in_its_details_too(daemon: DaemonProcess) -> None:
    status = rpc_status.from_call(refused(daemon, "SendHeartbeat", pb.SendHeartbeatRequest(active_vms=["vm-1"])))
    violation = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(violation)
    assert [(item.field, item.description) for item in violation.field_violations] == [
        ("instance_id", "must not be empty")
    ]


def test_what_does_not_exist_says_so(daemon: DaemonProcess) -> None:
    with daemon.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{BILLING}/NoSuchMethod")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert daemon.get("/nowhere").status_code == 404
