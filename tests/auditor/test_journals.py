"""Hostile journals: every bill holds the invariants, the hostility is real, and the conversion loses nothing."""

from __future__ import annotations

import ast
import random
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.bill import Bill
from auditor.biller import Biller, bill
from auditor.convert import to_entries, to_events
from auditor.events import Event, Rules
from auditor.generator import journals, seeded_journal
from auditor.invariants import REASONS, AuditError
from auditor.journal import Journal, sample
from billaged.wire import codec

ANOMALIES = {
    *("late", "conflict", "counter_reset", "implausible", "contradicted_stop", "missed_stop"),
    *("late_start", "late_stop", "unknown_stop", "extra_stop", "vanished", "returned"),
}
TALLIES = {
    *("samples", "backfilled", "duplicates", "conflicts", "late", "duplicate_starts", "duplicate_stops"),
    *("ticks", "heartbeats", "starts", "stops", "possible_gaps", "dead_letters"),
}
# What the generator may reach without being asked to.
FREE = ("gap", "dead", "end", "tally")


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_bills_of_seeded_journals_hold_the_invariants(first: int) -> None:
    for seed in range(first, first + 100):
        try:
            bill(seeded_journal(seed)).check()
        except AuditError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@settings(max_examples=100, deadline=None)
@given(journals())
def test_bills_of_drawn_journals_hold_the_invariants(journal: list[Event]) -> None:
    bill(journal).check()


def test_the_invariants_hold_after_every_event() -> None:
    for seed in range(20):
        biller = Biller()
        for event in seeded_journal(seed, events=40):
            biller.fold(event)
            biller.bill().check()


def test_a_seed_always_gives_the_same_journal() -> None:
    assert seeded_journal(7) == seeded_journal(7)
    assert seeded_journal(7) != seeded_journal(8)


def test_the_generator_reaches_every_kind_of_everything() -> None:
    seen: Counter[str] = Counter()
    for seed in range(150):
        dump = bill(seeded_journal(seed, events=100))
        seen.update(row["kind"] for row in dump.rows("anomalies"))
        seen.update(f"gap {row['kind']}" for row in dump.rows("gaps"))
        seen.update(f"dead {row['kind']}" for row in dump.rows("dead_letters"))
        seen.update(f"end {row['end_kind']}" for row in dump.rows("sessions"))
        seen.update(f"tally {name}" for name, _ in dump.tables["tallies"])
        seen.update(f"cause {row['cause']}" for row in dump.rows("corrections"))
        seen.update(f"silence {row['reason']}" for row in dump.rows("silences"))
        seen.update(f"quiet {row['reason']}" for row in dump.rows("silences") if row["end_ns"] is None)
        seen["silent instances"] += sum(row["silent"] for row in dump.rows("instances"))
        seen["samples taken along"] += sum(row["samples"] < 0 for row in dump.rows("corrections"))
        seen["numbers out of time"] += out_of_time(dump)
        seen["corrections"] += len(dump.tables["corrections"])
        seen["negative corrections"] += sum(row["measured_ns"] < 0 for row in dump.rows("corrections"))
        seen["second sessions"] += sum(row["ordinal"] > 1 for row in dump.rows("sessions"))
        seen["sessions without samples"] += sum(not row["samples"] for row in dump.rows("sessions"))
    expected = {
        *ANOMALIES,
        *("gap step", "gap start", "gap stop", "dead metrics", "dead started"),
        *("end None", "end stop", "end missed_stop", "end vanished"),
        *("cause step", "cause backfill", "cause start", "cause stop", "cause backfill+step"),
        *(f"silence {reason}" for reason in REASONS),
        *(f"quiet {reason}" for reason in REASONS if reason != "billaged_down"),
        *("silent instances", "samples taken along", "numbers out of time"),
        *(f"tally {name}" for name in TALLIES),
        *("corrections", "negative corrections", "second sessions", "sessions without samples"),
    }
    assert {name: seen[name] for name in expected if seen[name] < 5} == {}
    assert {name for name in seen if not name.startswith(FREE)} <= expected


