"""What must hold of any bill, whoever wrote it: it reads the canonical dump and nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from auditor.columns import BUCKET_KEY, COLUMNS, KEY_LENGTHS
from auditor.events import COUNTER_NAMES
from auditor.usage import MEMORY_UNIT_BYTE_NANOS, Usage

Row = tuple[Any, ...]
Named = dict[str, Any]
Tables = dict[str, list[Row]]


END_KINDS = {None, "stop", "missed_stop", "vanished"}
REASONS = {"silent_vm", "silent_host", "no_samples", "vanished", "billaged_down"}
CAUSES = {"backfill", "start", "step", "stop"}


class AuditError(Exception):
    """A bill contradicts itself."""


def named(tables: Tables, table: str) -> Iterator[Named]:
    """A table's rows by column name."""
    for row in tables[table]:
        yield dict(zip(COLUMNS[table], row, strict=True))


def check(tables: Tables) -> None:
    """Hold all invariants.

    Raises:
        AuditError: one is broken; the message names the row.
    """
    for name, rows in tables.items():
        keys = Counter(row[: KEY_LENGTHS[name]] for row in rows)
        _hold(name, "has no key twice", all(count == 1 for count in keys.values()), keys.most_common(1))
    _check_sessions(tables)
    _check_signs(tables)
    _check_sums(tables)
    _check_buckets(tables)
    _check_corrections(tables)
    _check_silences(tables)
    _check_tallies(tables)


def _check_sessions(tables: Tables) -> None:
    """Every second of a life is accounted for, and lives follow each other."""
    lives: defaultdict[str, list[Named]] = defaultdict(list)
    for row in named(tables, "sessions"):
        until = row["last_ns"] if row["end_ns"] is None else row["end_ns"]
        accounted = row["measured_ns"] + row["gap_ns"]
        _hold("session", "measured + gap = last accounted - start", accounted == until - row["start_ns"], row)
        _hold("session", "start <= last <= end", row["start_ns"] <= row["last_ns"] <= until, row)
        _hold("session", "an end has a kind", (row["end_ns"] is None) == (row["end_kind"] is None), row)
        _hold("session", "an implicit one has a sample", bool(row["explicit"] or row["samples"]), row)
        most = row["memory_peak_bytes"] * row["measured_ns"]
        _hold("session", "memory x time <= peak x measured", _usage(row).memory_byte_nanos <= most, row)
        lives[row["vm_id"]].append(row)
        kind = row["end_kind"]
        _hold("session", "an end has a kind that there is", kind in END_KINDS, row)
        at_last = kind in (None, "stop") or row["end_ns"] == row["last_ns"]
        _hold("session", "ends where it was last seen, if by no stop", at_last, row)
    for rows in lives.values():
        numbers = sorted(row["ordinal"] for row in rows)
        _hold("sessions", "have each number once", numbers == [*range(1, len(rows) + 1)], rows)
        in_time = _in_time(rows)
        _hold("sessions", "run only as the newest", all(row["end_ns"] is not None for row in in_time[:-1]), rows)
        apart = all(before["end_ns"] <= after["start_ns"] for before, after in pairwise(in_time))
        _hold("sessions", "do not overlap", apart, rows)


def _in_time(rows: list[Named]) -> list[Named]:
    """Sessions of one VM by their times: numbers need not follow them."""
    return sorted(rows, key=lambda row: (row["start_ns"], row["end_ns"] is None, row["end_ns"]))


def _check_signs(tables: Tables) -> None:
    """Only a correction may be negative, and its memory only in MiB-seconds."""
    for table in ("sessions", "facts", "gaps", "tallies"):
        for row in named(tables, table):
            _hold(table, "has nothing negative", all(v >= 0 for v in row.values() if isinstance(v, int)), row)
    for table in ("sessions", "facts", "corrections"):
        for row in named(tables, table):
            rest = row["memory_rest_byte_nanos"]
            _hold(table, "has a normal memory rest", 0 <= rest < MEMORY_UNIT_BYTE_NANOS, row)


