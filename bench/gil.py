"""Why the ledger writes many rows a statement: rows against statements beside a busy loop."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import mean, median
from typing import NamedTuple

from sqlalchemy import Connection

from bench.process import scratch
from bench.report import Report
from billaged.aggregator.changes import FACT_COLUMNS, Row
from billaged.ledger import database
from billaged.ledger import tables as t
from billaged.ledger.bulk import write_rows

GROUP = 128
# The interpreter's default, and what the daemon sets.
_SWITCH_SECONDS = (0.005, 0.0005)
_GROUPS_A_THREAD = 3
_ROWS = "row by row"
_STATEMENTS = "many rows a statement"


class Size(NamedTuple):
    groups: int = 8


def gil(report: Report, size: Size) -> None:
    """What a group of 128 facts takes next to a thread that never waits, as a busy event loop does."""
    report.title(f"gil: {GROUP} facts into SQLite, beside a thread that runs Python all the time")
    with scratch() as directory:
        engine = database.open_for_writing(directory / database.FILE_NAME)
        try:
            with engine.connect() as connection:
                work = _Work(connection)
                alone = {name: median(work.milliseconds(way) for _ in range(size.groups)) for name, way in work.ways()}
                for name, taken in alone.items():
                    report.line(f"{name}, nothing beside it", f"{taken:.1f} ms", "baseline")
                for switch_seconds in _SWITCH_SECONDS:
                    _beside(report, work, switch_seconds, size.groups)
        finally:
            engine.dispose()


def _beside(report: Report, work: _Work, switch_seconds: float, groups: int) -> None:
    # Whether the two fall into step, and wait for each other at every row, is decided
    # anew with each thread. So there are several, and the mean counts, and the worst.
    taken: dict[str, list[float]] = {name: [] for name, _ in work.ways()}
    for _ in range(groups):
        for name, way in work.ways():
            with _busy(switch_seconds):
                taken[name] += [work.milliseconds(way) for _ in range(_GROUPS_A_THREAD)]
    for name, each in taken.items():
        note = f"mean; the worst {max(each):.1f} ms; switch interval {switch_seconds * 1e3} ms"
        report.line(f"{name}, beside it", f"{mean(each):.1f} ms", note)
    times = mean(taken[_ROWS]) / mean(taken[_STATEMENTS])
    report.line("so many rows a statement are", f"{times:.1f} times", "as fast beside it")


class _Work:
    """New facts, group after group, into one ledger."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        marks = ", ".join(["?"] * len(FACT_COLUMNS))
        self._one = f"INSERT INTO {t.facts.name} ({', '.join(FACT_COLUMNS)}) VALUES ({marks})"
        self._bucket = 0

    def ways(self) -> list[tuple[str, Callable[[list[Row]], None]]]:
        return [(_ROWS, self._row_by_row), (_STATEMENTS, self._in_statements)]

    def milliseconds(self, way: Callable[[list[Row]], None]) -> float:
        """One group, without the commit."""
        self._bucket += 1
        numbers = [0] * (len(FACT_COLUMNS) - 5)
        rows: list[Row] = [(self._bucket, 1, f"vm-{vm}", 1, "customer", *numbers) for vm in range(GROUP)]
        with self._connection.begin():
            began = time.perf_counter()
            way(rows)
            return (time.perf_counter() - began) * 1e3

    def _row_by_row(self, rows: list[Row]) -> None:
        self._connection.exec_driver_sql(self._one, rows)

    def _in_statements(self, rows: list[Row]) -> None:
        write_rows(self._connection, t.facts, FACT_COLUMNS, rows)


@contextmanager
def _busy(switch_seconds: float) -> Iterator[None]:
    """A thread that wants the interpreter's lock all the time, handed over so often."""
    before = sys.getswitchinterval()
    stop = threading.Event()

    started = threading.Event()

    def spin() -> None:
        started.set()
        while not stop.is_set():
            sum(range(100))

    thread = threading.Thread(target=spin)
    sys.setswitchinterval(switch_seconds)
    thread.start()
    started.wait()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)
