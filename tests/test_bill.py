"""The bill of a period: every nanosecond of a life is measured or a gap, and the auditor says the same."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from auditor.biller import bill as audited_bill
from auditor.columns import COLUMNS
from auditor.convert import to_entries
from auditor.events import COUNTER_NAMES, Event, Rules
from auditor.generator import journals, seeded_journal
from auditor.machine import EPOCH_NS
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_fixtures import DAY, GIB, at, batch, data_dir, ledger_of

from billaged.aggregator.engine import Engine
from billaged.cli.errors import exit_code
from billaged.cli.main import billaged
from billaged.ledger.database import open_for_writing
from billaged.ledger.reader import LedgerReader, reading
from billaged.ledger.store import LedgerStore
from billaged.ledger.views import Span, Subject
from billaged.model.errors import BillagedError
from billaged.model.quantity import ScoreWeights
from billaged.model.records import COUNTER_FIELDS, PossibleGap, VmStarted, VmStopped
from billaged.model.time import DAY_NANOS, HOUR_NANOS, MINUTE_NANOS, NANOS, parse_instant
from billaged.reports.anomaly_text import detail_text
from billaged.reports.bill import Bill, BillBy, bill
from billaged.reports.bill_sheets import bill_sheets
from billaged.reports.bill_text import bill_csv, bill_json
from billaged.reports.completeness import Account
from billaged.reports.errors import BadSpan, NotInLedger, ProofFailed
from billaged.reports.period import period
from billaged.reports.sheet import as_columns
from billaged.reports.span import ALL_TIME

VM = Subject(vm_id="vm")
ACME = Subject(customer_id="acme")
NOVEMBER = Span(parse_instant("2026-11-01"), parse_instant("2026-12-01"))
NOW = at("18:00:00")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "billing-semantics.md"


def made(ledger: LedgerReader, subject: Subject, span: Span = NOVEMBER, by: BillBy = "vm", now_ns: int = NOW) -> Bill:
    return bill(ledger, subject, span, by, ScoreWeights(), now_ns)


# --- the auditor ------------------------------------------------------------------

# Its tables, rows by column name.
Audited = dict[str, list[dict[str, Any]]]


def tables_of(events: list[Event]) -> Audited:
    audited = audited_bill(events)
    return {table: audited.rows(table) for table in COLUMNS}


@contextmanager
def generated(events: list[Event]) -> Iterator[LedgerReader]:
    """The ledger that the daemon's own stages make of a journal."""
    database = open_for_writing(None)
    store = LedgerStore(database, "journal")
    engine = Engine(store.checkpoint())
    engine.fold(to_entries(events))
    changes = engine.collect()
    assert changes is not None
    store.commit(changes)
    try:
        with database.connect() as connection:
            yield LedgerReader(connection)
    finally:
        store.close()


def with_settable_rules(events: list[Event]) -> list[Event]:
    """Gap thresholds no longer than the setting takes."""
    return [
        event._replace(what=event.what.with_thresholds_at_most(8 * HOUR_NANOS))
        if isinstance(event.what, Rules)
        else event
        for event in events
    ]


def overlap(span: Span, start_ns: int, end_ns: int) -> int:
    return max(0, min(end_ns, span.to_ns) - max(start_ns, span.from_ns))


def audited_account(audited: Audited, vm_id: str, customer: str | None, span: Span, now_ns: int) -> Account:
    """What the auditor's tables say of a VM's time in a span."""

    def ours(table: str) -> list[dict[str, Any]]:
        rows = [row for row in audited[table] if row["vm_id"] == vm_id]
        return [row for row in rows if customer in (None, row["customer_id"])]

    lifetime_ns = pending_ns = 0
    owners: dict[int, str] = {}
    for row in audited["sessions"]:
        if row["vm_id"] == vm_id:
            owners[row["ordinal"]] = row["customer_id"]
    for row in ours("sessions"):
        running = row["end_ns"] is None
        lifetime_ns += overlap(span, row["start_ns"], row["last_ns"] if running else row["end_ns"])
        pending_ns += overlap(span, row["last_ns"], now_ns) if running else 0
    posted = [
        row for row in (*ours("facts"), *ours("corrections")) if span.from_ns <= row["bucket_start_ns"] < span.to_ns
    ]
    anomalies = [
        row
        for row in audited["anomalies"]
        if row["vm_id"] == vm_id
        and span.from_ns <= row["at_ns"] < span.to_ns
        and customer in (None, owners.get(max(row["ordinal"], 1)))
    ]
    return Account(
        lifetime_ns,
        sum(row["measured_ns"] for row in posted),
        sum(overlap(span, row["start_ns"], row["end_ns"]) for row in ours("gaps")),
        pending_ns,
        sum(row["samples"] for row in posted),
        len(anomalies),
    )


