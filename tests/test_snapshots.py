"""Snapshots and cuts: enough to fold on from, no more than that, and nothing half-written is ever one."""

from __future__ import annotations

import gzip
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from auditor.chooser import SeededChooser
from auditor.generator import journals, seeded_journal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_fixtures import GIB, DataDir, at, batch
from snapshot_fixtures import Cutting, differing, new_ledger, nothing, rows_of
from test_ledger_bill import within_settings

from billaged.aggregator import engine
from billaged.ledger import snapshot
from billaged.ledger.cuts import cuts_in, make_cut, unpack_cut
from billaged.ledger.reader import reading
from billaged.ledger.snapshot import take_snapshot
from billaged.model.errors import StorageError
from billaged.model.records import FoldRules, Heartbeat, PossibleGap, Record, Tick, VmStarted
from billaged.model.time import MINUTE_NANOS, NANOS

NOON = at("12:00:00")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[DataDir]:
    directory = DataDir(tmp_path)
    yield directory
    directory.close()


def a_day(vm_id: str = "vm", hours: int = 24) -> list[Record]:
    """A VM's hours, with their buckets closed but the last one."""
    day: list[Record] = [VmStarted(vm_id, "acme", at("00:00:00"))]
    for number in range(hours * 4):
        time_ns = at("00:00:00") + number * 15 * MINUTE_NANOS
        day += [
            batch(vm_id, (time_ns + 1, GIB, number * NANOS)),
            Tick(time_ns, 15 * MINUTE_NANOS, closes_interval=True),
        ]
    return day


# --- folding on ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_folding_on_from_any_cut_gives_the_same_ledger(seed: int, tmp_path: Path) -> None:
    chance = SeededChooser(seed)
    events = within_settings(seeded_journal(seed, events=120))
    cuts = [chance.between(1, len(events) - 1) for _ in range(2)]
    made = Cutting(tmp_path, events, cuts)
    for cut in set(cuts):
        assert differing(made.compared(cut)) == []