def out_of_time(dump: Bill) -> int:
    """How many sessions have a lower number than one before them in time."""
    numbers: dict[str, list[tuple[int, int]]] = {}
    for row in dump.rows("sessions"):
        numbers.setdefault(row["vm_id"], []).append((row["start_ns"], row["ordinal"]))
    return sum(later[1] < before[1] for rows in numbers.values() for before, later in pairwise(sorted(rows)))


def test_what_is_generated_fits_the_wire() -> None:
    for seed in range(50):
        events = seeded_journal(seed)
        entries = to_entries(events)
        assert list(to_events(entries)) == events
        for entry in entries:
            assert codec.decode(entry.kind, entry.payload) == entry.record


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_an_honest_life_is_billed_once_and_whole(seed: int, count: int) -> None:
    """Started, sampled in order by a counter that never falls, stopped: the bill is the counter."""
    chance = random.Random(seed)
    journal, when, cpu = Journal(Rules(bucket_ns=60 * 10**9)).start(0), 0, 0
    for _ in range(count):
        step = chance.choice((1, 59, 60, 300, 900, 901, 4000))
        when, cpu = when + step, cpu + chance.randint(0, 256 * step * 10**9)
        journal.samples(sample(when, cpu=cpu))
    session = journal.stop(when + 17).session()
    assert session["cpu_time_ns"] == cpu
    assert session["measured_ns"] + session["gap_ns"] == (when + 17) * 10**9
    assert journal.anomalies() == []


def damaged(table: str, column: int, change: int) -> Bill:
    """A good bill with one number of one row changed."""
    journal = Journal().start(0).samples(sample(10, cpu=7, memory=2**30), sample(2000, cpu=9)).stop(2010)
    tables = journal.bill().dump()
    row = list(tables[table][0])
    row[column] += change
    tables[table][0] = tuple(row)
    return replace(journal.bill(), tables=tables)


@pytest.mark.parametrize(
    ("table", "column", "change", "message"),
    [
        ("sessions", 3, -1, "measured \\+ gap"),
        ("sessions", 15, 1, "measured \\+ gap"),
        ("sessions", 8, 1, "= totals"),
        ("sessions", 16, 1, "measured \\+ gap"),
        ("sessions", 14, 1, "= totals"),
        ("sessions", 13, 10**9, "peak x measured"),
        ("sessions", 5, 10**12, "start <= last <= end"),
        ("sessions", 1, 1, "each number once"),
        ("facts", 5, 1, "= totals"),
        ("facts", 5, -1000, "negative"),
        ("facts", 0, 1, "on an edge"),
        ("facts", 12, 3600 * 10**9, "= totals"),
        ("gaps", 6, 1, "= totals"),
        ("gaps", 3, 1, "its gap time"),
        ("gaps", 1, 1, "belong to a session"),
        ("tallies", 1, 1, "tallied right"),
        ("sessions", 6, -1, "measured \\+ gap"),
    ],
)
def test_a_damaged_bill_does_not_pass(table: str, column: int, change: int, message: str) -> None:
    with pytest.raises(AuditError, match=message):
        damaged(table, column, change).check()


def test_differences_name_the_rows() -> None:
    good = damaged("facts", 5, 0)
    assert good.differences(good.dump()) == []
    lines = good.differences(damaged("facts", 5, 1).tables)
    assert [line.split(" (")[0] for line in lines] == ["facts audited", "facts instead"]


def test_the_auditor_never_imports_what_it_judges() -> None:
    """Only ``convert`` and tests may; everything else stands on the standard library and hypothesis."""
    here = Path(__file__).parent
    allowed = {*sys.stdlib_module_names, "hypothesis", "auditor"}
    files = [path for path in here.glob("*.py") if path.name != "convert.py" and not path.name.startswith("test_")]
    assert {"biller.py", "generator.py", "invariants.py"} <= {path.name for path in files}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {name.split(".")[0] for name in names} <= allowed, path.name