def audited_counters(audited: Audited, customer: str, span: Span) -> list[int]:
    totals = [0] * len(COUNTER_NAMES)
    for row in (*audited["facts"], *audited["corrections"], *audited["gaps"]):
        if row["customer_id"] != customer:
            continue
        if "bucket_start_ns" in row:
            if span.from_ns <= row["bucket_start_ns"] < span.to_ns:
                totals = [total + row[name] for total, name in zip(totals, COUNTER_NAMES, strict=True)]
        elif overlap(span, row["start_ns"], row["end_ns"]):
            whole_ns = row["end_ns"] - row["start_ns"]
            edges = (
                max(row["start_ns"], span.from_ns) - row["start_ns"],
                min(row["end_ns"], span.to_ns) - row["start_ns"],
            )
            for index, name in enumerate(COUNTER_NAMES):
                totals[index] += row[name] * edges[1] // whole_ns - row[name] * edges[0] // whole_ns
    return totals


def subjects_of(audited: Audited) -> list[Subject]:
    sessions = audited["sessions"]
    vms = [Subject(vm_id=vm_id) for vm_id in sorted({row["vm_id"] for row in sessions})]
    customers = [Subject(customer_id=owner) for owner in sorted({row["customer_id"] for row in sessions})]
    both = sorted({(row["vm_id"], row["customer_id"]) for row in sessions})
    return [*vms, *customers, *(Subject(*pair) for pair in both[:3])]


def is_cut(audited: Audited, subject: Subject, at_ns: int) -> bool:
    """Whether the instant is inside a bucket of the subject."""
    return any(
        row["bucket_start_ns"] < at_ns < row["bucket_start_ns"] + row["bucket_ns"]
        and subject.vm_id in (None, row["vm_id"])
        and subject.customer_id in (None, row["customer_id"])
        for row in (*audited["facts"], *audited["corrections"])
    )


def hold(reader: LedgerReader, audited: Audited, subject: Subject, span: Span, now_ns: int) -> Bill:
    """A bill that adds up, to the nanosecond, and says what the auditor's tables say."""
    found = made(reader, subject, span, "vm", now_ns)
    for line in found.lines:
        assert line.vm_id is not None
        assert line.account.measured_ns + line.account.gap_ns == line.account.lifetime_ns
        assert line.account == audited_account(audited, line.vm_id, subject.customer_id, span, now_ns)
        assert (line.account.percent == 100) == (line.account.gap_ns == 0 < line.account.lifetime_ns)
    listed = {line.vm_id for line in found.lines}
    for row in audited["sessions"]:
        if subject.vm_id in (None, row["vm_id"]) and row["vm_id"] not in listed:
            missing = audited_account(audited, row["vm_id"], subject.customer_id, span, now_ns)
            assert missing == Account()
    assert found.total.account == sum((line.account for line in found.lines), Account())
    closed = [gap for gap in found.gaps if gap.line.state == "closed"]
    assert sum(gap.in_period_ns for gap in closed) == found.total.account.gap_ns
    for name in COUNTER_FIELDS:
        parts = sum(getattr(gap.in_period, name) for gap in closed)
        assert parts == getattr(found.total.used.across_gaps, name)
    assert len(found.anomalies) == found.total.account.anomalies
    if subject.vm_id is None and subject.customer_id is not None:
        usage = found.total.used.usage
        assert [getattr(usage, name) for name in COUNTER_FIELDS] == audited_counters(audited, subject.customer_id, span)
    return found


def hold_buckets(reader: LedgerReader, audited: Audited, subject: Subject, span: Span) -> None:
    found = made(reader, subject, span, "bucket", 0)
    assert found.buckets is not None
    by_vm: dict[str, Account] = {}
    for line in found.buckets:
        assert line.account == audited_account(audited, line.vm_id, subject.customer_id, line.span, 0)
        by_vm[line.vm_id] = by_vm.get(line.vm_id, Account()) + line.account
    assert by_vm == {line.vm_id: line.account for line in found.lines if line.account != Account()}


