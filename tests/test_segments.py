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

from billaged.intake.journal import JournalRow
from billaged.intake.segments import Segments
from billaged.intake.sqlite import SqliteJournal
from billaged.model.errors import StorageError
from billaged.model.time import DAY_NANOS, HOUR_NANOS

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


@pytest.fixture
def segments(folder: Path) -> Segments:
    return Segments(folder)


def read(segments: Segments, after: int, through: int) -> list[JournalRow]:
    return [row for chunk in segments.read(after, through) for row in chunk]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_old_rows_can_be_read_again_after_they_left(journal: SqliteJournal, segments: Segments, folder: Path) -> None:
    journal.append(rows(1, 300))
    assert segments.archive(journal, 0, ALL, WEEK_AGO) == 300
    journal.prune(300)
    assert read(segments, 0, 300) == rows(1, 300)
    assert read(segments, 120, 130) == rows(121, 130)
    (file,) = files(folder)
    assert file.name == "journal-0000000000000001-0000000000000300.jsonl.gz"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_segment_is_readable_without_billaged(journal: SqliteJournal, segments: Segments, folder: Path) -> None:
    journal.append([JournalRow(1, 3, OLD, "spiffe://example.org/metald", b"\x00\xffbytes")])
    segments.archive(journal, 0, ALL, WEEK_AGO)
    (line,) = gzip.decompress(files(folder)[0].read_bytes()).decode().splitlines()
    fields = json.loads(line)
    assert base64.b64decode(fields.pop("payload")) == b"\x00\xffbytes"
    assert fields == {"sequence": 1, "kind": 3, "received_ns": OLD, "caller": "spiffe://example.org/metald"}


def test_what_is_not_in_the_ledger_stays(journal: SqliteJournal, segments: Segments) -> None:
    journal.append(rows(1, 100))
    assert segments.archive(journal, 0, 60, WEEK_AGO) == 60
    assert segments.archive(journal, 60, 60, WEEK_AGO) == 0
    assert segments.archive(journal, 60, 100, WEEK_AGO) == 100
    assert read(segments, 0, 100) == rows(1, 100)


def test_what_is_young_stays_and_the_journal_never_has_holes(journal: SqliteJournal, segments: Segments) -> None:
    """A row that must stay ends the segment, though an old one may follow it (a clock that stepped back)."""
    journal.append([*rows(1, 10), *rows(11, 20, NOW), *rows(21, 30)])
    assert segments.archive(journal, 0, ALL, WEEK_AGO) == 10
    assert segments.archive(journal, 10, ALL, WEEK_AGO) == 0


def test_a_few_rows_wait_for_company_for_an_hour(journal: SqliteJournal, segments: Segments, folder: Path) -> None:
    journal.append(rows(1, 5, WEEK_AGO - HOUR_NANOS // 2))
    assert segments.archive(journal, 0, ALL, WEEK_AGO) == 0
    assert not folder.exists()
    assert segments.archive(journal, 0, ALL, WEEK_AGO + HOUR_NANOS) == 5


def test_without_an_archive_rows_leave_and_nothing_is_written(
    journal: SqliteJournal, segments: Segments, folder: Path
) -> None:
    journal.append(rows(1, 5))
    assert segments.archive(journal, 0, ALL, WEEK_AGO, keep=False) == 5
    assert not folder.exists()


def test_a_crash_between_segment_and_prune_writes_the_same_segment_again(
    journal: SqliteJournal, segments: Segments, folder: Path
) -> None:
    journal.append(rows(1, 50))
    segments.archive(journal, 0, ALL, WEEK_AGO)
    before = files(folder)[0].read_bytes()
    segments.archive(journal, 0, ALL, WEEK_AGO)
    assert [file.read_bytes() for file in files(folder)] == [before]


def test_segments_that_overlap_give_each_row_once(journal: SqliteJournal, segments: Segments) -> None:
    """After such a crash more rows may be old: then the second file begins as the first and ends later."""
    journal.append(rows(1, 50))
    segments.archive(journal, 0, 20, WEEK_AGO)
    segments.archive(journal, 0, 50, WEEK_AGO)
    assert read(segments, 0, 50) == rows(1, 50)


def test_a_half_written_segment_is_no_segment(journal: SqliteJournal, segments: Segments, folder: Path) -> None:
    journal.append(rows(1, 10))
    segments.archive(journal, 0, ALL, WEEK_AGO)
    (folder / "journal-0000000000000011-0000000000000020.jsonl.gz.tmp").write_bytes(b"half")
    assert read(segments, 0, 10) == rows(1, 10)


def three(journal: SqliteJournal, segments: Segments) -> None:
    journal.append(rows(1, 30))
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


def test_only_what_is_older_than_the_retention_is_deleted(
    journal: SqliteJournal, segments: Segments, folder: Path
) -> None:
    three(journal, segments)
    (folder / "somebody-elses.txt").write_text("not ours")
    os.utime(folder / "somebody-elses.txt", (100, 100))
    for path, written in zip(files(folder), (1_000, 2_000, 3_000), strict=False):
        os.utime(path, (written, written))
    assert segments.remove_older(2_000) == 1
    assert [path.name[-14:-9] for path in files(folder) if path.suffix == ".gz"] == ["00020", "00030"]
    assert (folder / "somebody-elses.txt").exists()
    assert segments.remove_older(2_000) == 0
