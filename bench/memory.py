"""The fold's memory: bytes a VM, ids included."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from types import FunctionType, ModuleType
from typing import NamedTuple

from bench.fleet import Fleet, Journaled
from bench.report import Report, ratio
from billaged.aggregator.changes import Checkpoint
from billaged.aggregator.engine import Engine
from billaged.model.records import JournalEntry, Kind, MetricsBatch, Tick
from billaged.model.time import HOUR_NANOS, MINUTE_NANOS

TARGET_BYTES = 400
_START_NANOS = 500_000 * HOUR_NANOS
_STEP_NANOS = 5 * MINUTE_NANOS
_GROUP = 1_000
_CODE = (type, ModuleType, FunctionType)


class Size(NamedTuple):
    vms: int = 100_000


def memory(report: Report, size: Size) -> None:
    """What stays after every VM was opened and what goes to the ledger has gone."""
    report.title(f"memory: state of {size.vms:,} VMs, every object that is reached from the engine, once")
    requests = _Requests(size.vms)
    plain = _measured(requests.plain(), size.vms)[0]
    report.line("a dict with a list of 15 integers (baseline)", f"{plain:.0f} B a VM")
    # Metald samples every five minutes, the interval is one: a fifth of the fleet is in it.
    explicit, columns = _measured(requests.engine(started=True, active=size.vms // 5), size.vms)
    note = f"{ratio(explicit, plain)}; columns {columns:.0f} B, the rest ids"
    report.line("started by a notification, a fifth active", f"{explicit:.0f} B a VM", note)
    implicit, columns = _measured(requests.engine(started=False, active=size.vms), size.vms)
    note = f"{ratio(implicit, plain)}; columns {columns:.0f} B, the rest ids"
    report.line("opened by a sample, all active", f"{implicit:.0f} B a VM", note)
    report.target(
        f"at most {TARGET_BYTES} bytes a VM at metald's rhythm", f"{explicit:.0f} B", explicit <= TARGET_BYTES
    )


def _measured(built: Engine | dict[str, list[int]], vms: int) -> tuple[float, float]:
    """Bytes a VM of all that can be reached from there, each object once, and of the columns alone."""
    seen: set[int] = set()
    waiting: list[object] = [built]
    used = 0
    while waiting:
        # Code and whatever leads to it is not the fleet's.
        found = [one for one in waiting if id(one) not in seen and not isinstance(one, _CODE)]
        waiting.clear()
        for one in found:
            if id(one) not in seen:
                seen.add(id(one))
                used += sys.getsizeof(one)
                waiting += gc.get_referents(one)
    columns = built.columns.nbytes if isinstance(built, Engine) else 0
    return used / vms, columns / vms


class _Requests:
    """The fleet's requests, and what is built of them."""

    def __init__(self, vms: int) -> None:
        fleet = Fleet(vms, _START_NANOS, _STEP_NANOS)
        self._starts = [fleet.start(vm) for vm in range(vms)]
        self._samples = [[fleet.sample(vm, nth) for vm in range(vms)] for nth in (0, 1)]

    def engine(self, *, started: bool, active: int) -> Engine:
        """Every VM opened and sampled, an interval closed, and so many of them sampled again."""
        journal, engine = Journaled(), Engine(Checkpoint())
        if started:
            _fold(engine, journal, Kind.STARTED, self._starts)
        _fold(engine, journal, Kind.METRICS, self._samples[0])
        journal.position += 1
        tick = Tick(_START_NANOS + 1, MINUTE_NANOS, closes_interval=True)
        engine.fold([JournalEntry(journal.position, Kind.TICK, tick.time_ns, "", b"", tick)])
        _fold(engine, journal, Kind.METRICS, self._samples[1][:active])
        return engine

    def plain(self) -> dict[str, list[int]]:
        """The newest sample's seven values and eight totals of every VM."""
        journal = Journaled()
        state: dict[str, list[int]] = {}
        for payload in self._samples[1]:
            (entry,) = journal.entries(Kind.METRICS, [payload])
            if isinstance(entry.record, MetricsBatch):
                values = entry.record.samples.tolist()
                state[entry.record.vm_id] = values + [value // 2 for value in values] + [len(state)]
        return state


def _fold(engine: Engine, journal: Journaled, kind: Kind, payloads: Sequence[bytes]) -> None:
    for first in range(0, len(payloads), _GROUP):
        engine.fold(journal.entries(kind, payloads[first : first + _GROUP]))
    # To the ledger with it: what waits for that is no state.
    engine.collect()
