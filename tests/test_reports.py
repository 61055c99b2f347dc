"""Reports against numbers worked out by hand: what is in a span, to the nanosecond and the byte."""

from __future__ import annotations

import itertools
import random
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
from report_fixtures import DAY, GIB, MIB, DataDir, at, batch, data_dir, ledger_of
from sqlalchemy import event

from billaged.ledger.database import open_for_reading
from billaged.ledger.reader import LedgerReader, reading
from billaged.ledger.views import Gap, Span, Subject
from billaged.model.errors import StorageError
from billaged.model.quantity import ScoreWeights, Usage
from billaged.model.records import COUNTER_FIELDS, FoldRules, PossibleGap, Record, Tick, VmStarted, VmStopped
from billaged.model.time import DAY_NANOS, HOUR_NANOS, MINUTE_NANOS, NANOS, exact_seconds, parse_instant
from billaged.reports.errors import BadSpan, NotInLedger
from billaged.reports.gaps import gap_lines
from billaged.reports.span import ALL_TIME, bounded, month_so_far
from billaged.reports.units import gib_hours, human_bytes, human_duration, human_seconds
from billaged.reports.usage import By, UsageReport, gap_part, memory_peak_bytes, usage_report
from billaged.reports.vms import newest_sessions, pending_ns, vm_record

VM = Subject(vm_id="vm")
ACME = Subject(customer_id="acme")


def report(ledger: LedgerReader, subject: Subject, start: str, end: str, by: By = "total") -> UsageReport:
    return usage_report(ledger, subject, Span(at(start), at(end)), by, ScoreWeights())


def test_a_vms_usage_is_its_facts(tmp_path: Path) -> None:
    records = (
        batch("vm", (at("10:00:00"), 1 * GIB, 0)),
        batch("vm", (at("10:10:00"), 2 * GIB, 60 * NANOS, 10 * MIB, 20 * MIB, 3, 4)),
        batch("vm", (at("10:20:00"), 1 * GIB, 90 * NANOS, 20 * MIB, 40 * MIB, 5, 7)),
    )
    with ledger_of(tmp_path, *records) as ledger:
        total = report(ledger, VM, "10:00:00", "11:00:00").total
    memory = 600 * NANOS * GIB + 600 * NANOS * 2 * GIB
    assert total.usage == Usage(
        90 * NANOS, 20 * MIB, 40 * MIB, 5, 7, memory, 2 * GIB, measured_ns=20 * MINUTE_NANOS, samples=3
    )
    assert total.usage.memory_mean_bytes == 3 * GIB // 2
    assert gib_hours(memory) == Decimal("0.5")
    # 90 s of CPU, 0.5 for each of 1.5 GB, 0.3 for each of 60 MB.
    assert total.score == Decimal("108.75")
    assert total.across_gaps == Usage()


def test_the_span_is_half_open_and_a_step_across_an_edge_is_split(tmp_path: Path) -> None:
    records = (batch("vm", (at("10:55:00"), GIB, 0)), batch("vm", (at("11:05:00"), GIB, 101)))
    with ledger_of(tmp_path, *records) as ledger:
        before = report(ledger, VM, "10:00:00", "11:00:00").total.usage
        after = report(ledger, VM, "11:00:00", "12:00:00").total.usage
        assert (before.cpu_time_ns, before.measured_ns, before.samples) == (50, 5 * MINUTE_NANOS, 1)
        assert (after.cpu_time_ns, after.measured_ns, after.samples) == (51, 5 * MINUTE_NANOS, 1)
        assert report(ledger, VM, "09:00:00", "10:00:00").total.usage == Usage()
        assert report(ledger, VM, "12:00:00", "13:00:00").total.usage == Usage()


@pytest.mark.parametrize(
    ("start", "end", "problem"),
    [
        ("10:30:00", "12:00:00", f"--from {DAY}T10:30:00Z cuts through the bucket from {DAY}T10:00:00Z"),
        ("09:00:00", "10:59:59.999999999", f"Take --to {DAY}T10:00:00Z or --to {DAY}T11:00:00Z"),
        ("09:00:00", "10:00:00.000000001", "--to"),
    ],
)
def test_a_span_that_cuts_a_bucket_with_usage_is_refused(tmp_path: Path, start: str, end: str, problem: str) -> None:
    with ledger_of(tmp_path, batch("vm", (at("10:10:00"), GIB))) as ledger, pytest.raises(BadSpan, match=problem):
        report(ledger, VM, start, end)