def hold_all(events: list[Event], chance: random.Random) -> None:
    """For every subject: all of time, hours cut anywhere (no bucket is longer), and edges to the nanosecond."""
    events = with_settable_rules(events)
    audited = tables_of(events)
    times = [EPOCH_NS, *(row["last_ns"] for row in audited["sessions"])]
    now_ns = max(times) + chance.choice((0, MINUTE_NANOS, 3 * HOUR_NANOS))
    with generated(events) as reader:
        for subject in subjects_of(audited):
            whole = hold(reader, audited, subject, ALL_TIME, now_ns).total
            hours = sorted({chance.randrange(-30, 60) * HOUR_NANOS + EPOCH_NS for _ in range(3)})
            edges = [ALL_TIME.from_ns, *hours, ALL_TIME.to_ns]
            bills = [hold(reader, audited, subject, Span(*pair), now_ns).total for pair in itertools.pairwise(edges)]
            assert sum((each.account for each in bills), Account()) == whole.account
            for name in COUNTER_FIELDS:
                assert sum(getattr(each.used.usage, name) for each in bills) == getattr(whole.used.usage, name)
            hold_buckets(reader, audited, subject, Span(EPOCH_NS - 2 * HOUR_NANOS, EPOCH_NS + 20 * HOUR_NANOS))
            odd = Span(*sorted((chance.choice(times) - chance.randrange(1, 10**13), chance.choice(times) + 1)))
            if any(is_cut(audited, subject, edge) for edge in odd):
                with pytest.raises(BadSpan, match="--period"):
                    made(reader, subject, odd, "vm", now_ns)
            else:
                hold(reader, audited, subject, odd, now_ns)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(events=journals(events_max=30), seed=st.integers(0, 2**32))
def test_measured_and_gap_are_the_lifetime_and_the_auditor_agrees(events: list[Event], seed: int) -> None:
    if tables_of(with_settable_rules(events))["sessions"]:
        hold_all(events, random.Random(seed))


@pytest.mark.parametrize("seed", range(6))
def test_measured_and_gap_are_the_lifetime_over_long_journals(seed: int) -> None:
    hold_all(seeded_journal(seed, events=150), random.Random(seed))


# --- numbers worked out by hand ---------------------------------------------------


# As the page has it: an hour measured, three silent, and a stop at 14:10.
EXAMPLE = (
    VmStarted("vm", "acme", at("10:00:00")),
    batch("vm", *((at(f"10:{minute:02}:00"), GIB, minute * 60 * NANOS) for minute in range(10, 60, 10))),
    batch("vm", (at("11:00:00"), GIB, 3_600 * NANOS)),
    batch("vm", (at("10:35:00"), GIB, 2_100 * NANOS)),
    PossibleGap("vm", at("11:00:00"), at("13:59:00")),
    batch("vm", (at("14:00:00"), GIB, 14_400 * NANOS)),
    VmStopped("vm", at("14:10:00")),
)


def block_after(heading: str) -> str:
    """The first block of text in a section of the page."""
    return PAGE.read_text().split(f"## {heading}\n")[1].split("```text\n")[1].split("```")[0]


def on_paper(found: Bill) -> str:
    return "\n\n".join(f"{heading}\n{as_columns(sheet)}" for heading, sheet in bill_sheets(found)) + "\n"


def test_the_page_shows_what_is_printed(tmp_path: Path) -> None:
    with ledger_of(tmp_path, *EXAMPLE) as ledger:
        found = made(ledger, VM, period(f"{DAY}T12:00:00Z..{DAY}T15:00:00Z"), "bucket")
    assert on_paper(found) == block_after("The bill of a period")
    # What the page works out: two of the gap's three hours, two thirds of its 10,800 s of CPU.
    assert found.total.account == Account(130 * MINUTE_NANOS, 10 * MINUTE_NANOS, 120 * MINUTE_NANOS, 0, 1, 0)
    assert found.total.account.percent == Decimal("7.692307")
    assert [gap.in_period.cpu_time_ns for gap in found.gaps if gap.in_period is not None] == [7_200 * NANOS]


def test_a_period_before_and_after_make_the_whole(tmp_path: Path) -> None:
    with ledger_of(tmp_path, *EXAMPLE) as ledger:
        whole = made(ledger, VM)
        before = made(ledger, VM, period(f"2026-11-01..{DAY}T12:00:00Z")).total
        after = made(ledger, VM, period(f"{DAY}T12:00:00Z..2026-11-30")).total
    assert before.account + after.account == whole.total.account
    assert whole.total.account == Account(250 * MINUTE_NANOS, 70 * MINUTE_NANOS, 180 * MINUTE_NANOS, 0, 7, 1)
    assert whole.total.used.usage.cpu_time_ns == 14_400 * NANOS
    assert [(each.kind, each.at_ns) for each in whole.anomalies] == [("late", at("10:35:00"))]
    assert [(gap.line.state, gap.line.reasons) for gap in whole.gaps] == [
        ("closed", ("reported",)),
        ("reported", ("reported",)),
    ]