def _check_sums(tables: Tables) -> None:
    """Facts, corrections and gaps sum to each session's totals, and no gap overlaps another."""
    totals: defaultdict[tuple[str, int], Usage] = defaultdict(Usage)
    gap_ns: Counter[tuple[str, int]] = Counter()
    gap_end_ns: dict[tuple[str, int], int] = {}
    for table in ("facts", "corrections"):
        for row in named(tables, table):
            totals[row["vm_id"], row["ordinal"]] += _usage(row)
    for row in sorted(named(tables, "gaps"), key=lambda row: int(row["start_ns"])):
        key = (row["vm_id"], row["ordinal"])
        totals[key] += Usage(tuple(row[name] for name in COUNTER_NAMES))
        gap_ns[key] += row["end_ns"] - row["start_ns"]
        after_others = row["start_ns"] >= gap_end_ns.get(key, row["start_ns"])
        _hold("gap", "has a length and overlaps no other", after_others and row["start_ns"] < row["end_ns"], row)
        gap_end_ns[key] = row["end_ns"]
        _hold("gap", "is of a kind that there is", row["kind"] in ("step", "start", "stop"), row)
    sessions = {(row["vm_id"], row["ordinal"]): row for row in named(tables, "sessions")}
    strays = totals.keys() - sessions.keys()
    _hold("facts, corrections and gaps", "belong to a session", not strays, strays)
    for key, row in sessions.items():
        _hold("session", "facts + corrections + gaps = totals", totals[key] == _usage(row), row)
        _hold("session", "its gaps sum to its gap time", gap_ns[key] == row["gap_ns"], row)
        until = row["last_ns"] if row["end_ns"] is None else row["end_ns"]
        _hold("gap", "lies in its session's life", gap_end_ns.get(key, until) <= until, row)


def _check_buckets(tables: Tables) -> None:
    """A bucket with its corrections holds no more than its time, and nothing negative."""
    buckets: defaultdict[Row, Usage] = defaultdict(Usage)
    for table in ("facts", "corrections"):
        for row in named(tables, table):
            buckets[tuple(row[name] for name in BUCKET_KEY)] += _usage(row)
    for key, usage in buckets.items():
        least = min(*usage.counters, usage.memory_byte_nanos, usage.measured_ns, usage.samples)
        _hold("bucket", "starts on an edge", key[0] % key[1] == 0, key)
        _hold("bucket", "is no longer than itself", usage.measured_ns <= key[1], (key, usage))
        _hold("bucket", "ends up with nothing negative", least >= 0, (key, usage))


def _check_corrections(tables: Tables) -> None:
    for row in named(tables, "corrections"):
        causes = row["cause"].split("+")
        _hold("correction", "says why", causes == sorted(set(causes)) and CAUSES.issuperset(causes), row)
        _hold("correction", "has no negative peak", row["memory_peak_bytes"] >= 0, row)


def _check_silences(tables: Tables) -> None:
    """Open ones are of VMs that run or have vanished, and begin where those were last seen."""
    lives: defaultdict[str, list[Named]] = defaultdict(list)
    for row in named(tables, "sessions"):
        lives[row["vm_id"]].append(row)
    for row in named(tables, "silences"):
        _hold("silence", "has a reason that there is", row["reason"] in REASONS, row)
        _hold(
            "silence",
            "is everybody's while billaged is down",
            (not row["vm_id"]) == (row["reason"] == "billaged_down"),
            row,
        )
        if row["end_ns"] is not None:
            _hold("silence", "does not end before it begins", row["start_ns"] <= row["end_ns"], row)
            continue
        _hold("silence", "is of a VM with sessions", row["vm_id"] in lives, row)
        newest = _in_time(lives[row["vm_id"]])[-1]
        _hold("silence", "is open at the newest session's last", row["start_ns"] == newest["last_ns"], (row, newest))


def _check_tallies(tables: Tables) -> None:
    tallies: Counter[str] = Counter(dict(tables["tallies"]))
    kinds = Counter(row["kind"] for row in named(tables, "anomalies"))
    counted = {
        "samples": sum(row["samples"] for row in named(tables, "sessions")),
        "conflicts": kinds["conflict"],
        "late": kinds["late"],
        "dead_letters": len(tables["dead_letters"]),
        "possible_gaps": len(tables["reported_gaps"]),
    }
    _hold("backfilled", "are samples", tallies["backfilled"] <= tallies["samples"], tallies)
    for name, count in counted.items():
        _hold(name, "are tallied right", tallies[name] == count, (tallies[name], count))


def _usage(row: Named) -> Usage:
    memory = row["memory_mib_seconds"] * MEMORY_UNIT_BYTE_NANOS + row["memory_rest_byte_nanos"]
    counters = tuple(row[name] for name in COUNTER_NAMES)
    return Usage(counters, memory, row["measured_ns"], row["samples"], row["memory_peak_bytes"])


def _hold(what: str, law: str, holds: bool, evidence: object) -> None:
    if not holds:
        raise AuditError(f"{what}: {law}: {evidence}")
