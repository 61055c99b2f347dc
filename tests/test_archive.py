"""The archive: cuts are made when they are due, and rows leave the journal at cuts only."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from report_fixtures import GIB, DataDir, at, batch

from billaged.aggregator.worker import Aggregator
from billaged.archive import Archive
from billaged.backup.begin_anew import begin_anew
from billaged.directory import DataDirectory
from billaged.intake.chain import rows_after
from billaged.intake.segment_file import segments_in
from billaged.intake.segments import Segments
from billaged.intake.writer import JournalWriter
from billaged.ledger.cuts import Cut, cuts_in
from billaged.model.records import FoldRules
from billaged.model.time import DAY_NANOS, HOUR_NANOS, MINUTE_NANOS, NANOS
from billaged.reports.replay import replay
from billaged.settings import Settings
from billaged.wire import codec

MIDNIGHT = at("00:00:00")


class Clock:
    """A clock whose hands are moved."""

    def __init__(self) -> None:
        self.wall_ns = MIDNIGHT
        self.passed_ns = 0

    def wall_nanos(self) -> int:
        return self.wall_ns

    def monotonic_nanos(self) -> int:
        return self.passed_ns

    def advance(self, nanos: int) -> None:
        self.wall_ns += nanos
        self.passed_ns += nanos


class Daemon:
    """Of a daemon what the archive has to do with, on a real data directory; ``look`` is what it does each minute."""

    def __init__(self, path: Path, clock: Clock, **settings: str) -> None:
        self.clock = clock
        self.directory = DataDirectory(path)
        self.made = DataDir(path)
        self._loop = asyncio.new_event_loop()
        self.writer = JournalWriter(self.made.journal, self.aggregator, self._loop, 1, 1, lambda error: None)
        given = {f"UNKEY_BILLAGED_{name}": value for name, value in settings.items()}
        self.archive = Archive(
            self.made.journal,
            self.writer,
            self.aggregator,
            self.directory,
            Segments(path / "segments", clock.wall_nanos, clock.monotonic_nanos),
            clock,
            Settings.load({"UNKEY_BILLAGED_DATA_DIR": str(path)} | given).storage,
        )

    @property
    def aggregator(self) -> Aggregator:
        return self.made.aggregator

    @property
    def cuts(self) -> list[Cut]:
        return cuts_in(self.directory.path / "snapshots")

    @property
    def segments(self) -> list[tuple[int, int]]:
        return [segment[:2] for segment in segments_in(self.directory.path / "segments")]

    def take(self, rows: int) -> None:
        """So many rows come now, and are folded."""
        first = self.made.journal.position + 1
        records = [batch("vm", (MIDNIGHT + at_row, GIB)) for at_row in range(first, first + rows)]
        self.made.put(*records, received_ns=self.clock.wall_ns)

    def look(self) -> None:
        self.archive.look()
        # As the writer does after each commit.
        for _ in range(10):
            self.made.journal.prune(self.writer.prunable_through)

    def end(self) -> None:
        self.made.close()
        self._loop.close()
        self.directory.release()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def daemon(tmp_path: Path, clock: Clock) -> Iterator[Daemon]:
    made = Daemon(tmp_path, clock)
    made.made.put(FoldRules(), received_ns=clock.wall_ns)
    yield made
    made.end()


def days(daemon: Daemon, count: int, rows: int = 10) -> None:
    """So many days pass, with rows on each of them and looks at its end."""
    for _ in range(count):
        daemon.take(rows)
        daemon.clock.advance(DAY_NANOS)
        daemon.look()


def test_a_cut_is_made_once_a_day_while_rows_come(daemon: Daemon, clock: Clock) -> None:
    daemon.look()
    assert [cut.position for cut in daemon.cuts] == [1]
    daemon.take(5)
    clock.advance(DAY_NANOS - NANOS)
    daemon.look()
    assert len(daemon.cuts) == 1
    clock.advance(NANOS)
    daemon.look()
    assert [cut.position for cut in daemon.cuts] == [1, 6]
    clock.advance(9 * DAY_NANOS)
    daemon.look()
    assert len(daemon.cuts) == 2
    assert daemon.cuts[1].label() == (MIDNIGHT + DAY_NANOS, daemon.made.journal.head.chain)


def test_rows_leave_at_cuts_only(daemon: Daemon, clock: Clock) -> None:
    days(daemon, 7)
    # Cut at the end of each day; rows of the first are a week old now, their cut is not.
    assert [cut.position for cut in daemon.cuts] == [11, 21, 31, 41, 51, 61, 71]
    clock.advance(HOUR_NANOS)
    daemon.look()
    assert (daemon.segments, daemon.made.journal.pruned) == ([], 0)
    clock.advance(23 * HOUR_NANOS + NANOS)
    daemon.look()
    assert (daemon.segments, daemon.made.journal.pruned) == ([(1, 11)], 11)
    clock.advance(2 * DAY_NANOS)
    daemon.look()
    assert (daemon.segments, daemon.made.journal.pruned) == ([(1, 11), (12, 31)], 31)
    assert len(daemon.cuts) == 7


def test_segments_end_at_cuts_and_the_journal_is_cut_once_all_are_written(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(tmp_path, clock)
    monkeypatch.setattr("billaged.intake.segments._ROWS", 4)
    monkeypatch.setattr("billaged.intake.sqlite._PRUNE_ROWS", 1)
    days(daemon, 1, rows=11)
    clock.advance(8 * DAY_NANOS)
    daemon.archive.look()
    assert daemon.segments == [(1, 4), (5, 8), (9, 11)]
    assert daemon.writer.prunable_through == 11
    # A stop while rows leave one by one: what is left of them is written again, and ends at the cut, too.
    for _ in range(6):
        daemon.made.journal.prune(11)
    daemon.end()
    daemon = Daemon(tmp_path, clock)
    assert daemon.made.journal.pruned == 6
    daemon.look()
    assert daemon.segments == [(1, 4), (5, 8), (7, 10), (9, 11), (11, 11)]
    assert daemon.made.journal.pruned == 11
    daemon.end()


def test_cuts_whose_rows_are_gone_go_too(daemon: Daemon, clock: Clock, tmp_path: Path) -> None:
    days(daemon, 3)
    clock.advance(7 * DAY_NANOS)
    for _ in range(3):
        clock.advance(DAY_NANOS)
        daemon.look()
    assert daemon.made.journal.pruned == 31
    assert daemon.segments == [(1, 31)]
    # A folder that is not there for a moment costs nothing.
    (tmp_path / "segments").rename(tmp_path / "elsewhere")
    daemon.look()
    assert [cut.position for cut in daemon.cuts] == [11, 21, 31]
    (tmp_path / "elsewhere").rename(tmp_path / "segments")
    days(daemon, 1)
    clock.advance(8 * DAY_NANOS)
    daemon.look()
    assert daemon.segments == [(1, 31), (32, 41)]
    sorted((tmp_path / "segments").iterdir())[0].unlink()
    daemon.look()
    assert [cut.position for cut in daemon.cuts] == [31, 41]


def test_without_an_archive_cuts_in_the_journal_stay(tmp_path: Path, clock: Clock) -> None:
    daemon = Daemon(tmp_path, clock, ARCHIVE_RETENTION="0s")
    days(daemon, 3)
    clock.advance(6 * DAY_NANOS)
    # What is gone for good goes once the clock has gone on steadily for an hour.
    for _ in range(62):
        clock.advance(MINUTE_NANOS)
        daemon.look()
    assert daemon.segments == []
    assert daemon.made.journal.pruned == 20
    assert [cut.position for cut in daemon.cuts] == [20, 30]
    daemon.end()


def test_with_a_short_retention_cuts_are_made_more_often_and_thinned_out_later(tmp_path: Path, clock: Clock) -> None:
    daemon = Daemon(tmp_path, clock, JOURNAL_RETENTION="1h")
    for _ in range(60):
        daemon.take(1)
        clock.advance(HOUR_NANOS)
        daemon.look()
    daemon.look()
    assert daemon.made.journal.pruned == 58
    # One a day of those that the journal is behind of, the one that it begins at, and those that are younger.
    assert [cut.position for cut in daemon.cuts] == [1, 25, 49, 58, 59, 60]
    daemon.end()


def test_where_a_lost_journal_went_on_stays_a_cut(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one is of the same day; but without this one, nothing proves the rows up to the next."""
    for life in range(2):
        daemon = Daemon(tmp_path, clock, JOURNAL_RETENTION="1h")
        for _ in range(5):
            daemon.take(1)
            clock.advance(HOUR_NANOS)
            daemon.look()
        daemon.end()
        if life == 0:
            (tmp_path / "journal.db").unlink()
            with monkeypatch.context() as patched:
                patched.setattr(time, "time_ns", clock.wall_nanos)
                assert begin_anew(tmp_path, lambda plan: True) is not None
    assert daemon.made.journal.pruned > 6
    assert 5 in [cut.position for cut in daemon.cuts]
    found = replay(tmp_path, None, lambda done, total: None)
    assert (found.begun_after, found.equal) == (5, True)