@pytest.mark.parametrize(
    ("measured_ns", "lifetime_ns", "percent"),
    [
        (10**18 - 1, 10**18, "99.999999"),
        (10**18, 10**18, "100.000000"),
        (0, 1, "0.000000"),
        (2, 3, "66.666666"),
        (2**63 - 2, 2**63 - 1, "99.999999"),
        (0, 0, None),
    ],
)
def test_completeness_is_rounded_down(measured_ns: int, lifetime_ns: int, percent: str | None) -> None:
    found = Account(lifetime_ns, measured_ns, lifetime_ns - measured_ns).percent
    assert (None if found is None else f"{found:f}") == percent


def test_a_nanosecond_over_the_threshold_is_a_gap(tmp_path: Path) -> None:
    """19 steps of 15 minutes are measured, the last is longer: not 95 % any more."""
    first = at("10:00:00")
    times = [first + number * 900 * NANOS for number in range(20)]
    records = [
        batch("vm", *((time_ns, GIB, 0) for time_ns in times)),
        batch("vm", (times[-1] + 900 * NANOS + 1, GIB, 0)),
    ]
    with ledger_of(tmp_path, *records) as ledger:
        found = made(ledger, VM)
    assert found.total.account.gap_ns == 900 * NANOS + 1
    assert dict(bill_sheets(found)[0][1].rows)["complete"] == "94.99 %"


def test_pending_is_shown_and_in_no_account(tmp_path: Path) -> None:
    records = (batch("vm", (at("10:00:00"), GIB, 0), (at("10:10:00"), GIB, 5)),)
    with ledger_of(tmp_path, *records) as ledger:
        short = made(ledger, VM, now_ns=at("10:20:00"))
        assert short.total.account == Account(10 * MINUTE_NANOS, 10 * MINUTE_NANOS, 0, 10 * MINUTE_NANOS, 2, 0)
        assert (short.total.account.percent, short.gaps) == (100, [])
        # Silent beyond the threshold: an open gap. Its part in the period ends with that.
        long = made(ledger, VM, period(f"{DAY}..{DAY}T12:00:00Z"), now_ns=at("17:00:00"))
        assert long.total.account.pending_ns == 110 * MINUTE_NANOS
        assert [(gap.line.state, gap.in_period_ns) for gap in long.gaps] == [("pending", 110 * MINUTE_NANOS)]
        # In a period without samples, too, and none before the newest sample.
        later = made(ledger, VM, period("2026-11-11"), now_ns=at("01:00:00", "2026-11-11"))
        assert later.total.account == Account(pending_ns=HOUR_NANOS)
        assert later.total.account.percent is None
        assert made(ledger, VM, period("2026-11-09")).total.account == Account()


def test_a_bill_of_the_past_does_not_change_with_the_clock(tmp_path: Path) -> None:
    records = (*EXAMPLE, batch("other", (at("10:00:00"), GIB, 0)))
    with ledger_of(tmp_path, *records) as ledger:
        bills = [made(ledger, ACME, by="bucket", now_ns=NOVEMBER.to_ns + late) for late in (0, NANOS, 300 * DAY_NANOS)]
        assert len({bill_json(each) for each in bills}) == len({bill_csv(each) for each in bills}) == 1
        assert len({on_paper(each) for each in bills}) == 1


def test_sessions_of_two_customers_are_billed_apart(tmp_path: Path) -> None:
    records = (
        *EXAMPLE,
        VmStarted("vm", "bravo", at("15:00:00")),
        batch("vm", *((at(f"15:{minute}:00"), GIB, 15_000 * NANOS) for minute in (10, 20, 30)), customer="bravo"),
        # Late, once in each life.
        batch("vm", (at("15:15:00"), GIB, 1), customer="bravo"),
    )
    with ledger_of(tmp_path, *records) as ledger:
        acme, bravo = made(ledger, ACME), made(ledger, Subject(customer_id="bravo"))
        both = made(ledger, VM)
        assert made(ledger, Subject("vm", "bravo")).total == bravo.total
        with pytest.raises(NotInLedger, match="knows no VM vm of customer nobody"):
            made(ledger, Subject("vm", "nobody"))
    assert acme.total.account + bravo.total.account == both.total.account
    assert both.total.customer_ids == ("acme", "bravo")
    assert [each.customer_id for each in both.anomalies] == ["acme", "bravo"]
    assert [len(each.anomalies) for each in (acme, bravo)] == [1, 1]


