"""A handful of simulated worlds, and the simulation itself. `make simulate` lives through as many as are wanted."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from random import Random

import pytest
from auditor.events import MINUTE_NS, SECOND_NS, Batch, Event, Rules, Sample, Started
from auditor.machine import EPOCH_NS
from daemon_process import ROOT
from simulation import judge
from simulation.agenda import Agenda
from simulation.clean import journal_of
from simulation.daemon import Daemon
from simulation.plan import plan_of
from simulation.run import simulate
from simulation.truth import Truth
from simulation.verdict import of_truth

SEEDS = range(1, 7)
MAY_BE_NOTHING = (
    *("skew_max_ns", "clock_steps_hours", "lost_requests", "lost_answers", "replayed", "lost_notices", "slow_notices"),
    *("unannounced", "live_migrations", "takeovers", "failed_reads", "host_crash_hours", "restart_hours"),
    *("rules_change", "daemon_clock_steps_hours"),
)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_simulated_world_is_billed_right(seed: int) -> None:
    assert simulate(seed, days=0.5).complaints == []


def test_a_seed_is_always_the_same_world() -> None:
    assert simulate(3, days=0.2).seen == simulate(3, days=0.2).seen


def test_worlds_are_of_every_kind() -> None:
    """What the seeds make of their plans: nothing that can be had is left out."""
    plans = [plan_of(seed) for seed in range(200)]
    for name in MAY_BE_NOTHING:
        chosen = Counter(bool(getattr(plan, name)) for plan in plans)
        assert min(chosen[True], chosen[False]) >= 10, name


class World:
    """One VM whose truth is written down by hand."""

    def __init__(self) -> None:
        self.truth = Truth()
        self.stream = self.truth.begin("vm-1")
        self.samples = [
            Sample(EPOCH_NS + minute * MINUTE_NS, 2**30, minute * SECOND_NS, 0, 0, 0, 0) for minute in (1, 2, 9)
        ]
        for sample in self.samples:
            self.truth.sampled("vm-1", self.stream, sample)
        self.truth.started("vm-1", EPOCH_NS, self.stream)

    def events(self) -> list[Event]:
        return journal_of([Started("vm-1", "acme", EPOCH_NS), Batch("vm-1", "acme", self.samples)], Rules())


def complaints_of(daemon: Daemon, world: World) -> list[str]:
    """Of what was taken, once it is in the ledger."""
    daemon.at_last()
    return of_truth(daemon.auditor.bill(), world.events(), world.truth, Counter())


def honest_daemon(world: World) -> Daemon:
    """A daemon that has taken the world's events."""
    daemon = Daemon(plan_of(0), Random(0), Agenda(EPOCH_NS + 10 * MINUTE_NS))
    for event in world.events()[1:]:
        daemon.take(event.what, "", lambda answer: None)
    return daemon


def test_a_true_bill_passes() -> None:
    world = World()
    daemon = honest_daemon(world)
    assert complaints_of(daemon, world) == []
    assert judge.of_ledger(daemon) == []
    (session,) = daemon.auditor.bill().rows("sessions")
    assert session["cpu_time_ns"] == 9 * SECOND_NS


@pytest.mark.parametrize(
    ("lie", "complaint"),
    [
        (Sample(EPOCH_NS + 9 * MINUTE_NS + 1, 2**30, 10 * SECOND_NS, 0, 0, 0, 0), "cpu_time_ns billed 10000000000"),
        (Sample(EPOCH_NS + 10 * MINUTE_NS, 2**30, 9 * SECOND_NS, 0, 0, 0, 0), "has a time that no point has"),
    ],
)
def test_a_bill_of_more_than_the_truth_does_not_pass(lie: Sample, complaint: str) -> None:
    """The judge can say no: one sample more is billed than the simulation knows of."""
    world = World()
    daemon = honest_daemon(world)
    daemon.take(Batch("vm-1", "acme", [lie]), "", lambda answer: None)
    assert any(complaint in line for line in complaints_of(daemon, world))


def test_a_ledger_that_is_off_by_one_does_not_pass() -> None:
    world = World()
    daemon = honest_daemon(world)
    daemon.at_last()
    with daemon.database.begin() as connection:
        connection.exec_driver_sql("UPDATE facts SET cpu_time_ns = cpu_time_ns + 1 WHERE vm_id = 'vm-1'")
    assert judge.of_ledger(daemon) != []


def test_windows_that_do_not_add_up_do_not_pass() -> None:
    world = World()
    daemon = honest_daemon(world)
    daemon.at_last()
    rows = daemon.auditor.bill().rows("sessions")
    assert daemon.windows.complaints(rows) == []
    assert daemon.windows.complaints([{**row, "samples": row["samples"] + 1} for row in rows]) != []
    assert daemon.windows.complaints([]) != []


def test_the_command_says_what_it_did_and_how_to_do_it_again() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "simulate.py"), "--seed", "5", "--count", "2", "--days", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "seed 5: ok" in done.stdout
    assert "all bills hold" in done.stdout
