"""What the agent reads of the machine and of processes, against what the kernel says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
from client_fixtures import (
    NOW_NS,
    SECOND,
    ToldClock,
)

from billaged.client.host import BUSY_FIELDS, BootMark, DeviceTotals, HostSource, whole_disks
from billaged.client.processes import ProcessSource, identify
from billaged.client.readings import Observation
from billaged.model.time import NANOS


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
