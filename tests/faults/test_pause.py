"""A daemon that stands still (SIGSTOP) for longer than anything waits for it, and goes on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from daemon_calls import until
from daemon_process import DaemonProcess

from faults.judge import check_all
from faults.load import HOSTS, Fleet
from faults.scale import base_seed, scaled
from faults.settings import SETTINGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.more_faults,
]

DEADLINE_SECONDS = 0.5
# Several ticks, the connections' own looks at each other, and the callers' deadlines many times over.
PAUSE_SECONDS = 4.0
IMPATIENT = SETTINGS | {
    "KEEPALIVE_TIME": "1s",
    "KEEPALIVE_TIMEOUT": "500ms",
    "HANDSHAKE_TIMEOUT": "1s",
    "CONNECTION_MAX_IDLE": "2s",
}


def test_a_pause_longer_than_every_timeout_ends_no_session_and_loses_nothing(tmp_path: Path) -> None:
    fleet = Fleet(base_seed(), deadline_seconds=DEADLINE_SECONDS)
    with DaemonProcess(tmp_path / "var", IMPATIENT) as daemon:
        with fleet.under_load(daemon):
            for _ in range(scaled(0, 1, 4)):
                fleet.until_acked(50)
                given_up = fleet.statuses["DEADLINE_EXCEEDED"]
                daemon.send_signal(signal.SIGSTOP)
                until_ns = time.monotonic_ns() + int(PAUSE_SECONDS * 10**9)
                until(lambda end=until_ns: time.monotonic_ns() > end, "the end of the pause")
                daemon.send_signal(signal.SIGCONT)
                assert fleet.statuses["DEADLINE_EXCEEDED"] >= given_up + HOSTS
                fleet.until_acked(50)
        fleet.settle(daemon)
        assert daemon.stop() == 0
        assert daemon.other_output == ""
    check_all(tmp_path / "var", fleet)
    # What was in flight when it stopped was taken when it went on, and then came again.
    assert fleet.unknown