def test_a_wrong_clock_makes_a_cut_too_many_and_stops_none(daemon: Daemon, clock: Clock) -> None:
    daemon.look()
    clock.wall_ns += 400 * DAY_NANOS
    daemon.take(1)
    daemon.look()
    clock.wall_ns -= 400 * DAY_NANOS
    assert [cut.position for cut in daemon.cuts] == [1, 2]
    # Into its segment too early: nothing is lost by that.
    assert (daemon.made.journal.pruned, daemon.segments) == (1, [(1, 1)])
    daemon.take(1)
    daemon.look()
    daemon.take(1)
    daemon.look()
    assert [cut.position for cut in daemon.cuts] == [1, 2, 3]


def test_a_damaged_one_is_made_anew_and_no_row_leaves_at_it(
    daemon: Daemon, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    days(daemon, 2)
    os.truncate(daemon.cuts[1].path, 3)
    daemon.take(1)
    for _ in range(3):
        daemon.look()
    assert [cut.position for cut in daemon.cuts] == [11, 21, 22]
    assert sum("is damaged" in record.getMessage() for record in caplog.records) == 1
    clock.advance(9 * DAY_NANOS)
    os.truncate(daemon.cuts[2].path, 3)
    daemon.look()
    assert daemon.segments == [(1, 11)]


def test_no_room_for_a_snapshot_is_no_reason_to_stop(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = Daemon(tmp_path, clock, MIN_FREE_BYTES="1TiB")
    daemon.take(3)
    daemon.look()
    assert daemon.cuts == []
    assert "too little room on the disk" in caplog.text
    assert list((tmp_path / "snapshots").iterdir()) == []
    daemon.end()


def test_the_thread_ends_with_the_daemon(daemon: Daemon) -> None:
    async def run() -> None:
        task = asyncio.create_task(daemon.archive.run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    daemon.look()
    assert daemon.cuts == []


def test_what_is_not_in_the_ledger_is_not_cut(daemon: Daemon, clock: Clock) -> None:
    journal = daemon.made.journal
    record = batch("vm", (MIDNIGHT, GIB))
    payload = codec.encode_own(FoldRules())
    journal.append(rows_after(journal.head, [(codec.kind_of(record), clock.wall_ns, "test", payload)] * 3))
    daemon.look()
    assert [cut.position for cut in daemon.cuts] == [1]


def test_a_snapshot_of_another_life_of_the_journal_is_none_of_ours(tmp_path: Path, clock: Clock) -> None:
    """As after a restore: what the journal and its ledger were once is still in the folder."""
    once = tmp_path / "once"
    once.mkdir()
    daemon = Daemon(once, clock)
    daemon.take(5)
    (tmp_path / "now").mkdir()
    for name in ("journal.db", "ledger.db"):
        with (
            closing(sqlite3.connect(once / name)) as source,
            closing(sqlite3.connect(tmp_path / "now" / name)) as target,
        ):
            source.backup(target)
    days(daemon, 2)
    daemon.end()
    (once / "snapshots").rename(tmp_path / "now" / "snapshots")
    daemon = Daemon(tmp_path / "now", clock)
    assert [cut.position for cut in daemon.cuts] == [15, 25]
    daemon.take(12)
    daemon.look()
    assert [cut.position for cut in daemon.cuts] == [15, 17, 25]
    clock.advance(30 * DAY_NANOS)
    daemon.look()
    assert (daemon.segments, daemon.made.journal.pruned) == ([(1, 17)], 17)
    daemon.end()
