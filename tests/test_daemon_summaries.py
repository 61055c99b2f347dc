"""Summaries of a real daemon: the log's lines, and who watches them as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import grpc
import pytest
from daemon_calls import BILLING, GIB, SECOND, batch, call, until
from daemon_process import DaemonProcess, is_summary

from billaged.wire.billing.v1 import billing_pb2 as pb
from billaged.wire.billing.v1.usage_stream_pb2 import UsageSummary, WatchSummariesRequest

WATCHER_QUEUE_MAX = 500
WATCH = "/billing.v1.UsageStreamService/WatchSummaries"
_numbers = count(1)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    settings = {"AGGREGATION_INTERVAL": "1s", "WATCHER_QUEUE_MAX": str(WATCHER_QUEUE_MAX)}
    with DaemonProcess(tmp_path_factory.mktemp("daemon") / "var", settings) as process:
        yield process
        assert process.stop() == 0
        assert process.other_output == ""
        assert [line for line in process.log if line["level"] == "error"] == []


def new_vm() -> str:
    return f"vm-{next(_numbers)}"


def some_seconds_ago(seconds: int = 10) -> int:
    return time.time_ns() - seconds * SECOND


USAGE_FIELDS = {
    "cpu_time_nanos",
    "memory_mean_bytes",
    "memory_peak_bytes",
    "memory_byte_seconds",
    "disk_read_bytes",
    "disk_write_bytes",
    "network_rx_bytes",
    "network_tx_bytes",
    "samples",
    "measured_seconds",
    "gap_seconds",
    "resource_score",
}


def test_a_summary_line_holds_the_window_and_the_session(daemon: DaemonProcess) -> None:
    vm_id, start_ns = new_vm(), some_seconds_ago(60)
    daemon.call("NotifyVmStarted", pb.NotifyVmStartedRequest(vm_id=vm_id, customer_id="acme", start_time=start_ns))
    sent = batch(vm_id, start_ns, start_ns + 10 * SECOND)
    counters = ("cpu_time_nanos", "disk_read_bytes", "disk_write_bytes", "network_rx_bytes", "network_tx_bytes")
    for index, metrics in enumerate(sent.metrics, 1):
        for number, name in enumerate(counters, 1):
            setattr(metrics, name, index * number * 10**6)
    daemon.call("SendMetricsBatch", sent)
    line = daemon.wait_for(lambda line: is_summary(line, vm_id=vm_id) and line["session"]["samples"] == 2, vm_id)
    assert (line["customer_id"], line["session_number"], line["final"], line["replayed"]) == ("acme", 1, False, False)
    assert line["window_start"] < line["window_end"]
    assert line["session_start"] < line["session_end"]
    assert set(line["window"]) == set(line["session"]) == USAGE_FIELDS
    session = line["session"]
    # An explicit start counts from zero; memory bills the ten seconds between the two samples.
    assert [session[name] for name in counters] == [2_000_000, 4_000_000, 6_000_000, 8_000_000, 10_000_000]
    assert session["memory_peak_bytes"] == session["memory_mean_bytes"] == GIB
    assert session["memory_byte_seconds"] == 10 * GIB
    assert (session["measured_seconds"], session["gap_seconds"]) == ("10", "0")
    assert float(session["resource_score"]) > 0


def test_a_stop_brings_the_final_summary_at_once(daemon: DaemonProcess) -> None:
    vm_id, start_ns = new_vm(), some_seconds_ago(60)
    daemon.call("SendMetricsBatch", batch(vm_id, start_ns, start_ns + 10 * SECOND))
    daemon.call("NotifyVmStopped", pb.NotifyVmStoppedRequest(vm_id=vm_id, stop_time=start_ns + 15 * SECOND))
    line = daemon.wait_for(lambda line: is_summary(line, vm_id=vm_id, final=True), f"final summary of {vm_id}")
    assert line["session"]["measured_seconds"] == "15"


class Watching:
    """A WatchSummaries stream, read by a thread of its own."""

    def __init__(self, channel: grpc.Channel, request: WatchSummariesRequest) -> None:
        watch = channel.unary_stream(
            WATCH,
            request_serializer=WatchSummariesRequest.SerializeToString,
            response_deserializer=UsageSummary.FromString,
        )
        self.stream: Any = watch(request)
        # The daemon answers once the watcher has its place.
        self.stream.initial_metadata()
        self.seen: list[UsageSummary] = []
        self.ended: grpc.StatusCode | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)

    def read(self) -> None:
        self._reader.start()

    def _read(self) -> None:
        with suppress(grpc.RpcError):  # its code says why
            for summary in self.stream:
                self.seen.append(summary)
        self.ended = self.stream.code()

    def close(self) -> None:
        self.stream.cancel()
        self._reader.join(10)


def test_watchers_get_the_summaries_they_asked_for(daemon: DaemonProcess) -> None:
    mine, other, third = new_vm(), new_vm(), new_vm()
    filters = {
        "vm": WatchSummariesRequest(vm_ids=[mine]),
        "customer": WatchSummariesRequest(customer_ids=["watched-inc"]),
        "both": WatchSummariesRequest(customer_ids=["watched-inc"], vm_ids=[mine, third]),
    }
    with daemon.channel() as channel:
        watching = {name: Watching(channel, request) for name, request in filters.items()}
        for watcher in watching.values():
            watcher.read()
        start_ns = some_seconds_ago()
        for vm_id, customer_id in ((mine, "watched-inc"), (other, "watched-inc"), (third, "acme")):
            call(channel, "SendMetricsBatch", batch(vm_id, start_ns, start_ns + SECOND, customer_id=customer_id))
        until(
            lambda: len(watching["customer"].seen) >= 2 and watching["vm"].seen and watching["both"].seen, "summaries"
        )
        for watcher in watching.values():
            watcher.close()
    assert {summary.vm_id for summary in watching["vm"].seen} == {mine}
    assert {summary.vm_id for summary in watching["customer"].seen} == {mine, other}
    assert {summary.vm_id for summary in watching["both"].seen} == {mine}
    (summary,) = (summary for summary in watching["vm"].seen if summary.window.samples == 2)
    assert summary.session.cpu_time_nanos == SECOND
    assert summary.window.memory_byte_seconds == GIB
    assert summary.window_end_nanos > summary.window_start_nanos
    assert summary.session_start_nanos == start_ns


def test_a_watcher_that_does_not_read_is_cut_off_and_the_others_go_on(daemon: DaemonProcess) -> None:
    """Each interval it has 400 summaries waiting: soon more than its connection and its queue hold."""
    vm_ids = [new_vm().ljust(250, "-") for _ in range(400)]
    # A connection that holds little: gRPC would else take megabytes for a reader who takes nothing.
    with daemon.channel(("grpc.http2.bdp_probe", 0)) as slow_channel, daemon.channel() as channel:
        slow = Watching(slow_channel, WatchSummariesRequest(vm_ids=vm_ids))
        attentive = Watching(channel, WatchSummariesRequest(vm_ids=vm_ids))
        attentive.read()
        send = channel.unary_unary(
            f"/{BILLING}/SendMetricsBatch", response_deserializer=pb.SendMetricsBatchResponse.FromString
        )
        start_ns = some_seconds_ago(600)
        for second in range(4):
            time_ns = start_ns + second * SECOND
            futures = [send.future(batch(vm_id, time_ns).SerializeToString(), timeout=20) for vm_id in vm_ids]
            # Acks go on, whatever the watcher does.
            assert all(future.result().success for future in futures)
            wanted = (second + 1) * len(vm_ids)
            until(
                lambda wanted=wanted: sum(s.window.samples for s in attentive.seen) >= wanted,
                "the interval's summaries",
            )
        slow.read()
        until(lambda: slow.ended is not None, "the slow watcher's end")
        assert slow.ended is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "behind" in slow.stream.details()
        assert attentive.ended is None
        attentive.close()
        slow.close()
