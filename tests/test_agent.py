"""The agent as a whole: the real command in its own process, killed, stopped, cut off and taken up again."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from client_fixtures import BillingServer, billaged_process, billing_server, sample_times, wait_until
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import status_pb2

from billaged.client.processes import identify
from billaged.model.time import NANOS
from billaged.wire.billing.v1 import billing_pb2 as pb

VM = "host-under-test"


@pytest.fixture
def server() -> Iterator[BillingServer]:
    with billing_server() as running:
        yield running


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "agent.log"


@contextmanager
def agent(server: BillingServer, log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent that samples every 50 ms, its spool beside its log."""
    common = ["--address", server.address, "--spool-dir", str(log.parent / "spool"), "--timeout", "2s"]
    process = billaged_process(["agent", "--interval", "50ms", "--vm-id", VM, *common, *arguments], log)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def spooled_bytes(log: Path) -> int:
    return sum(path.stat().st_size for path in (log.parent / "spool").glob("*.spool"))


def test_the_host_is_metered_and_a_signal_ends_it_within_two_seconds(server: BillingServer, log: Path) -> None:
    with agent(server, log, "--customer-id", "acme", "--instance-id", "here") as process:
        wait_until(lambda: len(sample_times(server.taken, VM)) >= 5, "five samples")
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
        assert time.monotonic() - asked < 2
    times = sample_times(server.taken, VM)
    assert times == sorted(set(times))
    assert abs(times[-1] - time.time_ns()) < 10 * NANOS
    (heartbeat,) = [message for message in server.taken if isinstance(message, pb.SendHeartbeatRequest)]
    assert heartbeat == pb.SendHeartbeatRequest(instance_id="here", active_vms=[VM])
    batches = [message for message in server.usage if isinstance(message, pb.SendMetricsBatchRequest)]
    assert len(batches) == len(server.usage), "the host ran before the agent: no start"
    assert {batch.customer_id for batch in batches} == {"acme"}
    assert batches[0].metrics[0].cpu_time_nanos > 0
    assert batches[0].metrics[0].memory_usage_bytes > 2**20
    assert spooled_bytes(log) == 0
    assert "Traceback" not in log.read_text()


def test_ctrl_c_while_the_server_is_away_ends_it_in_time_and_keeps_the_spool(server: BillingServer, log: Path) -> None:
    server.stop()
    with agent(server, log) as process:
        wait_until(lambda: spooled_bytes(log) > 300, "samples on disk")
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0, log.read_text()
        assert time.monotonic() - asked < 2
    assert spooled_bytes(log) > 300
    assert re.search(r"WARNING agent: 127.0.0.1:\d+: UNAVAILABLE.*usage waits on disk", log.read_text())


def test_a_server_that_hangs_does_not_hold_up_metering_or_the_end(server: BillingServer, log: Path) -> None:
    over = threading.Event()

    def hang(_: Message) -> None:
        over.wait(30)

    server.judge = hang
    with agent(server, log, "--timeout", "1h") as process:
        wait_until(lambda: server.attempts == 1, "a call that hangs")
        before = spooled_bytes(log)
        wait_until(lambda: spooled_bytes(log) > before + 300, "samples taken meanwhile")
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
        assert time.monotonic() - asked < 2
    over.set()