def test_a_span_may_end_inside_a_bucket_without_usage_of_the_subject(tmp_path: Path) -> None:
    records = (batch("vm", (at("10:10:00"), GIB)), batch("other", (at("12:10:00"), GIB)))
    with ledger_of(tmp_path, *records) as ledger:
        assert report(ledger, VM, "09:30:00", "12:15:00").total.usage.samples == 1
        with pytest.raises(BadSpan):
            report(ledger, ACME, "09:30:00", "12:15:00")


def test_a_gap_counts_in_proportion_to_its_time_in_the_span(tmp_path: Path) -> None:
    """1001 ns over four hours: 250, 250, 250 and 251, as cum(e) = floor(1001 * (e - a) / 4h) has it."""
    records = (batch("vm", (at("10:00:00"), GIB, 0, 0)), batch("vm", (at("14:00:00"), GIB, 1001, 8)))
    with ledger_of(tmp_path, *records) as ledger:
        hours = [
            report(ledger, VM, f"{hour:02}:00:00", f"{hour + 1}:00:00").total.usage.cpu_time_ns for hour in range(9, 15)
        ]
        assert hours == [0, 250, 250, 250, 251, 0]
        # Where there is no fact to be cut, a span may begin and end anywhere: 1.5 h of 4 h from 1.25 h on.
        total = report(ledger, VM, "11:15:00", "12:45:00").total
        assert total.usage.cpu_time_ns == 1001 * 165 // 240 - 1001 * 75 // 240
        assert total.usage.disk_read_bytes == 8 * 165 // 240 - 8 * 75 // 240
        assert (total.usage.gap_ns, total.usage.measured_ns) == (90 * MINUTE_NANOS, 0)
        assert total.across_gaps == total.usage
        assert total.usage.memory_byte_nanos == 0
        whole = report(ledger, VM, "00:00:00", "23:00:00").total
        assert (whole.usage.cpu_time_ns, whole.usage.gap_ns) == (1001, 4 * HOUR_NANOS)


def test_parts_of_a_gap_add_up_to_it_wherever_it_is_cut() -> None:
    chance = random.Random(5)
    for _ in range(200):
        start, length, amount = chance.randrange(10**18), chance.randrange(1, 10**16), chance.randrange(2**63)
        gap = Gap("vm", 1, start, start + length, "step", "acme", Usage(cpu_time_ns=amount), 1)
        edges = sorted({start, start + length, *(start + chance.randrange(length) for _ in range(5))})
        parts = [gap_part(gap, Span(*pair)) for pair in itertools.pairwise(edges)]
        assert sum(part.cpu_time_ns for part in parts) == amount
        assert sum(part.gap_ns for part in parts) == length
        assert all(part.cpu_time_ns >= 0 for part in parts)


def closing_ticks(clock: str) -> list[Record]:
    """Enough ticks after a full hour that the buckets before it close."""
    return [Tick(at(clock) + minute * MINUTE_NANOS, MINUTE_NANOS, False) for minute in range(11)]


def test_corrections_count_in_the_bucket_they_correct(tmp_path: Path) -> None:
    records = (
        FoldRules(gap_threshold_ns=2 * HOUR_NANOS),
        batch("vm", (at("10:00:00"), GIB, 0)),
        *closing_ticks("11:00:00"),
        batch("vm", (at("11:01:00"), GIB, 61)),
    )
    with ledger_of(tmp_path, *records) as ledger:
        assert [part.usage.cpu_time_ns for parts in ledger.usage_parts(VM, ALL_TIME, "vm") for part in parts] == [1, 60]
        usage = report(ledger, VM, "10:00:00", "11:00:00").total.usage
        assert (usage.cpu_time_ns, usage.measured_ns) == (60, HOUR_NANOS)
        assert report(ledger, VM, "11:00:00", "12:00:00").total.usage.cpu_time_ns == 1


