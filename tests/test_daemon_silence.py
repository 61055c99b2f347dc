"""Silence on a real daemon: seen at once, still seen after a kill; pauses and wrong clocks silence nobody."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from daemon_calls import SECOND, batch, until
from daemon_process import DaemonProcess
from report_fixtures import payload_of

from billaged.cli.main import billaged
from billaged.intake.chain import rows_after
from billaged.intake.sqlite import SqliteJournal
from billaged.model.records import FoldRules, Heartbeat, Kind, Record, Tick
from billaged.model.records import MetricsBatch as Samples
from billaged.model.time import DAY_NANOS, HOUR_NANOS, MINUTE_NANOS
from billaged.wire import codec
from billaged.wire.billing.v1 import billing_pb2 as pb

MINUTE = 60 * SECOND
# A tick each second; a VM is silent after two, and has vanished after sixty.
SETTINGS = {"AGGREGATION_INTERVAL": "1s", "GAP_THRESHOLD": "2s", "VANISH_AFTER": "1m"}
RULES = FoldRules(gap_threshold_ns=2 * SECOND, vanish_after_ns=MINUTE)


def open_gaps(data_dir: Path, *options: str) -> dict[str, dict[str, Any]]:
    """What `billaged gaps --open` says of the ledger as it is, by VM."""
    clean = {name: None for name in os.environ if name.startswith("UNKEY_BILLAGED_")}
    command = ["gaps", "--open", "--format", "json", "--data-dir", str(data_dir), *options]
    result = CliRunner().invoke(billaged, command, env=clean)
    assert result.exit_code == 0, result.output
    return {line["vm_id"]: line for line in json.loads(result.stdout)}


def closed_gaps(data_dir: Path, vm_id: str) -> list[dict[str, Any]]:
    command = ["gaps", "--vm", vm_id, "--format", "json", "--data-dir", str(data_dir)]
    lines: list[dict[str, Any]] = json.loads(CliRunner().invoke(billaged, command).stdout)
    return [line for line in lines if line["state"] == "closed"]


def journaled(data_dir: Path, received_ns: int, *records: Record) -> Path:
    """A data directory whose journal was taken then, and is not folded yet."""
    data_dir.mkdir(mode=0o700)
    with closing(SqliteJournal(data_dir / "journal.db")) as journal:
        rows = [(codec.kind_of(record), received_ns, "test", payload_of(record)) for record in records]
        journal.append(rows_after(journal.head, rows))
    return data_dir


def sample(vm_id: str, time_ns: int) -> Samples:
    message = codec.decode(Kind.METRICS, batch(vm_id, time_ns).SerializeToString())
    assert isinstance(message, Samples)
    return message


def ticks_before(data_dir: Path, sequence: int) -> list[Tick]:
    with closing(SqliteJournal(data_dir / "journal.db")) as journal:
        rows = [row for chunk in journal.read(0) for row in chunk if row.sequence <= sequence]
    records = [codec.decode(Kind(row.kind), row.payload) for row in rows if row.kind == Kind.TICK]
    return [record for record in records if isinstance(record, Tick)]


def anomalies(daemon: DaemonProcess) -> list[tuple[str, str, int]]:
    """Kind, VM and sequence of each."""
    return [(row[2], row[3], row[0]) for row in daemon.ledger()["anomalies"]]


def ended(daemon: DaemonProcess) -> set[str]:
    # Sessions: VM, ordinal, customer, start, explicit, last, end.
    return {row[0] for row in daemon.ledger()["sessions"] if row[6] is not None}


def test_an_open_silence_is_seen_at_once_and_after_a_kill(tmp_path: Path) -> None:
    data_dir = tmp_path / "var"
    with DaemonProcess(data_dir, SETTINGS) as daemon:
        began_ns = time.time_ns()
        daemon.call("SendHeartbeat", pb.SendHeartbeatRequest(instance_id="host-1", active_vms=["vm-1"]))
        daemon.call("SendHeartbeat", pb.SendHeartbeatRequest(instance_id="host-2", active_vms=["vm-1"]))
        daemon.call("SendMetricsBatch", batch("vm-1", began_ns))
        daemon.call("SendMetricsBatch", batch("vm-2", began_ns))
        until(lambda: len(daemon.ledger()["silences"]) == 2, "both VMs are silent")
        found = open_gaps(data_dir)
        assert {vm_id: (line["state"], line["reasons"], line["instances"]) for vm_id, line in found.items()} == {
            "vm-1": ("pending", ["silent_vm"], ["host-1", "host-2"]),
            "vm-2": ("pending", ["no_samples"], []),
        }
        stats = daemon.stats()
        assert stats["silent_vms"] == {"silent_vm": 1, "silent_host": 0, "no_samples": 1}
        assert stats["silent_instances"] == 0
        daemon.kill()
    with DaemonProcess(data_dir, SETTINGS) as daemon:
        again = open_gaps(data_dir)
        assert [again[vm_id]["start"] for vm_id in again] == [found[vm_id]["start"] for vm_id in again]
        assert again["vm-1"]["instances"] == ["host-1", "host-2"]
        assert "silent_vm" in again["vm-1"]["reasons"]
        now_ns = time.time_ns()
        daemon.call("SendMetricsBatch", batch("vm-1", now_ns))
        (gap,) = until(lambda: closed_gaps(data_dir, "vm-1"), "the gap closes")
        # The daemon was down for a part of it, too.
        assert (gap["kind"], gap["duration_ns"]) == ("step", now_ns - began_ns)
        assert gap["reasons"] == ["silent_vm", "billaged_down"]


def test_a_host_that_stops_beating_is_seen_within_a_tick(tmp_path: Path) -> None:
    now_ns = time.time_ns()
    vms = ("vm-1", "vm-2")
    data_dir = journaled(
        tmp_path / "var",
        now_ns - SECOND,
        Heartbeat("host", vms),
        *(sample(vm_id, now_ns - 95 * SECOND) for vm_id in vms),
        Tick(now_ns - SECOND, 89 * SECOND, closes_interval=False),
    )
    with DaemonProcess(data_dir, SETTINGS | {"GAP_THRESHOLD": "15m"}) as daemon:
        until(lambda: len(daemon.ledger()["silences"]) == 3, "the host is silent, and billaged was down")
        found = open_gaps(data_dir)
        assert {tuple(line["instances"]) for line in found.values()} == {("host",)}
        assert all("silent_host" in line["reasons"] for line in found.values())
        assert daemon.stats()["silent_instances"] == 1
        assert ended(daemon) == set()


def test_a_vm_that_nobody_lists_any_more_ends_at_its_last_sample(tmp_path: Path) -> None:
    now_ns = time.time_ns()
    last_ns = now_ns - 10 * MINUTE
    data_dir = journaled(
        tmp_path / "var",
        now_ns - SECOND,
        RULES,
        Heartbeat("host", ("gone", "moved")),
        *(sample(vm_id, last_ns) for vm_id in ("gone", "moved", "unlisted")),
        Heartbeat("other", ("moved",)),
        Heartbeat("host", ()),
        Tick(now_ns, 59 * SECOND, closes_interval=False),
    )
    with DaemonProcess(data_dir, SETTINGS) as daemon:
        until(lambda: ended(daemon) == {"gone"}, "one VM has vanished")
        (row,) = [row for row in daemon.ledger()["sessions"] if row[0] == "gone"]
        assert (row[5], row[6], row[7]) == (last_ns, last_ns, "vanished")
        line = open_gaps(data_dir)["gone"]
        assert (line["state"], line["reasons"], line["end"]) == ("outside", ["vanished"], None)
        # It comes back: nothing had ended.
        daemon.call("SendMetricsBatch", batch("gone", now_ns))
        until(lambda: ended(daemon) == set(), "it runs on")
        assert [kind for kind, vm_id, _ in anomalies(daemon) if vm_id == "gone"] == ["vanished", "returned"]
        (gap,) = closed_gaps(data_dir, "gone")
        assert (gap["duration_ns"], set(gap["reasons"])) == (10 * MINUTE, {"no_samples", "vanished", "billaged_down"})


def test_a_paused_daemon_counts_no_time(tmp_path: Path) -> None:
    now_ns = time.time_ns()
    data_dir = journaled(
        tmp_path / "var",
        now_ns,
        RULES,
        Heartbeat("host", ("listed", "gone")),
        sample("listed", now_ns - MINUTE),
        sample("gone", now_ns - MINUTE),
        Heartbeat("host", ("listed",)),
        Tick(now_ns, 55 * SECOND, closes_interval=False),
    )
    with DaemonProcess(data_dir, SETTINGS) as daemon:
        until(lambda: daemon.stats()["samples"] == 2, "it is serving")
        daemon.send_signal(signal.SIGSTOP)
        # Longer than what is left until the VM would have vanished. The pause itself is what is tested.
        threading.Event().wait(8)
        daemon.send_signal(signal.SIGCONT)
        until(lambda: ended(daemon) == {"gone"}, "it vanishes when its time has passed")
        (sequence,) = [sequence for kind, _, sequence in anomalies(daemon) if kind == "vanished"]
    ticks = ticks_before(data_dir, sequence)
    assert sum(tick.length_ns for tick in ticks) == MINUTE
    # And the wall clock had gone on by more.
    assert ticks[-1].time_ns - now_ns > 10 * SECOND


def test_a_long_downtime_ends_nothing_and_is_the_reason_of_the_gap(tmp_path: Path) -> None:
    now_ns = time.time_ns()
    down_ns = now_ns - 3 * DAY_NANOS
    data_dir = journaled(
        tmp_path / "var",
        down_ns,
        Heartbeat("host", ("vm-1",)),
        sample("vm-1", down_ns),
        sample("vm-2", down_ns),
        Tick(down_ns, SECOND, closes_interval=False),
    )
    with DaemonProcess(data_dir, {"AGGREGATION_INTERVAL": "1s"}) as daemon:
        until(lambda: len(daemon.ledger()["silences"]) == 1, "the downtime is recorded")
        (silence,) = daemon.ledger()["silences"]
        assert silence[:3] == ("", down_ns, "billaged_down")
        assert now_ns < silence[3] < time.time_ns()
        daemon.call("SendMetricsBatch", batch("vm-1", time.time_ns()))
        (gap,) = until(lambda: closed_gaps(data_dir, "vm-1"), "the gap closes")
        assert gap["reasons"] == ["billaged_down"]
        assert ended(daemon) == set()
        assert daemon.stop() == 0
    assert open_gaps(data_dir)["vm-2"]["reasons"] == ["billaged_down"]


def test_a_clock_that_went_back_is_no_downtime(tmp_path: Path) -> None:
    ahead_ns = time.time_ns() + 2 * HOUR_NANOS
    data_dir = journaled(
        tmp_path / "var",
        ahead_ns,
        Heartbeat("host", ("vm-1",)),
        sample("vm-1", ahead_ns - 3 * HOUR_NANOS),
        Tick(ahead_ns, MINUTE_NANOS, closes_interval=False),
    )
    with DaemonProcess(data_dir, {"AGGREGATION_INTERVAL": "1s"}) as daemon:
        folded = daemon.stats()["journal"]["ledger_position"]
        until(lambda: daemon.stats()["journal"]["ledger_position"] > folded + 2, "ticks go on")
        tables = daemon.ledger()
        assert tables["silences"] == []
        assert ended(daemon) == set()
