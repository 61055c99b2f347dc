"""Why a gap is there: silences, what senders said, billaged's own downtime; what is open, and by which instance."""

from __future__ import annotations

import csv
import io
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from report_fixtures import GIB, DataDir, at, batch, data_dir, ledger_of

from billaged.cli.main import billaged
from billaged.ledger.reader import LedgerReader, reading
from billaged.ledger.views import Subject
from billaged.model.quantity import ScoreWeights
from billaged.model.records import Heartbeat, PossibleGap, Record, Resumed, Tick, VmStarted, VmStopped
from billaged.model.time import MINUTE_NANOS
from billaged.reports.bill import bill
from billaged.reports.bill_text import bill_csv, bill_json
from billaged.reports.gaps import GapLine, gap_lines
from billaged.reports.period import period
from billaged.reports.span import ALL_TIME

NOW = at("18:00:00")


def minutes(count: int) -> list[Record]:
    """Ticks of a minute each."""
    return [Tick(at("10:00:00"), MINUTE_NANOS, closes_interval=False) for _ in range(count)]


def told(lines: list[GapLine]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(line.state, line.vm_id, line.reasons) for line in lines]


def lines_of(ledger: LedgerReader, subject: Subject = Subject()) -> list[GapLine]:  # noqa: B008 - it is frozen
    return gap_lines(ledger, subject, ALL_TIME, NOW)


# A host is silent from the second minute on, and listed two VMs of two customers.
SILENT_HOST: tuple[Record, ...] = (
    batch("one", (at("10:00:00"), GIB)),
    batch("two", (at("10:00:00"), GIB), customer="bravo"),
    Heartbeat("host", ("one", "two")),
    *minutes(2),
)


def test_a_gap_has_every_reason_that_overlaps_it(tmp_path: Path) -> None:
    records = (
        *SILENT_HOST,
        batch("one", (at("10:30:00"), GIB)),
        batch("one", (at("10:40:00"), GIB)),
        Resumed(at("10:50:00"), at("11:10:00")),
        PossibleGap("one", at("10:40:00"), at("10:45:00")),
        batch("one", (at("11:00:00"), GIB)),
        batch("one", (at("12:00:00"), GIB)),
        batch("one", (at("13:00:00"), GIB)),
    )
    with ledger_of(tmp_path, *records) as ledger:
        lines = [line for line in lines_of(ledger, Subject(vm_id="one")) if line.state == "closed"]
    assert [line.reasons for line in lines] == [
        ("silent_host",),
        ("billaged_down", "reported"),
        # It ended inside this one, and the next has nothing of it.
        ("billaged_down",),
        ("no_samples",),
    ]