def test_a_correction_may_take_back(tmp_path: Path) -> None:
    """The stop at 10:30 is contradicted after its bucket closed: what its tail billed goes, the step replaces it."""
    records = (
        FoldRules(gap_threshold_ns=2 * HOUR_NANOS),
        batch("vm", (at("10:00:00"), 3 * GIB + 1, 0)),
        VmStopped("vm", at("10:30:00")),
        *closing_ticks("11:00:00"),
        batch("vm", (at("10:45:00"), GIB, 9)),
    )
    with ledger_of(tmp_path, *records) as ledger:
        usage = report(ledger, VM, "10:00:00", "11:00:00").total.usage
    assert usage.measured_ns == 45 * MINUTE_NANOS
    assert usage.memory_byte_nanos == (3 * GIB + 1) * 45 * MINUTE_NANOS


def test_two_sessions_and_two_customers(tmp_path: Path) -> None:
    records = (
        VmStarted("vm", "acme", at("10:00:00")),
        batch("vm", (at("10:10:00"), GIB, 5 * NANOS)),
        VmStopped("vm", at("10:15:00")),
        VmStarted("vm", "acme", at("10:20:00")),
        batch("vm", (at("10:30:00"), 4 * GIB, 2 * NANOS)),
        VmStopped("vm", at("10:30:00")),
        batch("vm", (at("10:40:00"), GIB, 3 * NANOS), (at("10:50:00"), GIB, 7 * NANOS), customer="bravo"),
    )
    with ledger_of(tmp_path, *records) as ledger:
        of_vm = report(ledger, VM, "10:00:00", "11:00:00", "session")
        lines = [(line.session.ordinal, line.session.customer_id, line.usage.cpu_time_ns) for line in of_vm.lines]  # type: ignore[union-attr]
        assert lines == [(1, "acme", 5 * NANOS), (2, "acme", 2 * NANOS), (3, "bravo", 4 * NANOS)]
        assert [line.usage.memory_peak_bytes for line in of_vm.lines] == [GIB, 4 * GIB, GIB]
        assert of_vm.total.usage.cpu_time_ns == 11 * NANOS
        assert report(ledger, ACME, "10:00:00", "11:00:00").total.usage.cpu_time_ns == 7 * NANOS
        bravo = report(ledger, Subject(customer_id="bravo"), "10:00:00", "11:00:00", "vm")
        assert [(line.vm_id, line.usage.cpu_time_ns) for line in bravo.lines] == [("vm", 4 * NANOS)]


def test_a_customers_score_is_the_sum_of_its_vms(tmp_path: Path) -> None:
    """Two VMs of 1 and 3 GiB, one an hour, one half an hour: each one's mean is over its own time."""
    records = (
        FoldRules(gap_threshold_ns=2 * HOUR_NANOS),
        batch("a", (at("10:00:00"), GIB, 0), (at("11:00:00"), GIB, 7 * NANOS)),
        batch("b", (at("10:00:00"), 3 * GIB, 0), (at("10:30:00"), GIB, NANOS)),
    )
    with ledger_of(tmp_path, *records) as ledger:
        by_vm = report(ledger, ACME, "10:00:00", "12:00:00", "vm")
        assert [(line.vm_id, line.score) for line in by_vm.lines] == [("a", Decimal("7.5")), ("b", Decimal("2.5"))]
        assert by_vm.total.score == Decimal(10)
        by_bucket = report(ledger, ACME, "10:00:00", "12:00:00", "bucket")
    # The sample at 11:00 is all there is in the second bucket.
    assert [(line.span.from_ns, line.score) for line in by_bucket.lines] == [
        (at("10:00:00"), Decimal(10)),
        (at("11:00:00"), Decimal(0)),
    ]