@given(journals(events_max=40), st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_folding_on_from_a_cut_of_any_journal(events: list, data: st.DataObject) -> None:
    events = within_settings(events)
    cut = data.draw(st.integers(1, len(events)))
    with TemporaryDirectory() as folder:
        assert differing(Cutting(Path(folder), events, [cut]).compared(cut)) == []


@pytest.mark.parametrize("seed", range(6))
def test_folding_on_where_most_instants_are_forgotten(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after more than 35 days."""
    for module in (engine, snapshot):
        monkeypatch.setattr(module, "KEPT_NANOS", 20 * MINUTE_NANOS)
    events = within_settings(seeded_journal(1_000 + seed, events=150))
    made = Cutting(tmp_path, events, [75])
    assert differing(made.compared(75)) == []


# --- what is in it ---------------------------------------------------------------


def test_what_is_final_is_left_out(made: DataDir, tmp_path: Path) -> None:
    made.put(FoldRules(), Heartbeat("host", ("vm",)), *a_day(), PossibleGap("vm", at("10:00:00"), at("10:01:00")))
    # Late: an anomaly, and a dead letter.
    made.put(batch("vm", (at("01:01:00"), GIB, 1)), batch("vm", (at("23:59:00"), GIB, 1), customer="globex"))
    take_snapshot(tmp_path / "ledger.db", tmp_path / "snapshot.db", tmp_path / "scratch.db", nothing)
    whole, kept = dict(rows_of(tmp_path / "ledger.db")), dict(rows_of(tmp_path / "snapshot.db"))
    for table in ("sessions", "instances", "tallies"):
        assert kept[table] == whole[table] > 0
    for table in ("anomalies", "dead_letters", "reported_gaps"):
        assert (kept[table], whole[table] > 0) == (0, True)
    assert whole["facts"] >= 24
    assert kept["facts"] <= 2


def test_what_the_daemon_commits_meanwhile_is_not_in_it(made: DataDir, tmp_path: Path) -> None:
    """One moment: rows of later commits would be counted twice by who folds on."""
    made.put(FoldRules(), *a_day("early"))
    before = made.journal.position
    later = [a_day(f"later-{number}", hours=1) for number in range(20)]

    def commit_something() -> None:
        if later:
            made.put(*later.pop())

    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        patched.setattr(snapshot, "_STEPS", 20)
        taken = take_snapshot(
            tmp_path / "ledger.db", tmp_path / "snapshot.db", tmp_path / "scratch.db", commit_something
        )
    assert not later
    assert taken.position < made.journal.position
    with reading(tmp_path / "snapshot.db") as found:
        assert found.position.sequence == taken.position
        vms = len(list(found.dump_rows("sessions")))
    assert (vms - 1) * len(a_day(hours=1)) == taken.position - before


def test_a_ledger_that_nothing_was_folded_into_has_no_snapshot(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "ledger.db")
    with pytest.raises(StorageError, match="nothing was folded"):
        take_snapshot(ledger, tmp_path / "snapshot.db", tmp_path / "scratch.db", nothing)


# --- its file --------------------------------------------------------------------


def test_a_cut_is_listed_by_what_its_file_says(made: DataDir, tmp_path: Path) -> None:
    made.put(FoldRules(), *a_day(hours=2))
    folder = tmp_path / "snapshots"
    cut = make_cut(tmp_path / "ledger.db", folder, NOON, nothing)
    assert cuts_in(folder) == [cut]
    assert cut.position == made.journal.position
    assert cut.path.name == f"ledger-{cut.position:016d}.db.gz"
    assert cut.label() == (NOON, made.journal.head.chain)
    assert stat.S_IMODE(cut.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == [cut.path]
    unpack_cut(cut, tmp_path / "unpacked.db")
    assert (tmp_path / "unpacked.db").read_bytes() == gzip.decompress(cut.path.read_bytes())
    # A ledger like any other: a daemon could go on from it.
    with reading(tmp_path / "unpacked.db") as found:
        assert (found.position.sequence, found.chain) == (cut.position, made.journal.head.chain)


def test_what_is_not_finished_is_no_cut_and_is_cleared_away(made: DataDir, tmp_path: Path) -> None:
    made.put(FoldRules(), *a_day(hours=2))
    folder = tmp_path / "snapshots"
    folder.mkdir()
    # As a process leaves them that was killed.
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "ledger.db").write_bytes(b"half")
    (folder / "ledger-0000000000000007.db.gz.partial").write_bytes(b"half")
    assert cuts_in(folder) == []
    cut = make_cut(tmp_path / "ledger.db", folder, NOON, nothing)
    assert list(folder.iterdir()) == [cut.path]


@pytest.mark.parametrize("call", [1, 3, 12])
def test_one_that_is_stopped_leaves_nothing(
    call: int, made: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.put(FoldRules(), *a_day())
    monkeypatch.setattr(snapshot, "_STEPS", 100)
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise StorageError("the daemon stops.")

    with pytest.raises(StorageError, match="the daemon stops"):
        make_cut(tmp_path / "ledger.db", tmp_path / "snapshots", NOON, stop)
    assert calls == call
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_a_damaged_one_is_named(made: DataDir, tmp_path: Path) -> None:
    made.put(FoldRules(), *a_day(hours=2))
    cut = make_cut(tmp_path / "ledger.db", tmp_path / "snapshots", NOON, nothing)
    content = cut.path.read_bytes()
    middle = len(content) // 2
    for damaged in (content[:middle], content[:middle] + b"\0\0\0\0" + content[middle + 4 :], b"", b"no gzip at all"):
        cut.path.write_bytes(damaged)
        with pytest.raises(StorageError, match="is damaged"):
            unpack_cut(cut, tmp_path / "unpacked.db")
        (tmp_path / "unpacked.db").unlink(missing_ok=True)
    cut.path.write_bytes(content[:5])
    with pytest.raises(StorageError, match="is damaged"):
        cut.label()
    # Another one's file under its name.
    other = cut._replace(position=3, path=cut.path.with_name("ledger-0000000000000003.db.gz"))
    other.path.write_bytes(content)
    with pytest.raises(StorageError, match="not what its name says"):
        other.label()
