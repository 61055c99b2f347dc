"""Segments: what leaves the journal can be read again, row for row, and damage has a name."""

from __future__ import annotations

import base64
import gzip
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from journal_rows import append

from billaged.intake.journal import JournalRow
from billaged.intake.segments import Segments
from billaged.intake.sqlite import SqliteJournal
from billaged.model.errors import StorageError
from billaged.model.time import DAY_NANOS, HOUR_NANOS, MINUTE_NANOS, NANOS

NOW = 500_000 * HOUR_NANOS
OLD = NOW - 8 * DAY_NANOS
WEEK_AGO = NOW - 7 * DAY_NANOS
ALL = 10**9


def rows(first: int, last: int, received_ns: int = OLD) -> list[JournalRow]:
    return [JournalRow(at, 1, received_ns + at, "", bytes([at % 256]) * (at % 9)) for at in range(first, last + 1)]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    made = SqliteJournal(tmp_path / "journal.db")
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "segments"


class Clock:
    """The wall clock, and one that never steps."""

    def __init__(self) -> None:
        self.wall_ns = NOW
        self.passed_ns = 0

    def advance(self, nanos: int) -> None:
        self.wall_ns += nanos
        self.passed_ns += nanos


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def segments(folder: Path, clock: Clock) -> Segments:
    return Segments(folder, lambda: clock.wall_ns, lambda: clock.passed_ns)


def remove_older(segments: Segments, clock: Clock, keep_ns: int) -> int:
    """As the daemon does it, once."""
    return segments.remove_older((clock.wall_ns - keep_ns) / NANOS)


def wait_an_hour(segments: Segments, clock: Clock, keep_ns: int) -> None:
    for _ in range(60):
        assert remove_older(segments, clock, keep_ns) == 0
        clock.advance(MINUTE_NANOS)


def read(segments: Segments, after: int, through: int) -> list[JournalRow]:
    """The rows without their chains."""
    return [row._replace(chain=b"") for chunk in segments.read(after, through) for row in chunk]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_old_rows_can_be_read_again_after_they_left(journal: SqliteJournal, segments: Segments, folder: Path) -> None:
    append(journal, rows(1, 300))
    assert segments.archive(journal, 0, ALL, WEEK_AGO) == 300
    journal.prune(300)
    assert read(segments, 0, 300) == rows(1, 300)
    assert read(segments, 120, 130) == rows(121, 130)
    (file,) = files(folder)
    assert file.name == "journal-0000000000000001-0000000000000300.jsonl.gz"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_segment_is_readable_without_billaged(journal: SqliteJournal, segments: Segments, folder: Path) -> None:
    append(journal, [JournalRow(1, 3, OLD, "spiffe://example.org/metald", b"\x00\xffbytes")])
    segments.archive(journal, 0, ALL, WEEK_AGO)
    (line,) = gzip.decompress(files(folder)[0].read_bytes()).decode().splitlines()
    fields = json.loads(line)
    assert base64.b64decode(fields.pop("payload")) == b"\x00\xffbytes"
    assert bytes.fromhex(fields.pop("chain")) == journal.head.chain
    assert bytes.fromhex(fields.pop("previous")) == journal.beginning.chain
    assert fields == {"sequence": 1, "kind": 3, "received_ns": OLD, "caller": "spiffe://example.org/metald"}


def test_what_is_not_in_the_ledger_stays(journal: SqliteJournal, segments: Segments) -> None:
    append(journal, rows(1, 100))
    assert segments.archive(journal, 0, 60, WEEK_AGO) == 60
    assert segments.archive(journal, 60, 60, WEEK_AGO) == 0
    assert segments.archive(journal, 60, 100, WEEK_AGO) == 100
    assert read(segments, 0, 100) == rows(1, 100)


def test_what_is_young_stays_and_the_journal_never_has_holes(journal: SqliteJournal, segments: Segments) -> None:
    """A row that must stay ends the segment, though an old one may follow it (a clock that stepped back)."""
    append(journal, [*rows(1, 10), *rows(11, 20, NOW), *rows(21, 30)])
    assert segments.archive(journal, 0, ALL, WEEK_AGO) == 10
    assert segments.archive(journal, 10, ALL, WEEK_AGO) == 0