def test_sums_beyond_64_bits_are_exact(tmp_path: Path) -> None:
    step_ns, step_bytes, steps = 8 * HOUR_NANOS, 28 * 10**16, 32
    rules = FoldRules(gap_threshold_ns=step_ns, max_gigabytes_per_second=10_000)
    start = at("00:00:00", "2026-09-01")
    samples = [(start + n * step_ns, 2**48, n, n * step_bytes, 1) for n in range(steps + 1)]
    records = [batch(f"vm-{n}", *samples) for n in range(3)]
    with ledger_of(tmp_path, rules, *records) as ledger:
        total = usage_report(ledger, ACME, ALL_TIME, "total", ScoreWeights()).total.usage
        by_bucket = usage_report(ledger, ACME, ALL_TIME, "bucket", ScoreWeights()).lines
    assert total.disk_read_bytes == 3 * steps * step_bytes > 2**64
    assert total.memory_byte_nanos == 3 * steps * step_ns * 2**48
    assert total.measured_ns == 3 * steps * step_ns
    assert sum(line.usage.disk_read_bytes for line in by_bucket) == total.disk_read_bytes


def test_the_peak_is_at_least_the_mean(tmp_path: Path) -> None:
    """From 11:00 to 11:05 the VM still held what it had at 10:55, though only less was sampled since."""
    records = (batch("vm", (at("10:55:00"), 8 * GIB)), batch("vm", (at("11:05:00"), GIB)))
    with ledger_of(tmp_path, *records) as ledger:
        usage = report(ledger, VM, "11:00:00", "12:00:00").total.usage
    assert (usage.memory_peak_bytes, usage.memory_mean_bytes) == (GIB, 8 * GIB)
    assert memory_peak_bytes(usage) == 8 * GIB


