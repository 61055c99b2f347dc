"""Points that come late, from the inside: what is kept, what is asked for, and how much is walked for one of them.

That the bill is right is told by tests/auditor and test_ledger_bill.py.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence

import pytest

from billaged.aggregator import insertion
from billaged.aggregator.changes import Row
from billaged.aggregator.engine import Engine
from billaged.aggregator.feeding import feed
from billaged.aggregator.instant import Instant, Kept
from billaged.aggregator.packing import pack, unpack
from billaged.aggregator.state import ENDED, NO_MARKS, NONE, RUNNING, State
from billaged.aggregator.timelines import load_timelines
from billaged.aggregator.walk import walk
from billaged.ledger.database import open_for_writing
from billaged.ledger.dump import dump
from billaged.ledger.store import LedgerStore
from billaged.model.records import FoldRules, JournalEntry, Kind, MetricsBatch, Record, Tick, VmStarted, VmStopped
from billaged.model.time import DAY_NANOS, HOUR_NANOS, MINUTE_NANOS, NANOS

EPOCH = 500_000 * HOUR_NANOS
KINDS = {
    MetricsBatch: Kind.METRICS,
    VmStarted: Kind.STARTED,
    VmStopped: Kind.STOPPED,
    Tick: Kind.TICK,
    FoldRules: Kind.RULES,
}


def sample(second: float, value: int) -> tuple[int, ...]:
    return (EPOCH + int(second * NANOS), 1, *[value] * 5)


def batch(*samples: tuple[int, ...], vm_id: str = "vm") -> MetricsBatch:
    return MetricsBatch(vm_id, "acme", array("q", [value for each in samples for value in each]))


class Life:
    """An engine with its ledger."""

    def __init__(self) -> None:
        self._database = open_for_writing(None)
        self.store = LedgerStore(self._database, "journal")
        self.engine = Engine(self.store.checkpoint())

    def fold(self, *records: Record) -> Life:
        first = self.engine.position + 1
        entries = [
            JournalEntry(sequence, KINDS[type(record)], EPOCH, "", b"", record)
            for sequence, record in enumerate(records, first)
        ]
        feed(self.engine, self.store, entries)
        return self

    def flush(self) -> Life:
        if (changes := self.engine.collect()) is not None:
            self.store.commit(changes)
        return self

    def evict(self) -> Life:
        """Known to the ledger alone from now on."""
        self.flush()
        self.engine = Engine(self.store.checkpoint())
        return self

    def dump(self) -> dict[str, list[Row]]:
        return dump(self.flush()._database)

    def kept(self, vm_id: str = "vm") -> list[Kept]:
        return [unpack(row[2], row[3]) for row in self.flush().store.kept_instants((vm_id,))]


# --- the walk ------------------------------------------------------------------------

BOOK = (FoldRules(gap_threshold_ns=MINUTE_NANOS, bucket_ns=HOUR_NANOS),)


def test_a_walk_over_one_instant_counts_start_sample_stop() -> None:
    instant = Instant(EPOCH, 1, True, sample(0, 7)[1:], True)
    after, billed = walk(State(), instant, 0, BOOK)
    assert after == State(ENDED, 1, True, EPOCH, 1, EPOCH, 0, (7,) * 5, NO_MARKS)
    assert billed.postings == {(1, EPOCH, HOUR_NANOS): [7] * 5 + [0, 0, 1]}
    assert [opened[:2] for opened in billed.opened] == [(1, EPOCH)]


def test_a_stop_at_a_start_ends_the_session_that_runs_until_then() -> None:
    running = State(RUNNING, 1, True, EPOCH, 3, last=(5,) * 5)
    after, billed = walk(running, Instant(EPOCH + NANOS, 2, True, None, True), 0, BOOK)
    assert after == State(RUNNING, 2, False, EPOCH + NANOS, last=(5,) * 5)
    assert billed.left == [(1, EPOCH, EPOCH + NANOS, "stop")]
    # The tail, and nothing missed.
    assert billed.postings == {(1, EPOCH, HOUR_NANOS): [0] * 5 + [3 * NANOS, NANOS, 0]}
    assert not billed.found


def test_a_stop_that_is_contradicted_gives_its_tail_back() -> None:
    ended = State(ENDED, 1, True, EPOCH, 3, EPOCH + HOUR_NANOS, 0, (5,) * 5)
    after, billed = walk(ended, Instant(EPOCH + 2 * HOUR_NANOS, sample=(3, *[9] * 5)), 0, BOOK)
    assert after.phase == RUNNING
    # Its gap goes, that of the step comes.
    assert [(key, gap and gap[:2]) for key, gap in billed.gaps] == [
        ((1, EPOCH), None),
        ((1, EPOCH), (EPOCH + 2 * HOUR_NANOS, "step")),
    ]
    assert [(found.kind, found.at_ns) for found in billed.found] == [("contradicted_stop", EPOCH + HOUR_NANOS)]


@pytest.mark.parametrize("state", [State(), State(ENDED, 1, False, EPOCH, 0, EPOCH + 5)])
def test_a_stop_that_counts_for_nothing_leaves_everything_as_it_was(state: State) -> None:
    after, billed = walk(state, Instant(EPOCH + 10, has_stop=True), 0, BOOK)
    assert after == state
    assert not billed.postings
    assert [found.kind for found in billed.found] == ["unknown_stop" if state.phase == NONE else "extra_stop"]


# --- what is kept --------------------------------------------------------------------


def test_a_kept_instant_survives_its_packing() -> None:
    chance = random.Random(1)
    for _ in range(500):
        values = tuple(chance.randrange(2**63) for _ in range(6))
        time_ns = chance.randrange(2**62)

        def state(values: tuple[int, ...] = values, time_ns: int = time_ns) -> State:
            last = chance.choice((values[1:], (0,) * 5, tuple(chance.randrange(2**63) for _ in range(5))))
            marks = chance.choice((NO_MARKS, tuple(chance.randrange(2**63) for _ in NO_MARKS)))
            times = chance.choice(((time_ns, values[0]), (5, 0)))
            ends = (chance.randrange(2**62), chance.randrange(100))
            return State(
                chance.randrange(3), chance.randrange(2**31), chance.random() < 0.5, *times, *ends, last, marks
            )

        held = chance.choice((values, None))
        instant = Instant(time_ns, chance.randrange(2**31), chance.random() < 0.5, held, chance.random() < 0.5)
        before = chance.choice((None, state()))
        kept = Kept(instant, 3, chance.random() < 0.5, state(), before, chance.random() < 0.5, chance.randrange(2**62))
        assert unpack(time_ns, pack(kept)) == kept


def test_the_ordinary_sample_is_not_kept() -> None:
    life = Life().fold(VmStarted("vm", "acme", EPOCH), *(batch(sample(60 * n, n)) for n in range(1, 50)))
    assert [kept.time_ns - EPOCH for kept in life.kept()] == [0, MINUTE_NANOS]


def test_after_a_gap_the_links_into_eight_more_samples_stay_open() -> None:
    life = Life().fold(batch(sample(0, 0)), *(batch(sample(day + n, n)) for day in (86_400,) for n in range(50)))
    assert [kept.time_ns - EPOCH - DAY_NANOS for kept in life.kept()][1:] == [n * NANOS for n in range(9)]
    assert [kept.is_open for kept in life.kept()] == [True] * 10


def test_a_stop_beside_a_sample_is_kept_only_while_that_is_one_of_the_newest_two() -> None:
    life = Life().fold(batch(*(sample(n, n) for n in range(5))), VmStopped("vm", EPOCH + 3 * NANOS))
    assert [kept.time_ns - EPOCH for kept in life.kept()] == [0, 3 * NANOS]
    life.evict().fold(VmStopped("vm", EPOCH + 3 * NANOS), batch(sample(5, 5)))
    assert [kept.time_ns - EPOCH for kept in life.kept()] == [0]
    assert dict(life.dump()["tallies"])["duplicate_stops"] == 1


def test_no_more_than_the_newest_4096_are_kept() -> None:
    life = Life().fold(batch(sample(0, 0)), batch(sample(10**6, 10**6)))
    life.fold(batch(*(sample(n, n) for n in range(1, 9_001))))
    times = [kept.time_ns for kept in life.kept()]
    assert times == [EPOCH + n * NANOS for n in (*range(9_000 - 4_094, 9_001), 10**6)]
    # What is beyond is late, also at the very instant; what is not finds its place.
    life.evict().fold(batch(sample(4_000, 4_000)), batch(sample(5_000.5, 5_000)))
    tallies = dict(life.dump()["tallies"])
    assert (tallies["late"], tallies["backfilled"]) == (1, 9_001)


# --- what the ledger is asked for ----------------------------------------------------


def test_nothing_is_asked_for_where_points_come_in_order() -> None:
    life = Life().fold(VmStarted("vm", "acme", EPOCH), batch(sample(0, 0), sample(60, 1))).evict()
    for rows in life.store.running_sessions():
        life.engine.restore(rows)
    again = [batch(sample(60, 1)), batch(sample(0, 0)), VmStarted("vm", "acme", EPOCH)]
    for second, record in enumerate([*again, batch(sample(120, 2)), VmStopped("vm", EPOCH + HOUR_NANOS)], 10):
        entry = JournalEntry(second, KINDS[type(record)], EPOCH, "", b"", record)
        assert life.engine.fold([entry]).wanted == ()


def test_a_boot_storm_is_folded_a_few_vms_at_a_time() -> None:
    """First samples at the very instant of starts that only the ledger has: each needs what is kept of its VM."""
    life = Life()
    vm_ids = [f"vm-{n}" for n in range(100)]
    life.fold(*(VmStarted(vm_id, "acme", EPOCH) for vm_id in vm_ids)).evict()
    life.engine.restore(life.store.newest_sessions(vm_ids))
    first = life.engine.position + 1
    entries = [
        JournalEntry(sequence, Kind.METRICS, EPOCH, "", b"", batch(sample(0, 7), vm_id=vm_id))
        for sequence, vm_id in enumerate(vm_ids, first)
    ]
    wanted: list[Sequence[str]] = []
    while asked := life.engine.fold(entries).wanted:
        wanted.append(asked)
        life.engine.restore_timelines(load_timelines(life.store, asked))
    assert max(map(len, wanted)) <= 32
    assert sorted(vm_id for asked in wanted for vm_id in asked) == sorted(vm_ids)
    assert {row[8] for row in life.dump()["sessions"]} == {7}


def test_stops_alone_are_found_again() -> None:
    life = Life().fold(VmStopped("vm", EPOCH), VmStopped("vm", EPOCH + 9 * NANOS)).evict()
    life.fold(VmStopped("vm", EPOCH), batch(sample(5, 1)))
    bill = life.dump()
    assert [row[2:8] for row in bill["sessions"]] == [
        ("acme", EPOCH + 5 * NANOS, 0, EPOCH + 5 * NANOS, EPOCH + 9 * NANOS, "stop")
    ]
    assert dict(bill["tallies"])["duplicate_stops"] == 1


# --- how much is walked --------------------------------------------------------------


def restless(seed: int) -> list[Record]:
    """A timeline of which most is kept: saw teeth, stops and starts in rows; and points into its early parts."""
    chance = random.Random(seed)
    records: list[Record] = [FoldRules(gap_threshold_ns=5 * NANOS, bucket_ns=MINUTE_NANOS), batch(sample(0, 1_000))]
    second, top = 100, 1_000
    for _ in range(chance.randrange(2, 6)):
        match chance.randrange(4):
            case 0:
                rows = []
                for n in range(chance.randrange(5, 40)):
                    second += chance.choice((1, 1, 10))
                    top += chance.choice((0, 0, 7))
                    rows.append(sample(second, top - (n % 2) * chance.choice((1, 300, 900))))
                records.append(batch(*rows))
            case 1:
                for _ in range(chance.randrange(3, 30)):
                    second += 1
                    records.append(VmStopped("vm", EPOCH + second * NANOS))
            case 2:
                for _ in range(chance.randrange(3, 30)):
                    second += 1
                    records.append(VmStarted("vm", "acme", EPOCH + second * NANOS))
            case _:
                records.append(batch(*(sample(second + n, top + n) for n in range(1, 20))))
                second, top = second + 20, top + 20
    for _ in range(chance.randrange(3, 12)):
        at = chance.choice((chance.randrange(1, 100), chance.randrange(1, second)))
        value = top + chance.choice((-1_000, -500, -100, -8, 0, 1, 50, 2_000))
        match chance.randrange(8):
            case 0:
                records.append(VmStarted("vm", "acme", EPOCH + at * NANOS + 1))
            case 1:
                records.append(VmStopped("vm", EPOCH + at * NANOS + 1))
            case _:
                rows = [
                    sample(at + n / 8, max(0, value + chance.choice((-50, 0, n))))
                    for n in range(chance.randrange(1, 6))
                ]
                records.append(batch(*rows))
    return records


def folded(records: Sequence[Record], group: int) -> tuple[dict[str, list[Row]], list[Kept]]:
    life = Life()
    for start in range(0, len(records), group):
        life.fold(*records[start : start + group]).flush()
    return life.dump(), life.kept()


@pytest.mark.parametrize("first_seed", range(0, 200, 20))
def test_what_is_skipped_would_have_been_walked_to_the_same_end(
    first_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is kept of each instant, and how things stand around it."""
    for seed in range(first_seed, first_seed + 20):
        records = restless(seed)
        monkeypatch.setattr(insertion, "_NEAR", 10**9)
        walked = folded(records, 7)
        monkeypatch.setattr(insertion, "_NEAR", 1)
        assert folded(records, 7) == walked
        assert folded(records, 1) == walked


SAW = batch(*(sample(10**6 + n, 10**6 + (n % 2) * 1_000) for n in range(1_000)))
STOPS = [VmStopped("vm", EPOCH + (10**6 + n) * NANOS) for n in range(1_000)]
STARTS = [VmStarted("vm", "acme", EPOCH + (10**6 + n) * NANOS) for n in range(1_000)]


@pytest.mark.parametrize("later", [[SAW], STOPS, STARTS], ids=["saw", "stops", "starts"])
@pytest.mark.parametrize("high", [0, 10**6 + 2_000], ids=["low", "high"])
def test_a_late_point_walks_little_whatever_comes_after_it(
    later: list[Record], high: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of them there are in a batch, and however many instants are kept behind them."""
    life = Life().fold(batch(sample(0, 0)), *later)
    walked: list[int] = []
    walk_on = insertion.walk
    monkeypatch.setattr(insertion, "walk", lambda *of: walked.append(1) or walk_on(*of))
    late = [sample(1 + n, high + n) for n in range(500)]
    random.Random(1).shuffle(late)
    life.fold(batch(*late))
    assert dict(life.engine.effects.tallies)["backfilled"] == 500
    assert len(walked) < 40 * 500
