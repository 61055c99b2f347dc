"""The agent's parts with the time passed in: delivery and its retries, a full spool, the readings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from client_fixtures import (
    NOW_NS,
    BillingServer,
    Judge,
    ToldClock,
    billing_server,
    make_certificates,
    mutual_tls,
    reading,
    sample_times,
)
from google.protobuf.message import Message

from billaged.client.agent import Agent
from billaged.client.backoff import Backoff
from billaged.client.channel import BillingClient, Target, TlsFiles
from billaged.client.courier import Courier
from billaged.client.host import BUSY_FIELDS, BootMark, DeviceTotals, HostSource, whole_disks
from billaged.client.metering import Metering
from billaged.client.processes import ProcessSource, identify
from billaged.client.readings import Observation, metrics_record, started_record, stopped_record
from billaged.client.refused import RefusedFile
from billaged.client.spool import Spool
from billaged.model.records import Kind
from billaged.model.time import NANOS
from billaged.wire.billing.v1 import billing_pb2 as pb

SECOND = NANOS


class Rig:
    """A spool and a courier that talks to a real server, on a clock that is told the time."""

    def __init__(self, server: BillingServer, directory: Path) -> None:
        self.server = server
        self.clock = ToldClock()
        self.spool = Spool(directory, 2**24)
        self.client = BillingClient(Target(server.address, None, 5.0))
        self.active: tuple[str, ...] = ("a",)
        self.courier = Courier(
            self.client, self.spool, "here", lambda: self.active, self.clock, Backoff(chance=lambda: 0.0)
        )

    def put(self, vm_id: str, *seconds: int, customer_id: str = "c") -> None:
        self.spool.append([metrics_record(vm_id, customer_id, reading(NOW_NS + s * SECOND, s)) for s in seconds])

    def deliver_all(self) -> None:
        """Until nothing is left, waiting as long as the courier asks for on the told clock."""
        for _ in range(200):
            seconds = self.courier.deliver()
            if not self.courier.is_away() and seconds:
                return
            self.clock.advance(seconds)
        raise AssertionError("never done")

    def close(self) -> None:
        self.client.close()
        self.spool.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with billing_server() as server:
        built = Rig(server, tmp_path / "spool")
        yield built
        built.close()


def seconds_of(messages: list[Message], vm_id: str) -> list[int]:
    return [(ns - NOW_NS) // SECOND for ns in sample_times(messages, vm_id)]


def refuse_samples(code: grpc.StatusCode, *bad_seconds: int) -> Judge:
    def judge(request: Message) -> tuple[grpc.StatusCode, str] | None:
        bad = set(bad_seconds) & set(seconds_of([request], getattr(request, "vm_id", "")))
        return (code, f"metrics: bad {min(bad)}") if bad else None

    return judge


def test_samples_that_wait_go_in_batches_of_a_thousand(rig: Rig) -> None:
    rig.put("a", *range(2_500))
    rig.put("b", 0)
    rig.put("a", 2_500)
    rig.deliver_all()
    assert [
        len(message.metrics) for message in rig.server.usage if isinstance(message, pb.SendMetricsBatchRequest)
    ] == [
        1_000,
        1_000,
        501,
        1,
    ]
    assert seconds_of(rig.server.taken, "a") == list(range(2_501))
    assert rig.spool.used_bytes == 0
    assert rig.courier.acknowledged == 2_502


def test_a_vms_order_is_kept_around_its_start_and_stop(rig: Rig) -> None:
    rig.put("a", 1, 2)
    rig.spool.append([stopped_record("a", NOW_NS + 2 * SECOND), started_record("a", "c", NOW_NS + 3 * SECOND)])
    rig.put("a", 4)
    rig.put("b", 4)
    rig.put("a", 5)
    rig.put("a", 6, customer_id="another")
    rig.deliver_all()
    kinds = [type(message) for message in rig.server.usage if getattr(message, "vm_id", "") == "a"]
    batch = pb.SendMetricsBatchRequest
    assert kinds == [batch, pb.NotifyVmStoppedRequest, pb.NotifyVmStartedRequest, batch, batch]
    assert seconds_of(rig.server.taken, "a") == [1, 2, 4, 5, 6]


@pytest.mark.parametrize(
    "code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL", "UNAUTHENTICATED"]
)
def test_a_failure_that_may_pass_is_tried_again_with_longer_waits(rig: Rig, code: str) -> None:
    rig.put("a", 1, 2)
    rig.server.judge = lambda _: (grpc.StatusCode[code], "not now")
    waits = []
    for _ in range(9):
        waits.append(rig.courier.deliver())
        rig.clock.advance(waits[-1])
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert rig.server.taken == []
    rig.server.judge = lambda _: None
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [1, 2]
    rig.put("a", 3)
    rig.server.judge = lambda _: (grpc.StatusCode[code], "not now")
    assert rig.courier.deliver() == 0.5, "a success starts the waits anew"


def test_nothing_is_called_before_the_wait_is_over(rig: Rig) -> None:
    rig.put("a", 1)
    rig.server.judge = lambda _: (grpc.StatusCode.UNAVAILABLE, "not now")
    rig.courier.deliver()
    rig.clock.advance(0.25)
    assert rig.courier.deliver() == 0.25
    assert rig.server.attempts == 1


def test_the_server_may_ask_for_a_longer_wait(rig: Rig) -> None:
    rig.put("a", 1)
    rig.server.retry_delay_seconds = 7
    rig.server.judge = lambda _: (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    assert rig.courier.deliver() == 7.0
    rig.server.retry_delay_seconds = 3_600
    rig.clock.advance(7)
    assert rig.courier.deliver() == 30.0, "but not for ever"


def test_a_batch_too_large_for_the_server_is_sent_in_parts(rig: Rig) -> None:
    rig.put("a", *range(100))
    rig.server.judge = lambda request: (
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too large") if len(getattr(request, "metrics", ())) > 10 else None
    )
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == list(range(100))


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION])
def test_a_refused_sample_takes_no_other_with_it(
    rig: Rig, code: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    rig.put("a", *range(50))
    rig.put("b", 1)
    rig.server.judge = refuse_samples(code, 7, 31)
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [second for second in range(50) if second not in (7, 31)]
    assert seconds_of(rig.server.taken, "b") == [1]
    lines = [json.loads(line) for line in (rig.spool.directory / "refused.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in lines] == [f"{code.name}: metrics: bad 7", f"{code.name}: metrics: bad 31"]
    assert [line["request"]["metrics"][0]["cpuTimeNanos"] for line in lines] == ["7", "31"]
    assert rig.courier.refused == 2
    assert rig.spool.used_bytes == 0
    assert sum("a refused: " in record.getMessage() for record in caplog.records) == 1, "said once"


def test_what_cannot_be_kept_as_refused_stays_in_the_spool(rig: Rig) -> None:
    rig.put("a", 1)
    rig.server.judge = refuse_samples(grpc.StatusCode.INVALID_ARGUMENT, 1)
    (rig.spool.directory / "refused.jsonl").mkdir()
    rig.courier.deliver()
    assert rig.courier.is_away()
    assert rig.spool.used_bytes > 0


def test_the_refused_file_keeps_one_older_one(tmp_path: Path) -> None:
    file = RefusedFile(tmp_path / "refused.jsonl", max_bytes=1)
    for vm_id in ("first", "second", "third"):
        file.add(NOW_NS, Kind.STOPPED, pb.NotifyVmStoppedRequest(vm_id=vm_id), "INVALID_ARGUMENT: no")
    kept = {path.name: json.loads(path.read_text())["request"]["vmId"] for path in tmp_path.iterdir()}
    assert kept == {"refused.jsonl": "third", "refused.jsonl.1": "second"}


def test_a_heartbeat_every_thirty_seconds_with_what_runs_now(rig: Rig) -> None:
    rig.active = ("a", "b")
    assert rig.courier.deliver() == 30.0
    rig.clock.advance(29)
    assert rig.courier.deliver() == 1.0
    rig.active = ("b",)
    rig.clock.advance(1)
    rig.courier.deliver()
    assert rig.server.taken == [
        pb.SendHeartbeatRequest(instance_id="here", active_vms=["a", "b"]),
        pb.SendHeartbeatRequest(instance_id="here", active_vms=["b"]),
    ]


def test_a_heartbeat_the_server_will_not_have_does_not_stop_the_samples(rig: Rig) -> None:
    rig.put("a", 1)
    rig.server.judge = lambda request: (
        (grpc.StatusCode.INVALID_ARGUMENT, "instance_id: no") if hasattr(request, "instance_id") else None
    )
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [1]


def test_rotated_tls_files_are_taken_up_with_the_next_try(tmp_path: Path) -> None:
    """A certificate that the server no longer takes is replaced on disk: no restart is needed."""
    for name in ("old", "new", "used"):
        (tmp_path / name).mkdir()
    old, new = make_certificates(tmp_path / "old"), make_certificates(tmp_path / "new")
    used = {name: Path(shutil.copy(path, tmp_path / "used")) for name, path in old.items()}
    server, clock, spool = BillingServer(), ToldClock(), Spool(tmp_path / "spool", 2**20)
    server.start(mutual_tls(new))
    tls = TlsFiles(used["ca.pem"], used["client.pem"], used["client.key"], "billaged.test")
    spool.append([stopped_record("a", NOW_NS)])
    try:
        with BillingClient(Target(server.address, tls, 5.0)) as client:
            courier = Courier(client, spool, "here", lambda: ("a",), clock, Backoff())
            clock.advance(courier.deliver())
            assert courier.is_away()
            for name, path in new.items():
                Path(shutil.copy(path, tmp_path / "used" / f"{name}.next")).replace(used[name])
            # One more failure at most, which is when the files are looked at.
            clock.advance(courier.deliver())
            assert courier.deliver() == 0.0
    finally:
        server.stop()
        spool.close()
    assert server.usage == [pb.NotifyVmStoppedRequest(vm_id="a", stop_time=NOW_NS)]


class Script:
    """A source that says what it is given, a list a tick."""

    def __init__(self, *ticks: list[Observation]) -> None:
        self._ticks = list(ticks)

    def observe(self) -> list[Observation]:
        return self._ticks.pop(0)

    def spooled(self) -> None:
        pass

    def exhausted(self) -> bool:
        return not self._ticks


def test_a_full_spool_leaves_samples_out_and_reports_the_gap(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    at = [NOW_NS + second * SECOND for second in range(200)]
    ticks = [[Observation("a", reading(ns)), Observation("b", reading(ns))] for ns in at]
    ticks[150] = [Observation("a", reading(at[150])), Observation("b", stopped_ns=at[149])]
    for second in range(151, 200):
        ticks[second] = [Observation("a", reading(at[second]))]
    ticks[160].append(Observation("new", reading(at[160]), started_ns=at[159]))
    for second in range(161, 200):
        ticks[second].append(Observation("new", reading(at[second])))
    spool = Spool(tmp_path / "small", 4_096)
    metering = Metering([Script(*ticks)], spool, "c", rig.clock)
    for _ in range(190):
        metering.tick()
    assert spool.used_bytes <= 4_096 + 512
    courier = Courier(rig.client, spool, "here", lambda: metering.active_vms, rig.clock, Backoff())
    while courier.deliver() == 0.0:
        continue
    metering.tick()
    while courier.deliver() == 0.0:
        continue
    spool.close()
    times = sample_times(rig.server.taken, "a")
    sent = len(times) - 1
    assert times == [*at[:sent], at[190]], "the samples up to when it was full, and from when there was room"
    for vm_id, expected in {
        "a": [
            pb.NotifyPossibleGapRequest(vm_id="a", last_sent=at[sent - 1], resume_time=at[190]),
        ],
        "b": [
            pb.NotifyPossibleGapRequest(vm_id="b", last_sent=at[sent - 1], resume_time=at[149]),
            pb.NotifyVmStoppedRequest(vm_id="b", stop_time=at[149]),
        ],
        "new": [
            pb.NotifyVmStartedRequest(vm_id="new", customer_id="c", start_time=at[159]),
            pb.NotifyPossibleGapRequest(vm_id="new", last_sent=at[159], resume_time=at[190]),
        ],
    }.items():
        of_vm = [message for message in rig.server.taken if getattr(message, "vm_id", "") == vm_id]
        assert [message for message in of_vm if not isinstance(message, pb.SendMetricsBatchRequest)] == expected
    assert sample_times(rig.server.taken, "new") == [at[190]]
    assert sum("samples are left out" in record.getMessage() for record in caplog.records) == 1, "said once"


def test_an_end_while_the_spool_is_full_reports_the_gap_so_far(rig: Rig, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "small", 4_096)
    at = [NOW_NS + second * SECOND for second in range(200)]
    metering = Metering([Script(*[[Observation("a", reading(ns))] for ns in at])], spool, "c", rig.clock)
    for _ in at:
        metering.tick()
    rig.clock.advance(500)
    metering.finish()
    last = spool.peek(10**6, 10**9)[0][-1]
    spool.close()
    gap = pb.NotifyPossibleGapRequest.FromString(last.payload)
    assert last.kind is Kind.POSSIBLE_GAP
    assert NOW_NS < gap.last_sent < at[-1]
    assert gap.resume_time == NOW_NS + 500 * SECOND


class Ticks:
    """What ends an agent after some ticks, and moves the told clock between them instead of waiting."""

    def __init__(self, clock: ToldClock, steps_seconds: list[float]) -> None:
        self._clock = clock
        self._steps_seconds = steps_seconds
        self.asked_seconds: list[float] = []

    def wait(self, timeout: float) -> bool:
        self.asked_seconds.append(timeout)
        if not self._steps_seconds:
            return True
        self._clock.advance(self._steps_seconds.pop(0))
        return False


def test_ticks_keep_to_their_grid_and_missed_ones_are_left_out(rig: Rig) -> None:
    source = Script(*[[Observation("a", reading(NOW_NS + tick * SECOND))] for tick in range(9)])
    metering = Metering([source], rig.spool, "c", rig.clock)
    stop = Ticks(rig.clock, [1.25, 0.75, 5.5, 0.5])
    Agent(metering, rig.courier, rig.client, rig.spool, rig.clock, stop).run(SECOND)
    assert stop.asked_seconds == [1.0, 0.75, 1.0, 0.5, 1.0]
    assert seconds_of(rig.server.taken, "a") == [0, 1, 2, 3, 4]
    assert rig.spool.used_bytes == 0, "an end sends what it can"


def test_the_hosts_cpu_time_is_what_the_kernel_counts_as_work() -> None:
    def busy_ns() -> int:
        values = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, values[:8])
        return (user + nice + system + irq + softirq + steal) * 10_000_000

    source = HostSource("host", ToldClock())
    before = busy_ns()
    (first,), (second,) = source.observe(), source.observe()
    after = busy_ns()
    assert first.reading is not None and second.reading is not None
    assert before <= first.reading.cpu_time_ns <= second.reading.cpu_time_ns <= after
    assert first.reading.time_ns == NOW_NS
    assert 0 < first.reading.memory_bytes < psutil.virtual_memory().total
    assert first.reading.disk_read_bytes <= second.reading.disk_read_bytes
    assert first.reading.network_rx_bytes <= second.reading.network_rx_bytes
    assert "guest" not in BUSY_FIELDS and "idle" not in BUSY_FIELDS and "iowait" not in BUSY_FIELDS


def test_disks_are_counted_once(tmp_path: Path) -> None:
    for name in ("sda", "nvme0n1", "cciss!c0d0"):
        (tmp_path / name / "device").mkdir(parents=True)
    for name in ("loop0", "dm-0", "md127", "zram0", "ram0"):
        (tmp_path / name).mkdir()
    names = ["sda", "sda1", "nvme0n1", "nvme0n1p1", "cciss/c0d0", "loop0", "dm-0", "md127", "zram0", "ram0"]
    assert whole_disks(names, tmp_path) == ["sda", "nvme0n1", "cciss/c0d0"]


def test_totals_never_go_back_when_devices_come_and_go() -> None:
    totals = DeviceTotals()
    assert totals.add({"eth0": (100, 10), "veth1": (50, 5)}) == (150, 15)
    assert totals.add({"eth0": (110, 11)}) == (160, 16), "what is gone keeps its share"
    assert totals.add({"eth0": (110, 11), "veth1": (53, 5)}) == (163, 16), "it comes back and went on"
    assert totals.add({"eth0": (110, 11), "veth1": (7, 1)}) == (170, 17), "it comes back and began anew"


def test_a_machine_that_was_booted_since_has_started_anew(tmp_path: Path) -> None:
    """The counters begin at zero with each boot, so its usage would else wait until they are past the old ones."""

    def source(boot_id: str) -> HostSource:
        return HostSource("host", ToldClock(), BootMark(tmp_path / "boot", "host", boot_id))

    first = source("boot-1")
    assert first.observe()[0].started_ns is None, "what ran before the first agent is implicit"
    first.spooled()
    assert source("boot-1").observe()[0].started_ns is None
    rebooted = source("boot-2")
    uptime_ns = int(float(Path("/proc/uptime").read_text().split()[0]) * NANOS)
    started_ns = rebooted.observe()[0].started_ns
    assert started_ns is not None
    assert abs(started_ns - (NOW_NS - uptime_ns)) < NANOS
    assert source("boot-2").observe()[0].started_ns is not None, "not durable yet: said again"
    rebooted.spooled()
    assert rebooted.observe()[0].started_ns is None
    assert source("boot-2").observe()[0].started_ns is None


def test_a_process_by_number() -> None:
    code = "x = bytearray(32 * 2**20); t = __import__('time'); [0 for _ in iter(lambda: t.process_time() < .2, False)]"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(1, flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    clock = ToldClock()
    source = ProcessSource([child.pid], None, clock)
    identity = identify(child.pid)
    assert identity is not None
    (seen,) = source.observe()
    assert seen.reading is not None
    assert (seen.vm_id, seen.started_ns, seen.stopped_ns) == (identity.vm_id, None, None)
    assert seen.reading.cpu_time_ns >= NANOS // 5 - NANOS // 50, "in clock ticks, which may lag a little"
    assert seen.reading.memory_bytes > 32 * 2**20
    assert not source.exhausted()
    clock.advance(1)
    assert source.observe()[0].vm_id == identity.vm_id
    clock.advance(1)
    child.kill()
    # Not reaped yet: only its exit status is left of it, which is no life.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    (end,) = source.observe()
    child.communicate()
    assert end == Observation(identity.vm_id, None, None, NOW_NS + 1 * SECOND)
    assert source.exhausted()
    assert source.observe() == []