def test_a_stop_that_nobody_knew_is_on_the_first_customers_bill(tmp_path: Path) -> None:
    records = (VmStopped("vm", at("09:00:00")), *EXAMPLE)
    with ledger_of(tmp_path, *records) as ledger:
        found = made(ledger, ACME)
        assert [(each.kind, each.ordinal, each.customer_id) for each in found.anomalies] == [
            ("unknown_stop", 0, "acme"),
            ("late", 1, "acme"),
        ]
        assert made(ledger, ACME, period("2026-11-09")).lines == []


def test_a_damaged_ledger_makes_no_bill(tmp_path: Path) -> None:
    data_dir(tmp_path, *EXAMPLE)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database, database:
        database.execute("UPDATE facts SET measured_ns = measured_ns - 1 WHERE bucket_start_ns = ?", (at("10:00:00"),))
    with reading(tmp_path / "ledger.db") as ledger:
        with pytest.raises(ProofFailed, match="does not add up for VM vm from 2026-11-01T00:00:00Z to"):
            made(ledger, VM)
        # Elsewhere it does.
        assert made(ledger, VM, period(f"{DAY}T12:00:00Z..{DAY}T15:00:00Z")).total.account.measured_ns > 0


def test_buckets_are_bounded(tmp_path: Path) -> None:
    """A gap of twelve years, by the hour."""
    records = (batch("vm", (at("10:00:00", "2014-01-01"), GIB, 0)), batch("vm", (at("10:00:00"), GIB, 7)))
    with ledger_of(tmp_path, *records) as ledger:
        with pytest.raises(BadSpan, match="more than 100,000 lines of 1h") as refused:
            made(ledger, VM, period("2014-01..2026-11"), "bucket")
        fits = str(refused.value).split("as --period ")[1].split(", or")[0]
        buckets = made(ledger, VM, period(fits), "bucket").buckets
    assert buckets is not None and len(buckets) == 100_000


# --- periods, and the command as it is typed --------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2026-11", "2026-11-01", "2026-12-01"),
        ("2026-12", "2026-12-01", "2027-01-01"),
        ("2024-02", "2024-02-01", "2024-03-01"),
        ("2026-11-15", "2026-11-15", "2026-11-16"),
        ("2026-11-01..2026-11-15", "2026-11-01", "2026-11-16"),
        ("2026-10..2026-11", "2026-10-01", "2026-12-01"),
        ("2026-11..2026-11-30T06:00:00Z", "2026-11-01", "2026-11-30T06:00:00Z"),
        ("2026-11-01T00:00:00+01:00..2026-11-02", "2026-10-31T23:00:00Z", "2026-11-03"),
    ],
)
def test_periods(text: str, start: str, end: str) -> None:
    assert period(text) == Span(parse_instant(start), parse_instant(end))


