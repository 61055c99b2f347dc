"""One seed: a world, its days, and the verdict."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from random import Random
from unittest.mock import patch

from auditor.events import HOUR_NS
from auditor.machine import EPOCH_NS

from billaged.aggregator import engine
from simulation import judge
from simulation.agenda import Agenda
from simulation.daemon import Daemon
from simulation.fleet import Fleet
from simulation.plan import DAY_NS, Plan, plan_of
from simulation.truth import Truth


@dataclass
class Outcome:
    """``complaints`` is empty where everything holds; ``seen`` counts what happened."""

    plan: Plan
    complaints: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)


def simulate(seed: int, *, days: float | None = None) -> Outcome:
    """Live through a seed's days (or this many) and judge the bill."""
    plan = plan_of(seed)
    outcome = Outcome(plan)
    # The engine keeps so many ended sessions that a fleet of this size would never see one leave.
    with patch.object(engine, "_ENDED_KEPT", plan.ended_kept):
        chance, agenda, truth = Random(f"world {seed}"), Agenda(EPOCH_NS), Truth()
        daemon = Daemon(plan, chance, agenda)
        with closing(daemon):
            fleet = Fleet(plan, chance, agenda, daemon, truth)
            end_ns = EPOCH_NS + (plan.length_ns if days is None else int(days * DAY_NS))
            while agenda.now_ns < end_ns and not outcome.complaints:
                agenda.run_until(min(end_ns, agenda.now_ns + chance.randint(HOUR_NS, plan.length_ns // 2)))
                if daemon.up:
                    daemon.catch_up()
                    outcome.complaints += judge.of_ledger(daemon)
            fleet.end()
            agenda.run_until(end_ns + plan.aftermath_ns)
            daemon.at_last()
            outcome.complaints += judge.at_the_end(daemon, truth, outcome.seen)
    outcome.seen.update(_seen(fleet, daemon))
    outcome.seen["simulated hours"] = (agenda.now_ns - EPOCH_NS) // HOUR_NS
    return outcome


def _seen(fleet: Fleet, daemon: Daemon) -> Counter[str]:
    seen = fleet.seen + daemon.seen
    for host in fleet.hosts:
        for line in host.lines:
            seen.update(line.seen)
    bill = daemon.auditor.bill()
    seen["journal rows"] = len(daemon.events)
    seen["summaries"] = daemon.windows.published
    for table in ("sessions", "gaps", "corrections", "silences"):
        seen[table] = len(bill.tables.get(table, ()))
    seen.update({f"tally {name}": value for name, value in bill.tables["tallies"]})
    seen.update(f"recorded {row['kind']}" for row in bill.rows("anomalies"))
    return seen
