"""A disk that is full and empties again: usage is refused or the daemon ends, and it goes on without anybody's hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from daemon_calls import batch, retry_delay_seconds, until
from daemon_process import DaemonProcess

from faults.doomed import DoomedDaemon, WaitingDaemon
from faults.judge import check_all
from faults.load import Fleet
from faults.scale import base_seed, scaled
from faults.settings import SETTINGS
from faults.small_disk import SmallDisk, small_disk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MIB = 2**20
# Between nearly full and full there is room for what comes in the second until somebody looks, and for SQLite's logs.
SIZE_MIB, MIN_FREE_MIB = 40, 14
NEARLY_FULL = SETTINGS | {"MIN_FREE_BYTES": f"{MIN_FREE_MIB}MiB"}
# Nobody looks: the disk is full before anything is refused.
UNWATCHED = SETTINGS | {"MIN_FREE_BYTES": "0"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder, SIZE_MIB) as disk:
        yield disk


def judge(disk: SmallDisk, fleet: Fleet, tmp_path: Path) -> None:
    disk.copy_to(tmp_path / "copy")
    check_all(tmp_path / "copy" / "var", fleet)


def finish(disk: SmallDisk, fleet: Fleet, daemon: DaemonProcess, tmp_path: Path) -> None:
    fleet.settle(daemon)
    assert daemon.stop() == 0
    assert daemon.other_output == ""
    judge(disk, fleet, tmp_path)


def test_nearly_full_it_refuses_usage_and_goes_on_reading_and_takes_it_again(disk: SmallDisk, tmp_path: Path) -> None:
    fleet = Fleet(base_seed())
    with DaemonProcess(disk.path / "var", NEARLY_FULL, under=disk.under) as daemon:
        with fleet.under_load(daemon):
            for _ in range(scaled(1, 1, 5)):
                fleet.until_acked(50)
                disk.fill(but_bytes=(MIN_FREE_MIB - 1) * MIB)
                until(lambda: not daemon.stats()["taking_usage"], "the look at the disk")
                with pytest.raises(grpc.RpcError) as caught:
                    daemon.call("SendMetricsBatch", batch("vm-refused", time.time_ns()))
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert retry_delay_seconds(caught.value) == 30
                assert daemon.get("/health").json()["status"] == "ok"
                disk.empty()
                until(lambda: daemon.stats()["taking_usage"], "usage is taken again")
            fleet.until_acked(50)
        assert fleet.refused
        finish(disk, fleet, daemon, tmp_path)


def test_a_start_on_a_full_disk_waits_for_room(disk: SmallDisk, tmp_path: Path) -> None:
    """It was killed, the disk fills up: the start neither fails nor touches anything, and goes on by itself."""
    fleet = Fleet(base_seed())
    with DaemonProcess(disk.path / "var", NEARLY_FULL, under=disk.under) as daemon, fleet.under_load(daemon):
        fleet.until_acked(100)
        daemon.kill()
    disk.fill()
    with WaitingDaemon(disk.path / "var", NEARLY_FULL, under=disk.under) as daemon:
        assert f"a start needs {MIN_FREE_MIB} MiB" in daemon.waits_for_room()["message"]
        disk.empty()
        daemon.until_serving()
        with fleet.under_load(daemon):
            fleet.until_acked(50)
        finish(disk, fleet, daemon, tmp_path)


@pytest.mark.more_faults
def test_a_start_that_waits_for_room_can_be_stopped(disk: SmallDisk) -> None:
    disk.fill()
    with WaitingDaemon(disk.path / "var", NEARLY_FULL, under=disk.under) as daemon:
        daemon.waits_for_room()
        assert daemon.stop() == 0
        assert daemon.other_output == ""


@pytest.mark.more_faults
def test_full_at_once_it_ends_and_a_later_start_goes_on(disk: SmallDisk, tmp_path: Path) -> None:
    """Nobody looked at the disk: a commit fails. Each start says what to do, and once there is room one goes on."""
    fleet = Fleet(base_seed())
    for _ in range(scaled(0, 1, 8)):
        with DaemonProcess(disk.path / "var", UNWATCHED, under=disk.under) as daemon, fleet.under_load(daemon):
            fleet.until_acked(100)
            disk.fill()
            assert daemon.wait() == 1
        assert "database or disk is full" in daemon.other_output
        with DoomedDaemon(disk.path / "var", UNWATCHED, under=disk.under) as daemon:
            # There is never room; whether it fails at the start or with the first commit is all one.
            assert daemon.wait() == 1
            (line,) = daemon.says().splitlines()
            assert "full" in line
            assert "Restore" not in line
        disk.empty()
    with DaemonProcess(disk.path / "var", UNWATCHED, under=disk.under) as daemon:
        with fleet.under_load(daemon):
            fleet.until_acked(50)
        finish(disk, fleet, daemon, tmp_path)
