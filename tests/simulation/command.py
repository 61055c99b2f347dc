"""``make simulate SEED=n``: days of a fleet's life in seconds, judged by the auditor and by the truth."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from simulation import report
from simulation.run import Outcome, simulate


def main() -> int:
    """Returns 1 where something does not hold, else 0."""
    parser = argparse.ArgumentParser(prog="scripts/simulate.py", description=__doc__)
    parser.add_argument("--seed", type=int, help="the first one (default: a new one)")
    parser.add_argument("--count", type=int, default=1, help="seeds, one after the other (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--days", type=float, help="of each world's life (default: what its seed says)")
    arguments = parser.parse_args()
    if arguments.count < 1 or arguments.workers < 1:
        parser.error("--count and --workers must be at least 1")
    first = secrets.randbelow(10**9) if arguments.seed is None else arguments.seed
    began = time.monotonic()
    seen: Counter[str] = Counter()
    failed: list[Outcome] = []
    print(f"simulating {arguments.count} seeds from {first} on", flush=True)
    workers = min(arguments.workers, arguments.count)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet) as pool:
        for outcome in pool.map(partial(simulate, days=arguments.days), range(first, first + arguments.count)):
            print(report.line(outcome), flush=True)
            for text in report.failure(outcome, arguments.days):
                print(text, flush=True)
            seen += outcome.seen
            failed += [outcome] * bool(outcome.complaints)
    for text in report.lines(seen):
        print(text)
    days, seconds = seen["simulated hours"] / 24, time.monotonic() - began
    print(f"{arguments.count} seeds, {days:,.1f} days of fleets, in {seconds:.0f} s")
    if failed:
        print(f"FAILED: {len(failed)} seeds: {', '.join(str(outcome.plan.seed) for outcome in failed)}")
        return 1
    print("all bills hold")
    return 0


def _quiet() -> None:
    """What the engine warns of is what the simulation is for."""
    logging.getLogger("billaged").setLevel(logging.ERROR)