@pytest.mark.parametrize(
    "text",
    [
        *("", "..", "2026", "2026-13", "2026-00", "2026-11-31", "november", "2026-11..", "..2026-11", "9999-12"),
        *("2026-11-01T00:00:00Z", "2026-11..2026-10", "2026-11-01..2026-11-02..2026-11-03", "0001-01", "2262-05"),
        *("0000-01", "２０２６-11"),
    ],
)
def test_what_is_no_period(text: str) -> None:
    with pytest.raises(BadSpan, match="--period"):
        period(text)


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, and what stderr or the error says."""
    result = CliRunner().invoke(billaged, [str(argument) for argument in ("bill", *arguments)])
    if isinstance(result.exception, BillagedError):
        return exit_code(result.exception), result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_every_format_says_the_same(tmp_path: Path) -> None:
    data_dir(tmp_path, *EXAMPLE)
    command = ("--customer", "acme", "--period", "2026-11", "--by", "bucket", "--data-dir", tmp_path, "--format")
    code, text, err = run(*command, "json")
    assert (code, err) == (0, "")
    found = json.loads(text)
    assert list(found)[:5] == ["customer_id", "from", "to", "from_ns", "to_ns"]
    assert found["ledger"]["sequence"] == len(EXAMPLE)
    (vm,), total = found["vms"], found["total"]
    assert (vm["lifetime_ns"], vm["measured_ns"] + vm["gap_ns"]) == (250 * MINUTE_NANOS,) * 2
    assert (vm["completeness_percent"], vm["lifetime_seconds"], vm["gap_seconds"]) == ("28.000000", "15000", "10800")
    assert {**vm, "vm_id": None} == {**total, "vm_id": None}
    assert sum(bucket["measured_ns"] for bucket in found["buckets"]) == vm["measured_ns"]
    assert found["anomalies"][0]["detail"] == {"values": [GIB, 2_100 * NANOS, 0, 0, 0, 0]}
    records = list(csv.DictReader(io.StringIO(run(*command, "csv")[1])))
    kinds = [record["record"] for record in records]
    assert kinds == ["vm", *["bucket"] * len(found["buckets"]), "total", "gap", "gap", "anomaly"]
    for name, value in vm.items():
        assert records[0][name] == (" ".join(value) if name == "customer_ids" else str(value))
    (closed,) = [record for record in records if record["state"] == "closed"]
    assert closed["in_period_cpu_time_ns"] == str(found["gaps"][0]["in_period_cpu_time_ns"]) == str(10_800 * NANOS)
    table = run(*command, "table")[1]
    assert "Buckets\n" in table and "Gaps\n" in table and "Anomalies\n" in table and "28.00 %" in table


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["--period", "2026-11"], 2, "Give --vm or --customer"),
        (["--vm", "vm"], 2, "Missing option '--period'"),
        (["--vm", "vm", "--period", "soon"], 2, "--period: 'soon' is no month, day or time."),
        (["--vm", "vm", "--period", f"2026-11-01..{DAY}T10:15:00Z"], 2, f"Let it end at {DAY}T10:00:00Z or"),
        (["--vm", "vm", "--period", f"{DAY}T10:15:00Z..2026-11"], 2, f"Let it begin at {DAY}T10:00:00Z or"),
        (["--vm", "nobody", "--period", "2026-11"], 1, "the ledger knows no VM nobody."),
        (["--vm", "\udcff", "--period", "2026-11"], 1, "the ledger knows no VM"),
        (["--customer", "nobody", "--period", "2026-11"], 1, "the ledger knows no customer nobody."),
        (["--vm", "vm", "--period", "2026-11", "--by", "hour"], 2, "'hour' is not one of"),
    ],
)
def test_what_is_refused(tmp_path: Path, arguments: list[str], code: int, problem: str) -> None:
    data_dir(tmp_path, *EXAMPLE)
    got, out, err = run(*arguments, "--data-dir", tmp_path)
    assert (got, out) == (code, "")
    assert problem in " ".join(err.split())


@pytest.mark.parametrize(
    ("detail", "text"),
    [
        ({"values": [GIB, 2_100 * NANOS, 0, 0, 5, 0]}, "memory 1.00 GiB, cpu 2,100.00 s, received 5 B"),
        ({"values": [0] * 6}, "memory 0 B"),
        ({"counters": {"cpu_time_ns": [NANOS, 0], "disk_write_bytes": [GIB, 7]}},
         "cpu 1.00 s to 0.00 s, written 1.00 GiB to 7 B"),
        ({"amounts": [10**15, 0, 0, 0, 0], "step_ns": MINUTE_NANOS}, "cpu 1,000,000.00 s, within 1m"),
        ({"end_ns": at("10:10:00")}, "end at 2026-11-10 10:10:00"),
        ({"sample_ns": at("10:10:00")}, "sample at 2026-11-10 10:10:00"),
        ({"customer_id": "eve"}, "customer eve"),
        ({}, ""),
        # A ledger that was changed.
        ({"values": [1]}, '{"values": [1]}'),
        ({"what": 1}, '{"what": 1}'),
        ({"customer_id": "\x1b[2J"}, '{"customer_id": "\\u001b[2J"}'),
        ([1], "[1]"),
    ],
    ids=str,
)  # fmt: skip
def test_an_anomalys_values_have_names_and_units(detail: object, text: str) -> None:
    assert detail_text(json.dumps(detail)) == text


def test_a_detail_that_is_no_json_is_damage(tmp_path: Path) -> None:
    data_dir(tmp_path, *EXAMPLE)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database, database:
        database.execute("UPDATE anomalies SET detail = '{'")
    code, out, err = run("--vm", "vm", "--period", "2026-11", "--format", "json", "--data-dir", tmp_path)
    assert (code, out) == (1, "")
    assert "anomalies row (sequence 4, item 0, kind 'late') is damaged" in err
