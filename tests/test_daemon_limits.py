"""A daemon at its limits: too much at once, no disk left, callers without a certificate."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from daemon_calls import BILLING, SECOND, batch, call, retry_delay_seconds, until
from daemon_process import ROOT, DaemonProcess
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tls_material import Authority

from billaged.wire.billing.v1 import billing_pb2 as pb


def test_a_full_queue_refuses_with_a_delay_and_bills_what_it_took(tmp_path: Path) -> None:
    start_ns = time.time_ns() - 3600 * SECOND
    with DaemonProcess(tmp_path / "var", {"QUEUE_MAX_RECORDS": "4"}) as daemon, daemon.channel() as channel:
        send = channel.unary_unary(
            f"/{BILLING}/SendMetricsBatch", response_deserializer=pb.SendMetricsBatchResponse.FromString
        )
        requests = {f"vm-{number}": batch(f"vm-{number}", start_ns).SerializeToString() for number in range(300)}
        futures = {vm_id: send.future(request, timeout=20) for vm_id, request in requests.items()}
        refused = {vm_id: future for vm_id, future in futures.items() if future.exception() is not None}
        assert refused
        assert len(refused) < len(requests)
        assert {future.code() for future in refused.values()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all(retry_delay_seconds(future) >= 0.5 for future in refused.values())
        # It recovers by itself, and asked for once more each is taken.
        until(lambda: daemon.stats()["queue_depth"] == 0, "an empty queue")
        before = {vm_id for vm_id in requests if vm_id not in refused}
        assert daemon.stop() == 0
        assert {row[0] for row in daemon.ledger()["sessions"]} == before
        assert daemon.other_output == ""


def test_without_disk_it_refuses_usage_and_goes_on_reading(tmp_path: Path) -> None:
    """A terabyte is to stay free: the most that can be asked for, and more than there usually is."""
    if shutil.disk_usage(tmp_path).free >= 2**40:
        pytest.skip("this disk has more room than UNKEY_BILLAGED_MIN_FREE_BYTES can ask for")
    with DaemonProcess(tmp_path / "var", {"MIN_FREE_BYTES": "1TiB"}) as daemon:
        until(lambda: not daemon.stats()["taking_usage"], "the look at the disk")
        with pytest.raises(grpc.RpcError) as caught:
            daemon.call("SendMetricsBatch", batch("vm-1", time.time_ns()))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "disk" in caught.value.details()
        assert retry_delay_seconds(caught.value) == 30
        answer = daemon.post("SendHeartbeat", {"instanceId": "host-1"})
        assert (answer.status_code, answer.json()["code"]) == (429, "resource_exhausted")
        assert daemon.get("/health").json()["status"] == "ok"
        assert daemon.ledger()["sessions"] == []
        assert any("UNKEY_BILLAGED_MIN_FREE_BYTES" in line["message"] for line in daemon.log)
        assert daemon.stop() == 0
        assert daemon.other_output == ""


def test_mutual_tls_from_files_with_the_send_command(tmp_path: Path) -> None:
    authority, stranger = Authority(), Authority("another authority")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    server = authority.sign("billaged", names=("localhost", "127.0.0.1")).write(tmp_path, "server")
    metald = authority.sign("metald", uris=("spiffe://example.org/metald",)).write(tmp_path, "metald")
    unknown = stranger.sign("metald").write(tmp_path, "unknown")
    policy = tmp_path / "policy.toml"
    policy.write_text('[[allow]]\nidentity = "spiffe://example.org/metald"\nroles = ["ingest"]\n')
    settings = {
        "POLICY_FILE": str(policy),
        "TLS_MODE": "file",
        "TLS_CERT_FILE": str(server[0]),
        "TLS_KEY_FILE": str(server[1]),
        "TLS_CA_FILE": str(ca),
    }

    def send(address: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "billaged", "send", "metrics", "--vm-id", "vm-1", "--customer-id", "acme"]
        return subprocess.run(
            [*command, "--address", address, "--timeout", "5s", *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    with DaemonProcess(tmp_path / "var", settings) as daemon:
        trusted = send(
            daemon.grpc_address, "--tls-ca", str(ca), "--tls-cert", str(metald[0]), "--tls-key", str(metald[1])
        )
        assert (trusted.returncode, trusted.stderr) == (0, "")
        assert '"processed 1 metrics"' in trusted.stdout
        refused = {
            "plaintext": send(daemon.grpc_address),
            "no certificate": send(daemon.grpc_address, "--tls-ca", str(ca)),
            "another authority": send(
                daemon.grpc_address, "--tls-ca", str(ca), "--tls-cert", str(unknown[0]), "--tls-key", str(unknown[1])
            ),
        }
        assert {how: done.returncode for how, done in refused.items()} == dict.fromkeys(refused, 1)
        assert all("Traceback" not in done.stderr for done in refused.values())
        assert daemon.stop() == 0
        assert not [line for line in daemon.log if line["level"] == "error"]
        # Only the one that could prove itself is on the bill.
        assert dict(daemon.ledger()["tallies"])["samples"] == 1


def test_what_one_caller_breaks_the_next_does_not_notice(tmp_path: Path) -> None:
    """Bytes at random, half of a message, headers without end: then business as usual."""
    with DaemonProcess(tmp_path / "var") as daemon, daemon.channel() as channel:
        good = batch("vm-1", time.time_ns() - SECOND).SerializeToString()
        for length in range(1, len(good), 7):
            for junk in (good[:length], good[:length] + b"\xff" * 9, bytes([length % 256]) * length):
                _try(channel, junk)
        assert call(channel, "SendMetricsBatch", batch("vm-2", time.time_ns() - SECOND)).success
        assert daemon.stop() == 0
        assert not [line for line in daemon.log if line["level"] == "error"]
        assert daemon.other_output == ""
        assert "vm-2" in {row[0] for row in daemon.ledger()["sessions"]}


def _try(channel: grpc.Channel, payload: bytes) -> None:
    """A request of any bytes is answered, or refused as the caller's error."""
    try:
        call(channel, "SendMetricsBatch", payload)
    except grpc.RpcError as error:
        assert error.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}


# --- places ----------------------------------------------------------------------------


def test_streams_of_health_leave_room_for_usage(tmp_path: Path) -> None:
    """Health is open to all and its streams may stay for ever: they have places of their own."""
    with DaemonProcess(tmp_path / "var", {"MAX_CONCURRENT_RPCS": "300"}) as daemon, daemon.channel() as channel:
        watches = [
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(256)
        ]
        assert {next(watch).status for watch in watches} == {health_pb2.HealthCheckResponse.SERVING}
        with pytest.raises(grpc.RpcError) as caught:
            next(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60))
        status: Any = caught.value
        assert status.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_delay_seconds(caught.value) > 0
        assert call(channel, "SendHeartbeat", pb.SendHeartbeatRequest(instance_id="host-1")).success
        for watch in watches:
            watch.cancel()
        until(lambda: _watches(channel), "their places are free again")
        assert daemon.stop() == 0


def _watches(channel: grpc.Channel) -> bool:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    try:
        return bool(next(watch).status == health_pb2.HealthCheckResponse.SERVING)
    except grpc.RpcError:
        return False
    finally:
        watch.cancel()


def test_silent_connections_leave_files_for_journal_and_ledger(tmp_path: Path) -> None:
    """With 256 files for all, 400 connections that say nothing: usage goes on, and so does the daemon."""
    few = ("sh", "-c", 'ulimit -n 256 && exec "$@"', "sh")
    with DaemonProcess(tmp_path / "var", under=few) as daemon, daemon.channel() as channel:
        line = daemon.wait_for(lambda line: "open files" in line["message"], "that there are few")
        assert "LimitNOFILE" in line["message"]
        assert call(channel, "SendMetricsBatch", batch("vm-1", time.time_ns() - SECOND)).success
        places = [
            (place.rpartition(":")[0], int(place.rpartition(":")[2]))
            for place in (daemon.grpc_address, daemon.http_url.removeprefix("http://"))
        ]
        idle = [socket.create_connection(place, 5) for place in places for _ in range(200)]
        try:
            for number in range(20):
                assert call(channel, "SendMetricsBatch", batch(f"vm-{number}", time.time_ns() - SECOND)).success
            # What opens files: a new connection to the ledger, which /stats and this command's reader are.
            assert len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())) < 250
            until(lambda: daemon.ledger()["sessions"], "a ledger that is written")
        finally:
            for connection in idle:
                connection.close()
        assert daemon.stop() == 0
        assert not [line for line in daemon.log if line["level"] == "error"]