def test_a_few_rows_wait_for_company_for_an_hour(journal: SqliteJournal, segments: Segments, folder: Path) -> None:
    append(journal, rows(1, 5, WEEK_AGO - HOUR_NANOS // 2))
    assert segments.archive(journal, 0, ALL, WEEK_AGO) == 0
    assert not folder.exists()
    assert segments.archive(journal, 0, ALL, WEEK_AGO + HOUR_NANOS) == 5


def test_without_an_archive_rows_leave_and_nothing_is_written(
    journal: SqliteJournal, segments: Segments, folder: Path, clock: Clock
) -> None:
    append(journal, rows(1, 5))
    # Gone for good: an hour of readings comes first.
    assert segments.archive(journal, 0, ALL, WEEK_AGO, keep=False) == 0
    clock.advance(HOUR_NANOS)
    assert segments.archive(journal, 0, ALL, WEEK_AGO + HOUR_NANOS, keep=False) == 5
    assert not folder.exists()


def test_without_an_archive_a_wrong_clock_removes_nothing(
    journal: SqliteJournal, segments: Segments, clock: Clock
) -> None:
    append(journal, rows(1, 5, NOW))
    segments.archive(journal, 0, ALL, WEEK_AGO, keep=False)
    clock.advance(2 * HOUR_NANOS)
    assert segments.archive(journal, 0, ALL, WEEK_AGO + 100 * DAY_NANOS, keep=False) == 0


def test_rows_from_the_future_block_nothing(journal: SqliteJournal, segments: Segments, folder: Path) -> None:
    """The clock was a year ahead for ten rows: they go with those around them, in their order."""
    append(journal, [*rows(1, 10), *rows(11, 20, NOW + 365 * DAY_NANOS), *rows(21, 30), *rows(31, 40, NOW)])
    assert segments.archive(journal, 0, ALL, WEEK_AGO) == 30
    assert [row.sequence for row in read(segments, 0, 30)] == list(range(1, 31))


def test_rows_from_the_future_at_the_beginning_wait_for_those_after_them(
    journal: SqliteJournal, segments: Segments
) -> None:
    append(journal, rows(1, 10, NOW + 365 * DAY_NANOS))
    assert segments.archive(journal, 0, ALL, WEEK_AGO) == 0
    append(journal, rows(11, 20))
    assert segments.archive(journal, 0, ALL, WEEK_AGO) == 20


def test_a_crash_between_segment_and_prune_writes_the_same_segment_again(
    journal: SqliteJournal, segments: Segments, folder: Path
) -> None:
    append(journal, rows(1, 50))
    segments.archive(journal, 0, ALL, WEEK_AGO)
    before = files(folder)[0].read_bytes()
    segments.archive(journal, 0, ALL, WEEK_AGO)
    assert [file.read_bytes() for file in files(folder)] == [before]


def test_segments_that_overlap_give_each_row_once(journal: SqliteJournal, segments: Segments) -> None:
    """After such a crash more rows may be old: then the second file begins as the first and ends later."""
    append(journal, rows(1, 50))
    segments.archive(journal, 0, 20, WEEK_AGO)
    segments.archive(journal, 0, 50, WEEK_AGO)
    assert read(segments, 0, 50) == rows(1, 50)


def test_a_half_written_segment_is_no_segment(journal: SqliteJournal, segments: Segments, folder: Path) -> None:
    append(journal, rows(1, 10))
    segments.archive(journal, 0, ALL, WEEK_AGO)
    (folder / "journal-0000000000000011-0000000000000020.jsonl.gz.tmp").write_bytes(b"half")
    assert read(segments, 0, 10) == rows(1, 10)


def three(journal: SqliteJournal, segments: Segments) -> None:
    append(journal, rows(1, 30))
    for last in (10, 20, 30):
        assert segments.archive(journal, last - 10, last, WEEK_AGO) == last


def test_a_missing_segment_is_named_by_the_row_it_had(journal: SqliteJournal, segments: Segments, folder: Path) -> None:
    three(journal, segments)
    files(folder)[1].unlink()
    with pytest.raises(StorageError, match="journal row 11"):
        read(segments, 0, 30)
    assert read(segments, 20, 30) == rows(21, 30)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no json", "a row less"])
def test_a_damaged_segment_is_named(journal: SqliteJournal, segments: Segments, folder: Path, damage: str) -> None:
    three(journal, segments)
    path = files(folder)[1]
    packed = path.read_bytes()
    text = gzip.decompress(packed)
    path.write_bytes(
        {
            "cut": packed[:-20],
            "flipped": packed[:40] + bytes([packed[40] ^ 0xFF]) + packed[41:],
            "no json": gzip.compress(b"what is this\n" + text),
            "a row less": gzip.compress(
                b"".join(text.splitlines(keepends=True)[:4] + text.splitlines(keepends=True)[5:])
            ),
        }[damage]
    )
    with pytest.raises(StorageError, match=path.name.replace(".", r"\.")):
        read(segments, 0, 30)


def written(folder: Path, *ages_ns: int) -> None:
    """Set when the segments were written, oldest sequence first, as ages before NOW."""
    for path, age_ns in zip(sorted(folder.glob("*.gz")), ages_ns, strict=True):
        os.utime(path, ns=(NOW - age_ns, NOW - age_ns))


def left(folder: Path) -> list[str]:
    return [path.name[-14:-9] for path in files(folder) if path.suffix == ".gz"]


def test_only_what_is_older_than_the_retention_is_deleted(
    journal: SqliteJournal, segments: Segments, folder: Path, clock: Clock
) -> None:
    three(journal, segments)
    (folder / "somebody-elses.txt").write_text("not ours")
    os.utime(folder / "somebody-elses.txt", (100, 100))
    written(folder, 30 * DAY_NANOS, 20 * DAY_NANOS, 10 * DAY_NANOS)
    wait_an_hour(segments, clock, 25 * DAY_NANOS)
    assert remove_older(segments, clock, 25 * DAY_NANOS) == 1
    assert left(folder) == ["00020", "00030"]
    assert (folder / "somebody-elses.txt").exists()
    assert remove_older(segments, clock, 25 * DAY_NANOS) == 0


def test_a_clock_that_is_wrong_for_a_moment_deletes_nothing(
    journal: SqliteJournal, segments: Segments, folder: Path, clock: Clock
) -> None:
    three(journal, segments)
    written(folder, 3 * DAY_NANOS, 2 * DAY_NANOS, DAY_NANOS)
    wait_an_hour(segments, clock, 70 * DAY_NANOS)
    clock.wall_ns += 100 * DAY_NANOS
    assert remove_older(segments, clock, 70 * DAY_NANOS) == 0
    clock.advance(59 * MINUTE_NANOS)
    assert remove_older(segments, clock, 70 * DAY_NANOS) == 0
    # And right again: its hour begins anew.
    clock.wall_ns -= 100 * DAY_NANOS
    wait_an_hour(segments, clock, 70 * DAY_NANOS)
    assert remove_older(segments, clock, 70 * DAY_NANOS) == 0
    assert left(folder) == ["00010", "00020", "00030"]


def test_a_segment_stays_while_an_older_one_does(
    journal: SqliteJournal, segments: Segments, folder: Path, clock: Clock
) -> None:
    """The second was written by a clock that had gone back to 1970: it is no older than the first."""
    three(journal, segments)
    written(folder, 3 * DAY_NANOS, NOW, DAY_NANOS)
    wait_an_hour(segments, clock, 70 * DAY_NANOS)
    assert remove_older(segments, clock, 70 * DAY_NANOS) == 0


def test_a_segment_from_the_future_goes_with_those_around_it(
    journal: SqliteJournal, segments: Segments, folder: Path, clock: Clock
) -> None:
    three(journal, segments)
    written(folder, -365 * DAY_NANOS, 80 * DAY_NANOS, -365 * DAY_NANOS)
    wait_an_hour(segments, clock, 70 * DAY_NANOS)
    assert remove_older(segments, clock, 70 * DAY_NANOS) == 2
    assert left(folder) == ["00030"]
