"""No acknowledgement leaves before its sync has returned: seen from outside, by strace."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import httpx
import pytest
from daemon_calls import SECOND, batch, call
from daemon_process import DaemonProcess

from billaged.wire.billing.v1 import billing_pb2 as pb
from faults.scale import scaled
from faults.settings import SETTINGS
from faults.trace import found_at, read_trace, too_early, under

REQUESTS = scaled(20, 50, 200)
ANSWER = b"processed 1 metrics"
URL = "/billing.v1.BillingService/SendMetricsBatch"


def marker(number: int) -> str:
    return f"vm-number-{number}-ends"


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.mark.slow
@pytest.mark.parametrize("door", ["grpc", "http"][: scaled(1, 2, 2)])
def test_no_acknowledgement_leaves_before_its_sync_has_returned(door: str, tmp_path: Path) -> None:
    data_dir, log = tmp_path / "var", tmp_path / "strace"
    start_ns = time.time_ns() - 3600 * SECOND
    with DaemonProcess(data_dir, SETTINGS, under=under(log)) as daemon:
        if door == "grpc":
            address = daemon.grpc_address
            with daemon.channel() as channel:
                for number in range(REQUESTS):
                    # The VM comes last: once it has been read, all of the request has.
                    rest = batch("", start_ns).SerializeToString()
                    last = pb.SendMetricsBatchRequest(vm_id=marker(number)).SerializeToString()
                    assert call(channel, "SendMetricsBatch", rest + last).success
        else:
            address = daemon.http_url
            started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start_ns // SECOND))
            sample = {"timestamp": started, "memoryUsageBytes": "5"}
            # Compressed, the answers could not be recognised.
            with httpx.Client(base_url=daemon.http_url, headers={"Accept-Encoding": "identity"}) as client:
                for number in range(REQUESTS):
                    request = {"customerId": "acme", "metrics": [sample], "vmId": marker(number)}
                    assert client.post(URL, json=request).json()["success"]
        assert daemon.stop() == 0
        assert {row[0] for row in daemon.ledger()["sessions"]} == {marker(number) for number in range(REQUESTS)}
    trace = read_trace(log.read_text().splitlines(), data_dir / "journal.db-wal", port(address))
    assert len(trace.syncs) >= REQUESTS
    assert too_early(trace, (marker(number).encode() for number in range(REQUESTS)), ANSWER) == []


# A start makes fewer on one thread, so it is the journal's: the counting is by thread.
FAILED_SYNC = 20


@pytest.mark.slow
def test_nothing_is_acknowledged_once_a_sync_has_failed(tmp_path: Path) -> None:
    data_dir, log = tmp_path / "var", tmp_path / "strace"
    acked = []
    with DaemonProcess(data_dir, SETTINGS, under=under(log, f"error=EIO:when={FAILED_SYNC}")) as daemon:
        with daemon.channel() as channel, pytest.raises(grpc.RpcError) as caught:
            for number in range(2 * FAILED_SYNC):
                assert call(channel, "SendMetricsBatch", batch(marker(number), time.time_ns() - SECOND)).success
                acked.append(marker(number))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert daemon.wait() == 1
        assert daemon.other_output.startswith("billaged: error: the journal cannot be committed")
    trace = read_trace(log.read_text().splitlines(), data_dir / "journal.db-wal", port(daemon.grpc_address))
    answers = found_at(trace.sent, ANSWER, first_byte=True)
    assert len(answers) == len(acked) > 0
    assert all(answer.began < trace.failed[0].began for answer in answers)
    # Whether the last one is there nobody knows; all those before are.
    with DaemonProcess(data_dir, SETTINGS) as daemon:
        assert daemon.stop() == 0
        assert set(acked) <= {row[0] for row in daemon.ledger()["sessions"]} <= {*acked, marker(len(acked))}


SOCKET = "29<TCP:[127.0.0.1:8081->127.0.0.1:5]>"
READ = f'7 recvmsg({SOCKET}, {{msg_iov=[{{iov_base="\\0\\35vm-", iov_len=5}}, {{iov_base="1", iov_len=1}}]}}, 0) = 6'
SENT = f'7 sendmsg({SOCKET}, {{msg_iov=[{{iov_base="processed 1 me", iov_len=14}}, {{iov_base="trics"}}]}}, 0) = 19'
SYNC = "8 fdatasync(14</var/journal.db-wal>) = 0 (DELAYED)"
SYNC_BEGINS = "8 fdatasync(14</var/journal.db-wal> <unfinished ...>"
SYNC_ENDS = "8 <... fdatasync resumed>)  = 0 (DELAYED)"


@pytest.mark.parametrize(
    ("lines", "is_well"),
    [
        ([READ, SYNC, SENT], True),
        ([READ, SYNC_BEGINS, SYNC_ENDS, SENT], True),
        ([READ, SENT, SYNC], False),
        ([SYNC, READ, SENT], False),
        ([READ, SYNC_BEGINS, SENT, SYNC_ENDS], False),
        ([SYNC_BEGINS, READ, SYNC_ENDS, SENT], False),
        ([READ, SYNC.replace("journal", "ledger"), SENT], False),
        ([READ, SYNC.replace("= 0 (DELAYED)", "= -1 EIO (Input/output error)"), SENT], False),
    ],
    ids=["sync", "longer sync", "after", "before", "during", "began before", "another file", "failed"],
)
def test_the_order_is_judged(lines: list[str], is_well: bool) -> None:
    trace = read_trace(lines, Path("/var/journal.db-wal"), 8081)
    assert (too_early(trace, [b"vm-1"], ANSWER) == []) is is_well
