"""Traces and metrics over OTLP: a real daemon, and a collector that decodes what comes."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from daemon_calls import BILLING, SECOND, batch, until
from daemon_process import ROOT, DaemonProcess, environment, fails_to_start
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from otlp_receiver import OtlpReceiver, Span, plain

from billaged.model.errors import StartError
from billaged.telemetry import traces
from billaged.telemetry.opening import OpenTelemetry, Target
from billaged.telemetry.otlp.reason import Reason
from billaged.telemetry.otlp.sender import Sender
from billaged.telemetry.traces import Served, Trace, parent_of, rate_bound
from billaged.telemetry.tracing import BATCH, WAITING_MAX, Tracing
from billaged.wire.billing.v1 import billing_pb2 as pb
from billaged.wire.billing.v1 import usage_stream_pb2 as stream_pb

SEND = f"{BILLING}/SendMetricsBatch"
SERVER, INTERNAL = 2, 1
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ERROR = 2


def traced(receiver: OtlpReceiver, **settings: str) -> dict[str, str]:
    return {"OTEL_ENABLED": "true", "OTEL_ENDPOINT": receiver.endpoint, "OTEL_SAMPLING_RATE": "1"} | settings


def now_batch(vm_id: str, **more: Any) -> pb.SendMetricsBatchRequest:
    now = time.time_ns()
    return batch(vm_id, now - 2 * SECOND, now - SECOND, **more)


def send(daemon: DaemonProcess, request: Any, metadata: tuple[tuple[str, str], ...] = (), **more: Any) -> None:
    with daemon.channel() as channel:
        method: Any = channel.unary_unary(f"/{SEND}", request_serializer=None, response_deserializer=None)
        method(
            request if isinstance(request, bytes) else request.SerializeToString(),
            metadata=metadata,
            timeout=more.get("timeout", 30),
        )


def spans(receiver: OtlpReceiver, name: str, count: int) -> list[Span]:
    until(lambda: len(receiver.of(name)) >= count, f"{count} spans {name}")
    found = receiver.of(name)
    assert len(found) == count
    return found


# --- what a trace has ---------------------------------------------------------------


def test_a_request_is_a_span_with_children_for_the_journal_and_the_fold(tmp_path: Path) -> None:
    settings = {"OTEL_SERVICE_NAME": "bills", "OTEL_SERVICE_VERSION": "7.1"}
    with OtlpReceiver() as receiver, DaemonProcess(tmp_path / "var", traced(receiver, **settings)) as daemon:
        before = time.time_ns()
        send(daemon, now_batch("vm-1"), (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01"),))
        after = time.time_ns()
        (rpc,) = spans(receiver, SEND, 1)
        (wait,), (fold,) = spans(receiver, "journal wait", 1), spans(receiver, "fold", 1)
    assert (rpc.trace, rpc.parent, rpc.kind, rpc.status) == (TRACE_ID, SPAN_ID, SERVER, 0)
    assert rpc.attributes == {
        "rpc.system": "grpc",
        "rpc.service": BILLING,
        "rpc.method": "SendMetricsBatch",
        "rpc.grpc.status_code": 0,
        "billaged.caller": "@plaintext",
    }
    assert {"service.name": "bills", "service.version": "7.1"}.items() <= rpc.resource.items()
    for child in (wait, fold):
        assert (child.trace, child.parent, child.kind) == (TRACE_ID, rpc.id, INTERNAL)
    assert before <= rpc.began_ns <= wait.began_ns <= wait.ended_ns <= rpc.ended_ns <= after
    # The fold comes after the journal, and for the caller it need not have ended.
    assert wait.began_ns < fold.began_ns < fold.ended_ns
    assert fold.attributes["billaged.fold.records"] >= 1
    assert len({rpc.id, wait.id, fold.id, SPAN_ID}) == 4


def test_http_has_the_same_trace(tmp_path: Path) -> None:
    with OtlpReceiver() as receiver, DaemonProcess(tmp_path / "var", traced(receiver)) as daemon:
        body = {"vmId": "vm-1", "customerId": "acme", "metrics": []}
        url = f"{daemon.http_url}/{SEND}"
        answer = httpx.post(url, json=body, headers={"Traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"})
        assert answer.status_code == 200
        assert httpx.post(url, json={"vmId": 5}).status_code == 400
        assert httpx.get(url).status_code == 405
        first, second, third = spans(receiver, SEND, 3)
    assert (first.trace, first.parent) == (TRACE_ID, SPAN_ID)
    assert first.attributes == {
        "rpc.system": "connect_rpc",
        "rpc.service": BILLING,
        "rpc.method": "SendMetricsBatch",
        "billaged.caller": "@plaintext",
    }
    assert second.attributes["rpc.connect_rpc.error_code"] == "invalid_argument"
    assert third.attributes["rpc.connect_rpc.error_code"] == "unimplemented"
    assert third.status == ERROR


def test_the_status_is_the_one_that_the_caller_hears(tmp_path: Path) -> None:
    with OtlpReceiver() as receiver, DaemonProcess(tmp_path / "var", traced(receiver)) as daemon:
        heard = []
        for request in (now_batch("vm-1"), b"\xff", now_batch(""), now_batch("vm-1", customer_id="other")):
            until(lambda: daemon.stats()["queue_depth"] == 0, "all is folded")
            try:
                send(daemon, request)
                heard.append(0)
            except grpc.RpcError as error:
                heard.append(error.code().value[0])  # type: ignore[attr-defined]
        assert heard == [0, 3, 3, 9]
        found = spans(receiver, SEND, 4)
    assert [span.attributes["rpc.grpc.status_code"] for span in found] == heard
    # The callers' faults are no errors of the server's.
    assert {span.status for span in found} == {0}


def test_who_is_refused_at_the_gate_is_traced_and_the_audit_line_has_the_trace(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[allow]]\nidentity = "@plaintext"\nroles = ["read"]\n')
    receiver = OtlpReceiver()
    with receiver, DaemonProcess(tmp_path / "var", traced(receiver, POLICY_FILE=str(policy))) as daemon:
        with pytest.raises(grpc.RpcError):
            send(daemon, now_batch("vm-1"))
        (span,) = spans(receiver, SEND, 1)
        line = daemon.wait_for(lambda line: line["message"] == "request denied", "the denial")
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.PERMISSION_DENIED.value[0]
    assert (line["trace_id"], line["span_id"]) == (span.trace, span.id)
    assert line["logger"] == "billaged.audit"


def test_a_stream_has_a_span_when_it_ends_and_a_deadline_is_told_as_one(tmp_path: Path) -> None:
    watch = "billing.v1.UsageStreamService/WatchSummaries"
    receiver = OtlpReceiver()
    with receiver, DaemonProcess(tmp_path / "var", traced(receiver)) as daemon, daemon.channel() as channel:
        stream: Any = channel.unary_stream(f"/{watch}", request_serializer=None, response_deserializer=None)
        for end, timeout in (("cancel", 30), ("deadline", 0.5)):
            call = stream(stream_pb.WatchSummariesRequest().SerializeToString(), timeout=timeout)
            if end == "cancel":
                call.initial_metadata()
                call.cancel()
            with pytest.raises(grpc.RpcError):
                next(call)
        found = spans(receiver, watch, 2)
    codes = sorted(span.attributes["rpc.grpc.status_code"] for span in found)
    assert codes == [grpc.StatusCode.CANCELLED.value[0], grpc.StatusCode.DEADLINE_EXCEEDED.value[0]]


def test_callers_decide_for_their_traces_and_the_rate_for_the_rest(tmp_path: Path) -> None:
    with OtlpReceiver() as receiver:
        with DaemonProcess(tmp_path / "var", traced(receiver, OTEL_SAMPLING_RATE="0")) as daemon:
            send(daemon, now_batch("vm-1"))
            send(daemon, now_batch("vm-1"), (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00"),))
            send(daemon, now_batch("vm-1"), (("traceparent", "nonsense"),))
            send(daemon, now_batch("vm-1"), (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01"),))
            assert daemon.stop() == 0
        assert [span.trace for span in receiver.of(SEND)] == [TRACE_ID]


# --- metrics ------------------------------------------------------------------------


def test_the_metrics_are_those_of_prometheus(tmp_path: Path) -> None:
    with OtlpReceiver() as receiver:
        with DaemonProcess(tmp_path / "var", traced(receiver)) as daemon:
            for turn in range(5):
                send(daemon, now_batch(f"vm-{turn}"))
            until(lambda: daemon.stats()["journal"]["lag"] == 0, "everything in the ledger")
            serving = daemon.wait_for(lambda line: line["message"] == "serving", "serving")
            page = httpx.get(f"http://{serving['metrics']}/metrics").text
            assert daemon.stop() == 0
        shown = {line.split()[2]: line.split()[3] for line in page.splitlines() if line.startswith("# TYPE")}
        assert receiver.metrics_resource["service.name"] == "billaged"
        assert receiver.numbers("billaged_usage_records_processed_total") == {(): 10.0}
        assert receiver.numbers("billaged_active_vms") == {(): 5.0}
        assert receiver.numbers("billaged_billing_errors_total")[("wrong_owner",)] == 0.0
        requests = receiver.numbers("billaged_requests_total")
        assert requests[("grpc", "SendMetricsBatch", "OK")] == 5.0
        assert receiver.numbers("billaged_spans_total")[("dropped",)] == 0.0
        counter = receiver.metrics["billaged_usage_records_processed_total"].sum
        assert counter.is_monotonic and counter.aggregation_temporality == 2
        commits = receiver.metrics["billaged_journal_commit_duration_seconds"]
        point = commits.histogram.data_points[0]
        assert commits.unit == "s" and point.count == sum(point.bucket_counts) >= 5
        assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
        assert 0 < point.sum < 60 and not point.HasField("min")
        kinds = {"sum": "counter", "gauge": "gauge", "histogram": "histogram"}
        for name, metric in receiver.metrics.items():
            assert shown[name] == kinds[str(metric.WhichOneof("data"))], name
        assert plain(receiver.metrics["billaged_build_info"].gauge.data_points[0].attributes)["store"] == "sqlite"


# --- a collector in trouble ---------------------------------------------------------


def test_a_collector_that_hangs_holds_up_no_request_and_no_stop(tmp_path: Path) -> None:
    with OtlpReceiver() as receiver:
        receiver.hold = threading.Event()
        with DaemonProcess(tmp_path / "var", traced(receiver)) as daemon:
            send(daemon, now_batch("vm-1"))
            until(lambda: receiver.requests, "the collector is asked")
            slowest = 0.0
            with daemon.channel() as channel:
                method: Any = channel.unary_unary(f"/{SEND}", request_serializer=None, response_deserializer=None)
                for turn in range(200):
                    began = time.monotonic()
                    method(now_batch(f"vm-{turn}").SerializeToString(), timeout=30)
                    slowest = max(slowest, time.monotonic() - began)
            # The exporter waits for seconds all the while.
            assert slowest < 1.5
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 8.0
            assert any("could not be sent in time" in line["message"] for line in daemon.log)


def test_a_collector_that_is_away_is_said_once_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        settings = {"OTEL_ENABLED": "true", "OTEL_ENDPOINT": endpoint}
        with DaemonProcess(tmp_path / "var", settings) as daemon:
            metrics = daemon.wait_for(lambda line: line["message"] == "serving", "serving")["metrics"]
            send(daemon, now_batch("vm-1"))

            def failed() -> bool:
                page = httpx.get(f"http://{metrics}/metrics").text
                return 'billaged_spans_total{outcome="failed"} 3.0' in page

            until(failed, "three spans failed")
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 6.0
    said = [line for line in daemon.log if line["logger"] == "billaged.telemetry"]
    assert [line["message"] for line in said if "spans" in line["message"]] == [
        f"spans cannot be sent to {endpoint}/v1/traces: dropped until they can"
    ]
    assert daemon.other_output == ""


def test_what_there_is_no_room_for_is_dropped_and_counted() -> None:
    tracing = Tracing(1.0)
    begin = tracing.grpc().of(BILLING, "SendMetricsBatch")
    for _ in range(WAITING_MAX + 10):
        begin(()).end("OK")
    assert (len(tracing.ended), tracing.dropped) == (WAITING_MAX, 10)
    assert tracing.wake.is_set()
    assert len(tracing.take()) == BATCH
    assert tracing.wake.is_set()


def test_only_records_of_the_group_are_told_that_it_is_folded() -> None:
    tracing = Tracing(1.0)
    begin = tracing.grpc().of(BILLING, "SendMetricsBatch")
    made = []
    for number in (2, 3, 7):
        made.append(begin(()))
        tracing.handed_over(number)
    tracing.folded(1, 0.001)
    assert not tracing.ended
    tracing.folded(5, 0.001)
    assert [folded.trace for folded in tracing.ended if not isinstance(folded, Trace)] == made[:2]
    tracing.folded(1, 0.001)
    assert len(tracing.ended) == 3
    traces.current.set(None)


def test_sending_takes_half_of_the_time_at_most() -> None:
    class Exporter:
        """Has nothing to say."""

    always, sent = threading.Event(), []
    always.set()

    def send() -> bool:
        began = time.thread_time()
        while time.thread_time() - began < 0.02:
            continue
        sent.append(time.monotonic())
        return True

    sender = Sender("spans", send, lambda: False, lambda: None, Reason(Exporter()), "nowhere", always, 60.0)
    sender.start()
    until(lambda: len(sent) >= 6, "six are sent")
    sender.ask_to_stop(time.monotonic() + 10)
    sender.join()
    # Each but the first has a rest before it as long as itself.
    assert sent[5] - sent[0] >= 5 * 0.04 * 0.95
    logging.getLogger(Exporter.__module__).propagate = True


# --- not installed, or off ----------------------------------------------------------


def test_without_its_libraries_it_does_not_start_and_says_what_to_install(tmp_path: Path) -> None:
    # A folder in front of the installed ones, in which they cannot be had.
    hidden = tmp_path / "hidden" / "opentelemetry"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("")
    env = environment(tmp_path / "var", {"OTEL_ENABLED": "true"}) | {"PYTHONPATH": str(hidden.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "billaged", "serve"],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == (
        "billaged: error: UNKEY_BILLAGED_OTEL_ENABLED is set, but opentelemetry.sdk and"
        " opentelemetry.exporter.otlp.proto.http cannot be imported. Install its extra: pip install 'billaged[otel]'."
        " Or unset it: /metrics is served without."
    )
    assert not (tmp_path / "var").exists()


def test_where_it_is_off_nothing_of_it_is_loaded() -> None:
    code = (
        "import sys, billaged.daemon\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter',"
        " 'billaged.telemetry.otlp'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_ENDPOINT", "localhost"),
        ("OTEL_ENDPOINT", "ftp://localhost:4318"),
        ("OTEL_ENDPOINT", "localhost:4318/path"),
        ("OTEL_ENDPOINT", "http://"),
        ("OTEL_ENDPOINT", "http://host:99999"),
        ("OTEL_SAMPLING_RATE", "1.1"),
        ("OTEL_SERVICE_NAME", "a\tb"),
        ("LOG_LEVELS", "billaged.audit"),
        ("LOG_LEVELS", "billaged.audit=loud"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, name: str, value: str) -> None:
    ended = fails_to_start(tmp_path / "var", **{name: value})
    assert ended.exit_code == 2
    assert f"UNKEY_BILLAGED_{name}" in ended.stderr


def test_a_password_in_the_endpoint_is_refused_and_not_repeated(tmp_path: Path) -> None:
    ended = fails_to_start(tmp_path / "var", OTEL_ENDPOINT="https://me:hunter22@host:x")
    assert ended.exit_code == 2
    assert "without user" in ended.stderr and "hunter22" not in ended.stderr + ended.stdout


# --- ids and sampling, as the library does it -----------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"00-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-00",
        f"00-{TRACE_ID}-{SPAN_ID}-03",
        f"01-{TRACE_ID}-{SPAN_ID}-01-what-later-versions-add",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}",
        "",
        "x" * 10_000,
    ],
)
def test_a_parent_is_read_as_opentelemetry_reads_it(text: str) -> None:
    context = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": text})).get_span_context()
    expected = (context.trace_id, context.span_id, context.trace_flags.sampled) if context.is_valid else None
    assert parent_of(text) == expected


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_the_same_traces_are_kept_as_by_opentelemetry(rate: float) -> None:
    sampler = TraceIdRatioBased(rate)
    served = Served("a/b", {"rpc.system": "grpc"}, "x")
    for _ in range(2_000):
        trace = Trace(served, None, rate_bound(rate), lambda _: None)
        assert trace.sampled == (sampler.should_sample(None, trace.trace_id, "").decision is Decision.RECORD_AND_SAMPLE)


# --- a real collector -----------------------------------------------------------------


def test_open_telemetry_stops_without_having_been_started() -> None:
    try:
        telemetry = OpenTelemetry(Target("http://127.0.0.1:9", "billaged", "1", 1.0))
    except StartError as error:
        pytest.fail(f"the tests need the extra: {error}")
    telemetry.stop(0.1)
    assert telemetry.spans == {"sent": 0, "failed": 0, "dropped": 0}
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ
