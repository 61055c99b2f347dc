"""SIGKILL at random moments: while it starts, while it replays, in the middle of the load."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from daemon_process import ROOT, DaemonProcess, environment

from faults.judge import CrashJudge, check_all
from faults.load import Fleet
from faults.scale import base_seed, scaled
from faults.settings import SETTINGS

# Kills of one data directory, one after the other.
KILLS = scaled(3, 20, 20)
DIRECTORIES = scaled(1, 2, 10)
SEEDS = [base_seed() + number for number in range(DIRECTORIES)]
# Of ten kills one hits a start.
_START_SHARE = 0.1
# A start takes about a second.
_START_SECONDS_MAX = 1.0
_ACKS_MAX = 150
_LINGER_SECONDS_MAX = 0.02


def killed_while_it_starts(data_dir: Path, after_seconds: float) -> None:
    command = [sys.executable, "-m", "billaged", "serve"]
    started = subprocess.Popen(
        command, env=environment(data_dir, SETTINGS), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        _, said = started.communicate(timeout=after_seconds)
    except subprocess.TimeoutExpired:
        started.kill()
        _, said = started.communicate()
    assert started.returncode == -9, said
    assert said == b""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_acknowledged_survives_kills_at_random_moments(seed: int, tmp_path: Path) -> None:
    data_dir, chance = tmp_path / "var", random.Random(seed)
    fleet = Fleet(seed)
    judge = CrashJudge(data_dir, fleet, tmp_path / "crashed")
    behind = 0
    for _ in range(KILLS):
        if chance.random() < _START_SHARE:
            killed_while_it_starts(data_dir, chance.uniform(0, _START_SECONDS_MAX))
        else:
            with DaemonProcess(data_dir, SETTINGS) as daemon, fleet.under_load(daemon):
                fleet.until_acked(chance.randint(1, _ACKS_MAX))
                time.sleep(chance.uniform(0, _LINGER_SECONDS_MAX))
                daemon.kill()
                assert daemon.wait() == -9
                assert daemon.other_output == ""
        if data_dir.exists():
            judge.check()
            behind += judge.behind > 0
    with DaemonProcess(data_dir, SETTINGS) as daemon:
        fleet.settle(daemon)
        assert daemon.stop() == 0
        assert daemon.other_output == ""
    check_all(data_dir, fleet)
    # The kills hit what they were meant to hit.
    assert fleet.unknown
    assert behind