def test_a_server_that_answers_garbage_ends_nothing_and_loses_nothing(server: BillingServer, log: Path) -> None:
    retry_info = AnyMessage(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff\xff")
    status = status_pb2.Status(code=8, message="\x1b[2J", details=[retry_info]).SerializeToString()
    garbage = [b"\xff\xff\xff\xff", status]

    def judge(_: Message) -> tuple[grpc.StatusCode, str] | None:
        if server.attempts > 4:
            return None
        server.trailing = (("grpc-status-details-bin", garbage[server.attempts % 2]),)
        return grpc.StatusCode.RESOURCE_EXHAUSTED, "\x1b[2J"

    server.judge = judge
    with agent(server, log) as process:
        wait_until(lambda: len(sample_times(server.taken, VM)) >= 20, "samples, in the end")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
    times = sample_times(server.taken, VM)
    assert times == sorted(set(times))
    assert "Traceback" not in log.read_text()
    assert "\x1b" not in log.read_text()
    assert spooled_bytes(log) == 0


def test_what_was_sampled_survives_a_killed_agent(server: BillingServer, log: Path) -> None:
    """Server away, agent killed, both back: what was on disk arrives once, in order, in a batch, before what is new."""
    server.stop()
    with agent(server, log) as process:
        wait_until(lambda: spooled_bytes(log) > 1_000, "samples on disk")
        process.kill()
        process.wait(10)
    waiting_bytes = spooled_bytes(log)
    restarted_ns = time.time_ns()
    server.start()
    with agent(server, log) as process:
        wait_until(lambda: any(ns > restarted_ns for ns in sample_times(server.taken, VM)), "new samples")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
    times = sample_times(server.taken, VM)
    assert times == sorted(set(times))
    old = sum(ns < restarted_ns for ns in times)
    # A record takes 60 to 100 bytes.
    assert old >= waiting_bytes // 100
    first = server.usage[0]
    assert isinstance(first, pb.SendMetricsBatchRequest)
    assert len(first.metrics) >= old
    assert spooled_bytes(log) == 0


def test_a_server_that_comes_back_gets_what_waited(server: BillingServer, log: Path) -> None:
    with agent(server, log) as process:
        wait_until(lambda: len(sample_times(server.taken, VM)) >= 3, "samples before")
        server.stop()
        wait_until(lambda: spooled_bytes(log) > 500, "samples on disk")
        server.start()
        away = len(server.taken)
        wait_until(lambda: len(server.taken) > away + 3, "samples after")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    times = sample_times(server.taken, VM)
    # A call cut off by the stop may have been taken: it comes once more, and the server knows it.
    assert times == sorted(times)
    assert max(later - earlier for earlier, later in pairwise(times)) < 2 * NANOS
    assert " is back; " in log.read_text()


def test_a_matching_process_starts_and_stops_as_it_really_did(server: BillingServer, log: Path) -> None:
    marker = f"metered-{time.time_ns()}"
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", marker]
    before = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        with agent(server, log, "--match", marker) as process:
            wait_until(lambda: len(server.usage) >= 2, "the process that ran before")
            began_ns = time.time_ns()
            later = subprocess.Popen(command, stdin=subprocess.PIPE)
            spawned_ns = time.time_ns()
            identity = identify(later.pid)
            assert identity is not None
            wait_until(lambda: len(sample_times(server.taken, identity.vm_id)) >= 3, "the new process's samples")
            later.communicate()
            stopped = pb.NotifyVmStoppedRequest
            wait_until(lambda: any(isinstance(message, stopped) for message in server.usage), "its stop")
            ended_ns = time.time_ns()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0, log.read_text()
    finally:
        before.communicate()
    start, *samples, stop = [message for message in server.usage if getattr(message, "vm_id", "") == identity.vm_id]
    assert isinstance(start, pb.NotifyVmStartedRequest)
    assert isinstance(stop, pb.NotifyVmStoppedRequest)
    assert all(isinstance(message, pb.SendMetricsBatchRequest) for message in samples)
    times = sample_times(server.taken, identity.vm_id)
    # The kernel counts starts in hundredths of a second.
    assert began_ns - NANOS // 50 <= start.start_time <= spawned_ns
    assert start.start_time <= times[0]
    assert stop.stop_time == times[-1] <= ended_ns
    others = [message for message in server.usage if getattr(message, "vm_id", "") != identity.vm_id]
    assert {type(message) for message in others} == {pb.SendMetricsBatchRequest}, "it ran before: no start, no stop"
    assert not sample_times(server.taken, VM), "the host would bill the same again"


def test_the_agent_ends_when_its_only_process_has(server: BillingServer, log: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    with agent(server, log, "--pid", str(child.pid)) as process:
        wait_until(lambda: len(server.usage) >= 2, "samples")
        child.communicate()
        assert process.wait(10) == 0, log.read_text()
    assert isinstance(server.usage[-1], pb.NotifyVmStoppedRequest)
    assert "nothing is left to meter" in log.read_text()


def test_once(server: BillingServer, log: Path) -> None:
    with agent(server, log, "--once") as process:
        assert process.wait(20) == 0, log.read_text()
    assert len(sample_times(server.taken, VM)) == 1
    server.stop()
    with agent(server, log, "--once") as process:
        assert process.wait(20) == 1
    assert spooled_bytes(log) > 0
    server.start()
    server.judge = lambda message: (
        None if isinstance(message, pb.SendHeartbeatRequest) else (grpc.StatusCode.INVALID_ARGUMENT, "customer_id: no")
    )
    with agent(server, log, "--once") as process:
        assert process.wait(20) == 1, "refused is not taken"
    assert len((log.parent / "spool/refused.jsonl").read_text().splitlines()) == 2
    assert spooled_bytes(log) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["--pid", "999999999"], 2, "--pid 999999999: there is no such process."),
        (["--match", "("], 2, "not a regular expression"),
        (["--customer-id", "a b"], 2, "may hold only letters, digits"),
        (["--interval", "1"], 2, "write it like 60s"),
        (["--interval", "0s"], 2, "longer than nothing"),
        (["--spool-max", "1KiB"], 2, "at least 4096 bytes"),
        (["--spool-max", "lots"], 2, "write it like 256MiB"),
        (["--no-host"], 2, "nothing to meter"),
    ],
)
def test_a_wrong_argument_ends_it_with_one_message(
    server: BillingServer, log: Path, arguments: list[str], code: int, problem: str
) -> None:
    with agent(server, log, *arguments) as process:
        assert process.wait(20) == code
    text = " ".join(log.read_text().split())
    assert problem in text
    assert "Traceback" not in text


def test_two_agents_do_not_share_a_spool(server: BillingServer, log: Path) -> None:
    with agent(server, log):
        wait_until(lambda: bool(server.usage), "the first agent's samples")
        with agent(server, log.parent / "second.log") as second:
            assert second.wait(20) == 1
    assert "another agent is using this spool" in (log.parent / "second.log").read_text()


def test_without_psutil_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['psutil'] = None\n"  # what Python takes for not installed
        "from billaged.cli.main import main\n"
        "sys.argv = ['billaged', 'agent']; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr == (
        "billaged: error: billaged agent needs psutil, which is not installed. pip install 'billaged[agent]'\n"
    )
