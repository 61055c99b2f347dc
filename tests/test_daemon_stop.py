"""SIGTERM: what was acknowledged is in the ledger, what is due is given out, and the process ends at once with 0."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import grpc
import httpx
import pytest
from daemon_calls import BILLING, SECOND, batch, call
from daemon_process import DaemonProcess, is_summary

from billaged.wire.billing.v1 import billing_pb2 as pb
from billaged.wire.billing.v1.usage_stream_pb2 import UsageSummary, WatchSummariesRequest

# No interval ends by itself: what is summed up at the end is the stop's doing.
SETTINGS = {"AGGREGATION_INTERVAL": "1h", "LEDGER_FLUSH_INTERVAL": "1m"}


def test_a_stop_under_load_drains_and_gives_out_the_last_summaries(tmp_path: Path) -> None:
    start_ns = time.time_ns() - 3600 * SECOND
    with DaemonProcess(tmp_path / "var", SETTINGS) as daemon, daemon.channel() as channel:
        send = channel.unary_unary(
            f"/{BILLING}/SendMetricsBatch", response_deserializer=pb.SendMetricsBatchResponse.FromString
        )
        call(channel, "SendMetricsBatch", batch("vm-0", start_ns))
        futures = {
            f"vm-{number}": send.future(batch(f"vm-{number}", start_ns).SerializeToString(), timeout=20)
            for number in range(1, 600)
        }
        # Right into the middle: some are answered, others on their way, others not yet sent.
        next(iter(futures.values())).result()
        assert daemon.stop() == 0
        acked = {"vm-0"} | {vm_id for vm_id, future in futures.items() if future.exception() is None}
        refused = {future.code() for future in futures.values() if future.exception() is not None}
        tables = daemon.ledger()
        assert daemon.other_output == ""
        assert [line for line in daemon.log if line["level"] == "error"] == []
    # Who was not acknowledged was told to send again; what gRPC had not handed on yet, it cancels by itself.
    assert refused <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    billed = {row[0] for row in tables["sessions"]}
    assert acked <= billed
    summed_up = {line["vm_id"] for line in daemon.summaries()}
    assert billed == summed_up
    messages = [line["message"] for line in daemon.log]
    assert messages[-1] == "stopped"
    assert messages.count("vm usage summary") == len(billed)


def test_a_stop_waits_neither_for_watchers_nor_for_idle_connections(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "var", SETTINGS) as daemon, daemon.channel() as channel:
        watch = channel.unary_stream(
            "/billing.v1.UsageStreamService/WatchSummaries",
            request_serializer=WatchSummariesRequest.SerializeToString,
            response_deserializer=UsageSummary.FromString,
        )
        stream = watch(WatchSummariesRequest())
        stream.initial_metadata()
        start_ns = time.time_ns() - 60 * SECOND
        call(channel, "SendMetricsBatch", batch("vm-1", start_ns, start_ns + SECOND))
        grpc_host, _, grpc_port = daemon.grpc_address.rpartition(":")
        http_port = int(daemon.http_url.rpartition(":")[2])
        with (
            socket.create_connection((grpc_host, int(grpc_port))),
            socket.create_connection(("127.0.0.1", http_port)),
            httpx.Client(base_url=daemon.http_url) as kept_alive,
        ):
            assert kept_alive.get("/health").status_code == 200
            began = time.monotonic()
            assert daemon.stop(within_seconds=10) == 0
            took_seconds = time.monotonic() - began
        # The watcher got the summary of the interval that ended early, then its stream ended.
        seen = [stream.next()]
        with pytest.raises((StopIteration, grpc.RpcError)):
            seen.append(stream.next())
    assert [(summary.vm_id, summary.window.samples) for summary in seen] == [("vm-1", 2)]
    assert took_seconds < 8
    assert daemon.other_output == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_daemon_that_was_idle_ends_with_nothing_to_say(tmp_path: Path, number: int) -> None:
    with DaemonProcess(tmp_path / "var", SETTINGS) as daemon:
        assert daemon.stop(number) == 0
        assert [line["message"] for line in daemon.log][-3:] == ["stopping", "journal head", "stopped"]
        assert daemon.other_output == ""


def test_an_interval_that_a_stop_left_open_goes_on_after_the_restart(tmp_path: Path) -> None:
    """Sums over a VM's summaries are its session, over stops and starts too."""
    start_ns = time.time_ns() - 3600 * SECOND
    windows = []
    for index in range(2):
        with DaemonProcess(tmp_path / "var", SETTINGS) as daemon:
            daemon.call("SendMetricsBatch", batch("vm-1", start_ns + index * 10 * SECOND))
            assert daemon.stop() == 0
            (line,) = [line for line in daemon.log if is_summary(line, vm_id="vm-1")]
        windows.append(line["window"])
    assert sum(window["cpu_time_nanos"] for window in windows) == line["session"]["cpu_time_nanos"] == 10 * SECOND
    assert sum(window["samples"] for window in windows) == line["session"]["samples"] == 2