def test_by_bucket_lines_are_hours_with_usage_and_gaps_are_spread(tmp_path: Path) -> None:
    records = (
        batch("vm", (at("10:30:00"), GIB, 0), (at("10:40:00"), GIB, 7)),
        batch("vm", (at("13:10:00"), GIB, 107)),
    )
    with ledger_of(tmp_path, *records) as ledger:
        with pytest.raises(BadSpan):
            report(ledger, VM, "10:00:00", "13:05:00", "bucket")
        lines = report(ledger, VM, "10:00:00", "14:00:00", "bucket").lines
    # The gap of 150 minutes has 20, 60, 60 and 10 of them in each hour.
    edges = [100 * minutes // 150 for minutes in (0, 20, 80, 140, 150)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(edges)]
    assert [line.across_gaps.cpu_time_ns for line in lines] == gaps
    assert [line.usage.cpu_time_ns for line in lines] == [gaps[0] + 7, *gaps[1:]]
    assert [line.usage.gap_ns // MINUTE_NANOS for line in lines] == [20, 60, 60, 10]
    assert [line.span.from_ns for line in lines] == [at(f"{hour}:00:00") for hour in range(10, 14)]


def test_by_bucket_holds_buckets_of_every_length_whole(tmp_path: Path) -> None:
    """Twenty minutes, then half an hour: the lines are an hour long, and nothing counts twice."""
    records = (
        FoldRules(bucket_ns=20 * MINUTE_NANOS),
        batch("vm", (at("10:05:00"), GIB, 0), (at("10:15:00"), GIB, 10), (at("10:25:00"), GIB, 20)),
        FoldRules(bucket_ns=30 * MINUTE_NANOS),
        batch("vm", (at("10:35:00"), GIB, 30), (at("11:05:00"), GIB, 40)),
    )
    with ledger_of(tmp_path, *records) as ledger:
        found = report(ledger, VM, "10:00:00", "12:00:00", "bucket")
    assert [line.span.from_ns for line in found.lines] == [at("10:00:00"), at("11:00:00")]
    assert sum(line.usage.cpu_time_ns for line in found.lines) == found.total.usage.cpu_time_ns == 40


def test_more_lines_than_a_report_holds_are_refused_with_a_span_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM silent for fifty years, in buckets of a minute: 26 million lines."""
    monkeypatch.setattr("billaged.reports.usage._LINES_MAX", 100)
    start, end = at("00:00:00", "1976-01-01"), at("12:00:00")
    records = (FoldRules(bucket_ns=MINUTE_NANOS), VmStarted("vm", "acme", start), batch("vm", (end, GIB, 7)))
    with ledger_of(tmp_path, *records) as ledger:
        span = Span(start, at("12:01:00"))
        with pytest.raises(BadSpan) as refused:
            usage_report(ledger, VM, span, "bucket", ScoreWeights())
        assert str(refused.value) == (
            "--by bucket makes more than 100 lines of 1m each from 1976-01-01T00:00:00Z to 2026-11-10T12:01:00Z."
            " Take a shorter span, as --from 1976-01-01T00:00:00Z --to 1976-01-01T01:40:00Z, or --by session."
        )
        fits = Span(start, at("01:40:00", "1976-01-01"))
        assert len(usage_report(ledger, VM, fits, "bucket", ScoreWeights()).lines) == 100
        assert len(usage_report(ledger, VM, span, "session", ScoreWeights()).lines) == 1


def test_by_bucket_the_gaps_of_many_vms_lie_beside_each_other(tmp_path: Path) -> None:
    """Gaps that begin and end anywhere, also before the span and after it."""
    chance = random.Random(5)
    records: list[Record] = [FoldRules(bucket_ns=10 * MINUTE_NANOS)]
    for number in range(30):
        times = sorted(at("08:00:00") + chance.randrange(6 * 3_600) * NANOS for _ in range(4))
        records.append(batch(f"vm-{number}", *((time_ns, GIB, n * 10**6) for n, time_ns in enumerate(times))))
    with ledger_of(tmp_path, *records) as ledger:
        found = report(ledger, ACME, "09:00:00", "13:00:00", "bucket")
    starts = [line.span.from_ns for line in found.lines]
    assert starts == sorted(set(starts))
    assert sum(line.usage.gap_ns for line in found.lines) == found.total.usage.gap_ns > 0
    assert sum(line.across_gaps.cpu_time_ns for line in found.lines) == found.total.across_gaps.cpu_time_ns


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        (
            "UPDATE sessions SET start_ns = 'abc'",
            r"sessions row \(vm_id 'vm', ordinal 1\) is damaged: start_ns is 'abc'",
        ),
        ("UPDATE sessions SET customer_id = x'ff'", r"customer_id is b'\\xff'"),
        ("UPDATE sessions SET customer_id = CAST(x'ff' AS TEXT)", "cannot be read: Could not decode to UTF-8"),
        ("UPDATE gaps SET end_ns = 1e300", r"gaps row \(vm_id 'vm', ordinal 1, start_ns \d+\) is damaged"),
        ("UPDATE facts SET memory_peak_bytes = 'abc'", "facts of .*'vm'.* are damaged"),
        ("UPDATE reported_gaps SET resume_ns = 1e300", r"reported_gaps row .* is damaged: resume_ns is 1e\+300"),
        ("UPDATE checkpoint SET rules = '{}x'", "checkpoint is damaged: its rules is '{}x'"),
        ("UPDATE checkpoint SET rules = '{\"zap\":1}'", "checkpoint is damaged: its rules"),
        ("UPDATE checkpoint SET rules = '{\"bucket_ns\":0}'", "checkpoint is damaged: its rules"),
    ],
)
def test_what_was_changed_by_hand_is_named(tmp_path: Path, statement: str, named: str) -> None:
    records = (
        FoldRules(),
        batch("vm", (at("10:30:00"), GIB, 0), (at("10:40:00"), GIB, 7), (at("13:10:00"), GIB, 107)),
        PossibleGap("vm", at("10:40:00"), at("13:10:00")),
    )
    path = data_dir(tmp_path, *records) / "ledger.db"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(statement).rowcount
        connection.commit()
    with pytest.raises(StorageError, match=named), reading(path) as ledger:
        report(ledger, VM, "10:00:00", "14:00:00", "session")
        gap_lines(ledger, VM, ALL_TIME, at("14:00:00"))


@pytest.mark.parametrize("seed", range(8))
def test_all_time_is_what_the_sessions_say_however_it_is_divided(tmp_path: Path, seed: int) -> None:
    """The ledger keeps a session's totals beside its facts, corrections and gaps: both must tell the same."""
    chance = random.Random(seed)
    clock = dict.fromkeys(("a", "b", "c"), at("08:00:00"))
    counters = {vm: [0] * 5 for vm in clock}
    made = DataDir(tmp_path)
    made.put(FoldRules(bucket_ns=chance.choice([MINUTE_NANOS, 10 * MINUTE_NANOS, HOUR_NANOS])))
    for _ in range(80):
        vm = chance.choice(list(clock))
        clock[vm] += chance.choice([1, 60, 300, 600, 3_000]) * NANOS
        kind = chance.random()
        if kind < 0.08:
            made.put(VmStarted(vm, "acme", clock[vm]))
        elif kind < 0.16:
            made.put(VmStopped(vm, clock[vm]))
        elif kind < 0.3:
            made.put(*(Tick(max(clock.values()), 10 * MINUTE_NANOS, False) for _ in range(2)))
        else:
            counters[vm] = [value + chance.randrange(10**9) for value in counters[vm]]
            made.put(batch(vm, (clock[vm], chance.randrange(2**40), *counters[vm])))
    made.close()
    with reading(tmp_path / "ledger.db") as ledger:
        whole = usage_report(ledger, ACME, ALL_TIME, "vm", ScoreWeights())
        by_bucket = usage_report(ledger, ACME, ALL_TIME, "bucket", ScoreWeights()).lines
        sessions = list(ledger.dump_rows("sessions"))
        cut = at("10:00:00")
        before = usage_report(ledger, ACME, Span(0, cut), "total", ScoreWeights()).total.usage
        after = usage_report(ledger, ACME, Span(cut, ALL_TIME.to_ns), "total", ScoreWeights()).total.usage
    total = whole.total.usage
    for index, name in enumerate(COUNTER_FIELDS):
        assert getattr(total, name) == sum(row[8 + index] for row in sessions)
    assert total.measured_ns == sum(row[15] for row in sessions)
    assert total.gap_ns == sum(row[16] for row in sessions) > 0
    assert total.samples == sum(row[17] for row in sessions) > 0
    assert sum((line.usage for line in whole.lines), Usage()) == total
    assert sum((line.usage for line in by_bucket), Usage()) == total
    assert before + after == total


def test_who_is_not_in_the_ledger_is_said(tmp_path: Path) -> None:
    with ledger_of(tmp_path, batch("vm", (at("10:00:00"), GIB))) as ledger:
        for no_text in (Subject(vm_id="\udcff"), Subject(customer_id="\udcff")):
            with pytest.raises(NotInLedger):
                usage_report(ledger, no_text, ALL_TIME, "total", ScoreWeights())
            with pytest.raises(NotInLedger):
                gap_lines(ledger, no_text, ALL_TIME, at("12:00:00"))
        with pytest.raises(NotInLedger, match="the ledger knows no VM nobody"):
            report(ledger, Subject(vm_id="nobody"), "10:00:00", "11:00:00")
        with pytest.raises(NotInLedger, match="the ledger knows no customer nobody"):
            report(ledger, Subject(customer_id="nobody"), "10:00:00", "11:00:00")
        with pytest.raises(NotInLedger):
            newest_sessions(ledger, Subject(customer_id="nobody"), running=True)
        with pytest.raises(NotInLedger, match="no VM vm of customer bravo"):
            gap_lines(ledger, Subject("vm", "bravo"), ALL_TIME, at("10:00:00"))


def test_a_reader_sees_one_moment(tmp_path: Path) -> None:
    made = DataDir(tmp_path)
    made.put(batch("vm", (at("10:00:00"), GIB)))
    with reading(tmp_path / "ledger.db") as ledger:
        made.put(batch("vm", (at("10:10:00"), GIB)), batch("later", (at("10:10:00"), GIB)))
        assert report(ledger, VM, "10:00:00", "11:00:00").total.usage.samples == 1
        assert not ledger.knows(Subject(vm_id="later"))
        assert ledger.position.sequence == 1
    with reading(tmp_path / "ledger.db") as ledger:
        assert report(ledger, VM, "10:00:00", "11:00:00").total.usage.samples == 2
    made.close()


def test_the_newest_session_of_each_vm(tmp_path: Path) -> None:
    records = (
        VmStarted("started", "acme", at("10:00:00")),
        batch("ended", (at("10:00:00"), GIB), (at("10:05:00"), GIB), customer="bravo"),
        VmStopped("ended", at("10:06:00")),
        VmStarted("vm", "acme", at("10:00:00")),
        VmStopped("vm", at("10:01:00")),
        VmStarted("vm", "acme", at("10:10:00")),
        batch("vm", (at("10:10:00"), GIB), (at("10:40:00"), GIB)),
    )
    now = at("10:50:00")
    with ledger_of(tmp_path, *records) as ledger:
        every = newest_sessions(ledger, Subject(), running=False)
        assert [session.vm_id for session in every] == ["ended", "started", "vm"]
        assert [session.vm_id for session in newest_sessions(ledger, Subject(), running=True)] == ["started", "vm"]
        assert [s.vm_id for s in newest_sessions(ledger, Subject(customer_id="bravo"), running=False)] == ["ended"]
        assert newest_sessions(ledger, Subject(customer_id="bravo"), running=True) == []
    ended, started, vm = (vm_record(session, now) for session in every)
    assert ended == {
        "vm_id": "ended",
        "customer_id": "bravo",
        "state": "ended",
        "session": 1,
        "start": f"{DAY}T10:00:00Z",
        "explicit_start": False,
        "end": f"{DAY}T10:06:00Z",
        "end_kind": "stop",
        "newest_sample": f"{DAY}T10:05:00Z",
        "age_ns": 45 * MINUTE_NANOS,
        "samples": 2,
        "measured_ns": 6 * MINUTE_NANOS,
        "gap_ns": 0,
        "pending_ns": 0,
    }
    assert (started["newest_sample"], started["age_ns"]) == (None, None)
    assert (started["explicit_start"], started["pending_ns"]) == (True, 50 * MINUTE_NANOS)
    assert (vm["session"], vm["gap_ns"], vm["pending_ns"]) == (2, 30 * MINUTE_NANOS, 10 * MINUTE_NANOS)
    # A sample may be ahead of this machine's clock.
    assert pending_ns(every[2], at("10:30:00")) == 0


def test_gaps_closed_reported_and_pending(tmp_path: Path) -> None:
    records = (
        FoldRules(gap_threshold_ns=20 * MINUTE_NANOS),
        batch("vm", (at("10:00:00"), GIB, 0), (at("10:30:00"), GIB, 77)),
        PossibleGap("vm", at("10:00:00"), at("10:29:00")),
        PossibleGap("stranger", at("10:00:00"), at("10:01:00")),
        batch("quick", (at("10:45:00"), GIB), customer="bravo"),
    )
    with ledger_of(tmp_path, *records) as ledger:
        now = at("11:00:00")
        lines = gap_lines(ledger, Subject(), ALL_TIME, now)
        told = [(line.state, line.vm_id, line.customer_id, line.duration_ns // MINUTE_NANOS) for line in lines]
        assert told == [
            ("reported", "stranger", None, 1),
            ("closed", "vm", "acme", 30),
            ("reported", "vm", "acme", 29),
            # 30 minutes are more than the threshold in force; the 15 of the other VM are not.
            ("pending", "vm", "acme", 30),
        ]
        closed = lines[1]
        assert (closed.kind, closed.usage) == ("step", Usage(cpu_time_ns=77, gap_ns=30 * MINUTE_NANOS))
        assert lines[3].end_ns is None
        assert gap_lines(ledger, Subject(customer_id="bravo"), ALL_TIME, now) == []
        assert [line.state for line in gap_lines(ledger, Subject(customer_id="bravo"), ALL_TIME, now + HOUR_NANOS)] == [
            "pending"
        ]
        assert [line.state for line in gap_lines(ledger, Subject(vm_id="stranger"), ALL_TIME, now)] == ["reported"]
        # Half-open on both sides: a gap that ends where the span begins is not in it.
        assert [line.state for line in gap_lines(ledger, VM, Span(at("10:30:00"), now), now)] == ["pending"]
        assert gap_lines(ledger, VM, Span(at("09:00:00"), at("10:00:00")), now) == []
        assert len(gap_lines(ledger, VM, Span(at("10:29:00"), at("10:29:30")), now)) == 2


def test_a_span_from_what_was_typed() -> None:
    now = at("15:00:00")
    month = parse_instant("2026-11-01")
    today_ends = parse_instant("2026-11-11")
    assert month_so_far(None, None, now) == Span(month, today_ends)
    # A bare date in --to includes that day, an instant does not include itself.
    assert month_so_far("2026-11-03", "2026-11-04", now) == Span(month + 2 * DAY_NANOS, month + 4 * DAY_NANOS)
    assert month_so_far("2026-11-03", "2026-11-04T00:00:00Z", now) == Span(month + 2 * DAY_NANOS, month + 3 * DAY_NANOS)
    # The month that --to lies in: midnight of the first ends the month before.
    assert month_so_far(None, "2026-11-01T00:00:00Z", now).from_ns == parse_instant("2026-10-01")
    assert month_so_far(None, "2024-02-29", now) == Span(parse_instant("2024-02-01"), parse_instant("2024-03-01"))
    assert month_so_far("2026-11-10T02:00:00+02:00", None, now).from_ns == at("00:00:00")
    assert bounded(None, None) == ALL_TIME
    assert bounded(None, "2026-11-04") == Span(ALL_TIME.from_ns, month + 4 * DAY_NANOS)


@pytest.mark.parametrize(
    ("start", "end", "problem"),
    [
        ("yesterday", None, "--from: 'yesterday' is not a time"),
        (None, "2026-13-01", "--to: '2026-13-01' is not a time"),
        ("2026-11-03", "2026-11-02", "is not before"),
        ("2026-11-03T00:00:00Z", "2026-11-03T00:00:00Z", "is not before"),
        ("2026-12-01", None, "is not before"),
        (None, "9999-01-01", "--to: 9999-01-01 does not fit"),
        ("0001-01-01", None, "--from: 0001-01-01 does not fit"),
    ],
)
def test_a_span_that_is_none(start: str | None, end: str | None, problem: str) -> None:
    with pytest.raises(BadSpan, match=problem):
        month_so_far(start, end, at("15:00:00"))


def test_units_for_people() -> None:
    assert [human_bytes(amount) for amount in (0, 1023, 1024, 1023 * 1024, 3 * GIB // 2, 2**60 * 5)] == [
        "0 B",
        "1023 B",
        "1.00 KiB",
        "1.00 MiB",
        "1.50 GiB",
        "5,120.00 PiB",
    ]
    assert [human_duration(nanos) for nanos in (0, 1, 1_500_000_000, 3_599_600_000_000)] == ["0s", "1ns", "2s", "1h"]
    assert [exact_seconds(nanos) for nanos in (0, -1, 12 * NANOS + 500_000_000)] == ["0", "-0.000000001", "12.5"]
    amounts = (0, 4_999_999, 5_000_000, -4_999_999, -7_200 * NANOS, 4 * 10**13 * NANOS + 10_000_000)
    assert [human_seconds(nanos) for nanos in amounts] == [
        *("0.00 s", "0.00 s", "0.01 s", "0.00 s", "-7,200.00 s"),
        # No float has this number's cents.
        "40,000,000,000,000.01 s",
    ]


def test_a_customers_report_finds_its_rows_by_index(tmp_path: Path) -> None:
    """A fleet's facts are too many to look through for one customer."""
    path = data_dir(tmp_path, batch("vm", (at("10:00:00"), GIB))) / "ledger.db"
    statements: list[tuple[str, tuple[object, ...]]] = []
    engine = open_for_reading(path)
    event.listen(engine, "before_cursor_execute", lambda *call: statements.append((call[2], call[3])))
    with engine.connect() as connection:
        usage_report(LedgerReader(connection), ACME, ALL_TIME, "bucket", ScoreWeights())
        asked = [(sql, values) for sql, values in statements if "FROM facts" in sql or "FROM corrections" in sql]
        plans = [
            str(step[3])
            for sql, values in asked
            for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)
        ]
    engine.dispose()
    assert any("facts_by_vm" in plan for plan in plans)
    assert not [plan for plan in plans if plan.startswith("SCAN")]
