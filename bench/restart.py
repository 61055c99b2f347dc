"""How long the daemon takes to serve again, with a fleet running in its ledger."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.fleet import CALLER, Fleet, Journaled
from bench.process import ROOT, daemon, scratch
from bench.report import Report
from billaged.aggregator.engine import Engine
from billaged.aggregator.feeding import take_up
from billaged.directory import DataDirectory
from billaged.intake.chain import rows_after
from billaged.model.records import Kind
from billaged.model.time import HOUR_NANOS, NANOS
from billaged.storage import open_stores

TARGET_SECONDS = 3.0
_GROUP = 1_000


class Size(NamedTuple):
    vms: int = 100_000
    turns: int = 3


def restart(report: Report, size: Size) -> None:
    """From the start of the process until it serves."""
    report.title(f"restart: {size.vms:,} running VMs in the ledger")
    with scratch() as directory:
        (directory / "empty").mkdir()
        _fill(directory / "data", size.vms)
        version, empty, full = [], [], []
        for _ in range(size.turns):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "billaged", "version"], check=True, stdout=subprocess.DEVNULL, cwd=ROOT
            )
            version.append(time.perf_counter() - began)
            with daemon(directory / "empty") as running:
                empty.append(running.seconds)
            with daemon(directory) as running:
                full.append(running.seconds)
                if (known := running.stats()["active_vms"]) != size.vms:
                    raise RuntimeError(f"{known} of {size.vms} VMs are back")
        loading = _load_seconds(directory / "data")
    report.line("billaged version", f"{median(version):.2f} s")
    report.line("until serving, nothing in the ledger (baseline)", f"{median(empty):.2f} s")
    share = f"{median(full) / median(empty):.1f} times the baseline; loading alone {loading:.2f} s"
    report.line("until serving, the fleet in the ledger", f"{median(full):.2f} s", share)
    held = median(full) < TARGET_SECONDS
    report.target(f"under {TARGET_SECONDS:.0f} s with {size.vms:,} VMs", f"{median(full):.2f} s", held)


def _fill(path: Path, vms: int) -> None:
    """A journal and a ledger as a daemon leaves them: every VM started and sampled."""
    data = DataDirectory(path)
    stores = open_stores(data)
    try:
        now = time.time_ns()
        fleet = Fleet(vms, now - HOUR_NANOS, 60 * NANOS)
        engine, journaled = Engine(stores.ledger.checkpoint()), Journaled(received_ns=now)
        for first in range(0, vms, _GROUP):
            group = range(first, min(first + _GROUP, vms))
            entries = journaled.entries(Kind.STARTED, map(fleet.start, group))
            entries += journaled.entries(Kind.METRICS, [fleet.sample(vm, 0) for vm in group])
            rows = rows_after(stores.journal.head, [(entry.kind, now, CALLER, entry.payload) for entry in entries])
            stores.journal.append(rows)
            engine.fold([entry._replace(chain=row.chain) for entry, row in zip(entries, rows, strict=True)])
        changes = engine.collect()
        if changes is None:
            raise RuntimeError("nothing was folded")
        stores.ledger.commit(changes)
    finally:
        stores.close()
        data.release()


def _load_seconds(path: Path) -> float:
    """Reading the running sessions and putting them into the columns, in this process."""
    data = DataDirectory(path)
    stores = open_stores(data)
    try:
        began = time.perf_counter()
        engine = Engine(stores.ledger.checkpoint())
        take_up(engine, stores.ledger)
        return time.perf_counter() - began
    finally:
        stores.close()
        data.release()
