"""Syncs and writes that kill or fail, one by one: first those of the start, then the journal's, then the ledger's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from daemon_calls import until
from daemon_process import DaemonProcess

from faults.doomed import DoomedDaemon
from faults.injected import Injection, injected
from faults.judge import CrashJudge, check_all
from faults.load import Fleet
from faults.scale import base_seed, some
from faults.settings import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

JOURNAL, LEDGER = "journal.db-wal", "ledger.db-wal"
# A start that makes all files syncs this often, on one thread.
START_SYNCS = 15


def calls(call: str, fault: str, start: int, journal: int, ledger: int) -> list[Injection]:
    """So many of the start's, of the journal's while it serves, of the ledger's."""
    # What is written first is the pid, into the lock: nothing depends on it.
    skipped = call == "pwrite64"
    return [
        *(Injection(call, fault, number + skipped) for number in range(1, start + 1)),
        *(Injection(call, fault, number, JOURNAL) for number in range(1, journal + 1)),
        *(Injection(call, fault, number, LEDGER) for number in range(1, ledger + 1)),
    ]


# Of those, what is tried in each `make test`.
FEW_KILLS = [Injection("fdatasync", "signal=SIGKILL", 6, JOURNAL)]
FEW_FAILURES = [Injection("pwrite64", "error=ENOSPC", 15, JOURNAL)]
KILLS = calls("fdatasync", "signal=SIGKILL", START_SYNCS, 20, 15)
FAILURES = [
    *calls("fdatasync", "error=EIO", 8, 7, 5),
    *calls("fdatasync", "error=ENOSPC", 8, 7, 5),
    # Without room it is the write that fails first.
    *calls("pwrite64", "error=ENOSPC", 4, 20, 6),
    *calls("pwrite64", "error=EIO", 4, 10, 6),
]


def named(injection: Injection) -> str:
    return injection.name


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A data directory after a life, in which syncs are the load's and not the start's; and a seed for fleets."""
    seed = base_seed()
    data_dir = tmp_path_factory.mktemp("lived") / "var"
    with DaemonProcess(data_dir, SETTINGS) as daemon:
        assert daemon.stop() == 0
    return data_dir, seed


def life_with(injection: Injection, lived: tuple[Path, int], tmp_path: Path) -> tuple[int, str, Path, Fleet]:
    """Load on a daemon until the fault ends it: exit code, what it said, its data, its clients."""
    data_dir, fleet = tmp_path / "var", Fleet(lived[1])
    if injection.file:
        shutil.copytree(lived[0], data_dir)
    log = tmp_path / "strace"
    with DoomedDaemon(data_dir, SETTINGS, under=injection.under(data_dir, log)) as daemon:
        if daemon.serves:
            with fleet.under_load(daemon):
                daemon.wait()
        code = daemon.wait()
        said = daemon.says()
    hit = injected(log)
    assert injection.file in hit or (hit and not injection.file), log.read_text()
    return code, said, data_dir, fleet


def lives_on(data_dir: Path, fleet: Fleet) -> None:
    with DaemonProcess(data_dir, SETTINGS) as daemon:
        with fleet.under_load(daemon):
            fleet.until_acked(20)
        fleet.settle(daemon)
        assert daemon.stop() == 0
        assert daemon.other_output == ""
    check_all(data_dir, fleet)


@pytest.mark.parametrize("injection", some(KILLS, FEW_KILLS, 10), ids=named)
def test_a_kill_in_a_sync_loses_nothing(injection: Injection, lived: tuple[Path, int], tmp_path: Path) -> None:
    code, said, data_dir, fleet = life_with(injection, lived, tmp_path)
    assert (code, said) == (-9, "")
    CrashJudge(data_dir, fleet, tmp_path / "crashed").check()
    lives_on(data_dir, fleet)


@pytest.mark.parametrize("injection", some(FAILURES, FEW_FAILURES, 4), ids=named)
def test_a_sync_or_write_that_fails_ends_the_daemon(
    injection: Injection, lived: tuple[Path, int], tmp_path: Path
) -> None:
    """It exits with 1 and says why; nothing of that group was acknowledged, and the next start goes on exactly."""
    code, said, data_dir, fleet = life_with(injection, lived, tmp_path)
    assert code == 1, said
    assert said
    CrashJudge(data_dir, fleet, tmp_path / "crashed").check()
    lives_on(data_dir, fleet)


@pytest.mark.more_faults
@pytest.mark.parametrize("fault", ["error=EIO", "error=ENOSPC", "signal=SIGKILL"])
def test_a_sync_of_the_main_file_that_fails_loses_nothing(fault: str, lived: tuple[Path, int], tmp_path: Path) -> None:
    """What is moved there stays in the log until it is synced: the daemon may go on, and move it again."""
    data_dir, fleet, log = tmp_path / "var", Fleet(lived[1]), tmp_path / "strace"
    shutil.copytree(lived[0], data_dir)
    injection = Injection("fdatasync", fault, 1, "journal.db")
    with DaemonProcess(data_dir, SETTINGS, under=injection.under(data_dir, log)) as daemon, fleet.under_load(daemon):
        until(lambda: "fdatasync" in log.read_text(), "a sync of the main file")
        fleet.until_acked(20, daemon)
        daemon.kill()
    assert injected(log)
    CrashJudge(data_dir, fleet, tmp_path / "crashed").check()
    lives_on(data_dir, fleet)
