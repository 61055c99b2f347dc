"""A verdict on paper: for people, and for programs."""

from __future__ import annotations

import json
from typing import Any, Final

from billaged.reports.findings import begun_anew_named
from billaged.reports.ledger_check.findings import Broken
from billaged.reports.ledger_check.invariants import SENTENCES
from billaged.reports.ledger_check.verdict import Check, Verdict
from billaged.reports.sheet import Column, Record, Sheet, as_csv, as_json
from billaged.settings.kinds import printable

# One header: `record` says what a line is, a check or a broken row.
_CSV: Final = ("record", "invariant", "state", "rows", "broken", "table", "key", "problem")


def verdict_sheet(verdict: Verdict) -> Sheet:
    columns = [Column("invariant"), Column("state"), Column("rows", number=True), Column("broken", number=True)]
    rows = []
    for check in verdict.checks:
        counts = ("", "") if check.rows is None else (f"{check.rows:,}", f"{check.broken:,}")
        rows.append([check.invariant, _state(check), *counts])
    return Sheet(columns, rows)


def reach_lines(verdict: Verdict) -> list[str]:
    """What was not proved, though nothing is broken: how far back the replay began, and rows that are lost."""
    lines = [begun_anew_named(story) for story in verdict.begun_anew]
    if after := verdict.replayed_after:
        lines.append(f"the replay began at the cut at {after:,}: what was final there was not replayed")
    return lines


def broken_lines(verdict: Verdict) -> list[str]:
    """The first broken rows of each invariant that was broken: what it says, then a line for each row."""
    lines = []
    for check in verdict.checks:
        if not check.broken:
            continue
        lines += ["", f"{check.invariant}: {SENTENCES[check.invariant]}"]
        lines += [printable(f"  {_named(broken)}: {broken.problem}") for broken in check.first]
        if check.broken > len(check.first):
            lines.append(f"  and {check.broken - len(check.first):,} more")
    return lines


def verdict_json(verdict: Verdict) -> str:
    whose = {name: value for name, value in verdict.subject._asdict().items() if value is not None}
    page: dict[str, Any] = {**whose, "ledger": verdict.position._asdict(), "broken": verdict.broken}
    if verdict.replayed_after:
        page["replayed_after"] = verdict.replayed_after
    if verdict.begun_anew:
        page["begun_anew"] = [story._asdict() for story in verdict.begun_anew]
    page["invariants"] = [
        {
            "name": check.invariant,
            "says": SENTENCES[check.invariant],
            "state": _state(check),
            "rows": check.rows,
            "broken": check.broken,
            "first": [{"table": each.table, "key": _plain(each), "problem": each.problem} for each in check.first],
        }
        for check in verdict.checks
    ]
    return as_json(page)


def verdict_csv(verdict: Verdict) -> str:
    records: list[Record] = [
        {
            "record": "invariant",
            "invariant": check.invariant,
            "state": _state(check),
            "rows": check.rows,
            "broken": None if check.rows is None else check.broken,
        }
        for check in verdict.checks
    ]
    for check in verdict.checks:
        records += [
            {
                "record": "row",
                "invariant": check.invariant,
                "table": each.table,
                "key": json.dumps(_plain(each)),
                "problem": each.problem,
            }
            for each in check.first
        ]
    return as_csv(_CSV, records)


def _state(check: Check) -> str:
    if check.rows is None:
        return "not checked"
    return "broken" if check.broken else "holds"


def _named(broken: Broken) -> str:
    key = ", ".join(f"{name}={value}" for name, value in broken.key.items())
    return f"{broken.table} {key}".rstrip()


def _plain(broken: Broken) -> dict[str, str | int | None]:
    """A damaged row may have anything in its key."""
    return {name: each if isinstance(each, str | int | None) else repr(each) for name, each in broken.key.items()}
