"""A wall clock that jumps an hour ahead and back, under load and over restarts."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from daemon_calls import SECOND, until
from daemon_process import DaemonProcess

from billaged.wire.billing.v1 import billing_pb2 as pb
from faults.judge import check_all
from faults.jumping_clock import JumpingClock
from faults.load import Fleet
from faults.scale import base_seed, scaled
from faults.settings import SETTINGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.more_faults,
]

HOUR_SECONDS = 3_600


def ticks(daemon: DaemonProcess) -> int:
    return int(dict(daemon.ledger()["tallies"]).get("ticks", 0))


def clock_of(daemon: DaemonProcess) -> float:
    """Seconds that the daemon's clock is ahead of this one, as its heartbeats are stamped."""
    before = {row[0] for row in daemon.ledger()["instances"]}
    name = f"clock-{len(before)}"
    daemon.call("SendHeartbeat", pb.SendHeartbeatRequest(instance_id=name))
    seen = until(lambda: [row[1] for row in daemon.ledger()["instances"] if row[0] == name], "the heartbeat")
    return (seen[0] - time.time_ns()) / SECOND


@pytest.mark.parametrize("ahead_seconds", [HOUR_SECONDS, -HOUR_SECONDS], ids=["ahead", "back"])
def test_a_jump_and_back_ends_no_session_and_bills_nothing(ahead_seconds: int, tmp_path: Path) -> None:
    fleet, clock = Fleet(base_seed()), JumpingClock(tmp_path / "clock")
    with DaemonProcess(tmp_path / "var", SETTINGS, under=clock.under) as daemon:
        with fleet.under_load(daemon):
            fleet.until_acked(30)
            for _ in range(scaled(0, 1, 4)):
                for seconds in (ahead_seconds, 0):
                    clock.set_ahead(seconds)
                    told = ticks(daemon)
                    # So that ticks of the other time are among what is folded.
                    until(lambda told=told: ticks(daemon) > told + 1, "ticks")
                    fleet.until_acked(30)
        fleet.settle(daemon)
        assert daemon.stop() == 0
        assert daemon.other_output == ""
        # There, or back again.
        assert any("jumped ahead" in line["message"] for line in daemon.log)
    check_all(tmp_path / "var", fleet)


def test_the_daemon_does_live_by_that_clock(tmp_path: Path) -> None:
    """Else the tests here would say nothing: one that starts with a wrong clock knows no other."""
    clock = JumpingClock(tmp_path / "clock")
    clock.set_ahead(HOUR_SECONDS)
    with DaemonProcess(tmp_path / "var", SETTINGS, under=clock.under) as daemon:
        assert clock_of(daemon) == pytest.approx(HOUR_SECONDS, abs=60)
        assert daemon.stop() == 0


def test_kills_while_the_clock_jumps_bill_nothing_twice(tmp_path: Path) -> None:
    """Each start meets another time: an hour later, an hour earlier than the journal's newest row."""
    seed = base_seed()
    fleet, clock, chance = Fleet(seed), JumpingClock(tmp_path / "clock"), random.Random(seed)
    for _ in range(scaled(0, 3, 12)):
        clock.set_ahead(chance.choice((-HOUR_SECONDS, 0, HOUR_SECONDS)))
        with DaemonProcess(tmp_path / "var", SETTINGS, under=clock.under) as daemon, fleet.under_load(daemon):
            fleet.until_acked(chance.randint(1, 60))
            clock.set_ahead(chance.choice((-HOUR_SECONDS, 0, HOUR_SECONDS)))
            fleet.until_acked(chance.randint(1, 60))
            daemon.kill()
            assert daemon.other_output == ""
    with DaemonProcess(tmp_path / "var", SETTINGS) as daemon:
        fleet.settle(daemon)
        assert daemon.stop() == 0
    check_all(tmp_path / "var", fleet)