def test_a_point_that_comes_late_leaves_both_halves_their_reason(tmp_path: Path) -> None:
    late = batch("one", (at("10:40:00"), GIB))
    with ledger_of(tmp_path, *SILENT_HOST, batch("one", (at("11:00:00"), GIB)), late) as ledger:
        lines = lines_of(ledger, Subject(vm_id="one"))
    assert [(line.duration_ns // MINUTE_NANOS, line.reasons) for line in lines if line.state == "closed"] == [
        (40, ("silent_host",)),
        (20, ("silent_host",)),
    ]


def test_what_is_open_is_listed_at_once_with_its_instances(tmp_path: Path) -> None:
    records = (*SILENT_HOST, Heartbeat("another", ("one",)), Resumed(at("10:01:00"), at("10:02:00")))
    with ledger_of(tmp_path, *records) as ledger:
        # Two minutes are less than the gap threshold; but the host is silent.
        lines = gap_lines(ledger, Subject(), ALL_TIME, at("10:02:00"))
        bravo = gap_lines(ledger, Subject(customer_id="bravo"), ALL_TIME, at("10:02:00"))
    assert told(lines) == [
        ("pending", "one", ("silent_host", "billaged_down")),
        ("pending", "two", ("silent_host", "billaged_down")),
    ]
    assert [line.instances for line in lines] == [("another", "host"), ("host",)]
    assert bravo == lines[1:]


def test_what_is_pending_for_long_needs_no_silence(tmp_path: Path) -> None:
    with ledger_of(tmp_path, batch("one", (at("10:00:00"), GIB))) as ledger:
        assert told(lines_of(ledger)) == [("pending", "one", ("no_samples",))]
        assert gap_lines(ledger, Subject(), ALL_TIME, at("10:10:00")) == []


# --- outside of any life -------------------------------------------------------------

OUTSIDE: tuple[Record, ...] = (
    VmStarted("restarted", "acme", at("10:00:00")),
    batch("restarted", (at("10:10:00"), GIB)),
    VmStarted("restarted", "acme", at("11:00:00")),
    VmStopped("restarted", at("11:05:00")),
    batch("gone", (at("10:00:00"), GIB)),
    Heartbeat("host", ("gone",)),
    Heartbeat("host", ()),
    *minutes(60),
)


def test_time_after_an_unseen_end_is_in_no_life_and_listed(tmp_path: Path) -> None:
    with closing(DataDir(tmp_path)) as made:
        made.put(*OUTSIDE)
        with reading(tmp_path / "ledger.db") as ledger:
            gone, restarted = (line for line in lines_of(ledger) if line.state == "outside")
            gone_vm, later_ns = Subject(vm_id="gone"), at("10:00:00", "2026-12-05")
            months = [
                bill(ledger, gone_vm, period(month), "vm", ScoreWeights(), later_ns) for month in ("2026-11", "2026-12")
            ]
            whole = bill(ledger, Subject(vm_id="restarted"), period("2026-11"), "vm", ScoreWeights(), NOW)
        # Another customer takes it over: now it is known how long nobody paid for it.
        made.put(batch("gone", (at("12:00:00"), GIB), customer="bravo"))
        with reading(tmp_path / "ledger.db") as ledger:
            (closed,) = (line for line in lines_of(ledger, Subject(vm_id="gone")) if line.state == "outside")
    assert (gone.reasons, gone.start_ns, gone.end_ns, gone.customer_id) == (("vanished",), at("10:00:00"), None, "acme")
    assert (closed.end_ns, closed.duration_ns, closed.ordinal) == (at("12:00:00"), 120 * MINUTE_NANOS, 1)
    assert (restarted.reasons, restarted.start_ns, restarted.end_ns) == (
        ("missed_stop",),
        at("10:10:00"),
        at("11:00:00"),
    )
    # Told in the month in which it went, not in every month from then on.
    assert [told([gap.line for gap in each.gaps]) for each in months] == [[("outside", "gone", ("vanished",))], []]
    # 10 minutes from the start, 5 to the stop, and nothing in between.
    assert whole.total.account.lifetime_ns == 15 * MINUTE_NANOS
    (gap,) = whole.gaps
    assert (gap.line.state, gap.in_period_ns, gap.in_period) == ("outside", 50 * MINUTE_NANOS, None)


def test_a_start_right_at_the_end_leaves_nothing_outside(tmp_path: Path) -> None:
    # A start at the instant of the stop ends nothing unseen; one right after a start does.
    records = (
        VmStarted("vm", "acme", at("10:00:00")),
        VmStopped("vm", at("10:05:00")),
        VmStarted("vm", "acme", at("10:05:00")),
    )
    with ledger_of(tmp_path, *records) as ledger:
        assert [line.state for line in gap_lines(ledger, Subject(), ALL_TIME, at("10:06:00"))] == []


# --- in every format -------------------------------------------------------------------


def run(path: Path, *arguments: str) -> str:
    result = CliRunner().invoke(billaged, ["gaps", "--data-dir", str(path), *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_is_open_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: NOW)
    closed = (batch("three", (at("10:00:00"), GIB)), batch("three", (at("12:00:00"), GIB)), VmStopped("three", NOW))
    data_dir(tmp_path, *OUTSIDE, *closed, *SILENT_HOST, Heartbeat("a-host", ("one",)))
    found: list[dict[str, Any]] = json.loads(run(tmp_path, "--open", "--format", "json"))
    assert [(line["instances"], line["vm_id"], line["reasons"]) for line in found] == [
        ([], "gone", ["vanished"]),
        (["a-host", "host"], "one", ["silent_host"]),
        (["host"], "two", ["silent_host"]),
    ]
    rows = list(csv.DictReader(io.StringIO(run(tmp_path, "--open", "--format", "csv"))))
    assert [(row["instances"], row["vm_id"], row["reasons"], row["end"]) for row in rows][1] == (
        *("a-host host", "one", "silent_host"),
        "",
    )
    table = run(tmp_path, "--open").splitlines()
    assert table[0].split() == ["instance", "vm", "customer", "state", "reasons", "since", "for"]
    assert table[-1].split() == ["host", "two", "bravo", "pending", "silent_host", "2026-11-10", "10:00:00", "8h"]
    everything = json.loads(run(tmp_path, "--format", "json"))
    assert {line["state"] for line in everything} == {"closed", "pending", "outside"}
    assert [line["vm_id"] for line in json.loads(run(tmp_path, "--open", "--vm", "two", "--format", "json"))] == ["two"]


def test_a_bill_tells_the_reasons(tmp_path: Path) -> None:
    with ledger_of(tmp_path, *SILENT_HOST) as ledger:
        found = bill(ledger, Subject(vm_id="one"), period("2026-11"), "vm", ScoreWeights(), NOW)
    (gap,) = json.loads(bill_json(found))["gaps"]
    assert (gap["state"], gap["reasons"], gap["instances"]) == ("pending", ["silent_host"], ["host"])
    (row,) = [row for row in csv.DictReader(io.StringIO(bill_csv(found))) if row["record"] == "gap"]
    assert (row["reasons"], row["instances"]) == ("silent_host", "host")
