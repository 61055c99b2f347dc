"""Files put back from a backup: with the daemon down, by copying, as an operator does it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from daemon_process import DaemonProcess, fails_to_start
from fuzz.judge import journal_rows

from faults.judge import check_all, check_journal, check_ledger, no_traceback
from faults.load import Fleet
from faults.scale import base_seed
from faults.settings import SETTINGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.more_faults,
]


class Lives(NamedTuple):
    """Copies of one data directory after its first life and its second, and the clients of both."""

    first: Path
    second: Path
    fleet: Fleet


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    folder, fleet = tmp_path_factory.mktemp("lives"), Fleet(base_seed())
    lives = Lives(folder / "first", folder / "second", fleet)
    for copy in lives[:2]:
        live(folder / "var", fleet)
        shutil.copytree(folder / "var", copy)
    yield lives


def live(data_dir: Path, fleet: Fleet) -> None:
    with DaemonProcess(data_dir, SETTINGS) as daemon:
        with fleet.under_load(daemon):
            fleet.until_acked(150)
        fleet.settle(daemon)
        assert daemon.stop() == 0


def restored(into: Path, *, journal: Path, ledger: Path) -> Path:
    into.mkdir()
    shutil.copy(journal / "journal.db", into)
    shutil.copy(ledger / "ledger.db", into)
    return into


def starts_and_stops(data_dir: Path) -> None:
    with DaemonProcess(data_dir, SETTINGS) as daemon:
        assert daemon.stop() == 0
        assert daemon.other_output == ""


def refused(data_dir: Path) -> str:
    """The one line that says why and what to do."""
    before = {path.name for path in data_dir.glob("*.db")}
    ended = fails_to_start(data_dir, **SETTINGS)
    assert ended.exit_code == 1, ended
    no_traceback(ended.stderr.splitlines())
    (line,) = ended.stderr.splitlines()
    assert "Put back" in line or "Restore" in line
    # Nothing is made up in place of what is missing.
    assert {path.name for path in data_dir.glob("*.db")} == before
    return line


def test_an_older_journal_is_refused(lives: Lives, tmp_path: Path) -> None:
    line = refused(restored(tmp_path / "var", journal=lives.first, ledger=lives.second))
    assert "the journal is older than the ledger" in line


def test_an_older_ledger_is_computed_from_the_journal(lives: Lives, tmp_path: Path) -> None:
    data_dir = restored(tmp_path / "var", journal=lives.second, ledger=lives.first)
    starts_and_stops(data_dir)
    check_all(data_dir, lives.fleet)


def test_a_ledger_that_is_gone_is_computed_from_the_journal(lives: Lives, tmp_path: Path) -> None:
    data_dir = restored(tmp_path / "var", journal=lives.second, ledger=lives.first)
    (data_dir / "ledger.db").unlink()
    starts_and_stops(data_dir)
    check_all(data_dir, lives.fleet)


def test_a_journal_that_is_gone_is_refused(lives: Lives, tmp_path: Path) -> None:
    data_dir = restored(tmp_path / "var", journal=lives.second, ledger=lives.second)
    (data_dir / "journal.db").unlink()
    assert "no journal.db beside it" in refused(data_dir)


def test_an_older_journal_that_has_gone_on_is_refused(lives: Lives, tmp_path: Path) -> None:
    """Its rows have the numbers of others that the ledger has folded: only the journal's chain tells."""
    data_dir = restored(tmp_path / "fork", journal=lives.first, ledger=lives.first)
    stranger = Fleet(base_seed() + 1)
    while rows(data_dir) <= rows(lives.second):
        live(data_dir, stranger)
    refused(restored(tmp_path / "var", journal=data_dir, ledger=lives.second))


def test_an_older_ledger_is_not_computed_from_a_journal_that_was_changed(lives: Lives, tmp_path: Path) -> None:
    """Row by row that journal looks as good as any: only its chain tells."""
    data_dir = restored(tmp_path / "var", journal=lives.second, ledger=lives.first)
    changed = rows(data_dir) - 20
    with closing(sqlite3.connect(data_dir / "journal.db")) as journal, journal:
        journal.execute("UPDATE journal SET received_ns = received_ns + 1 WHERE sequence = ?", (changed,))
    assert f"row {changed} was changed" in refused(data_dir)


def rows(data_dir: Path) -> int:
    return sum(1 for _ in journal_rows(data_dir))


def test_both_older_cannot_be_told_but_by_a_head_kept_elsewhere(lives: Lives, tmp_path: Path) -> None:
    """What was acknowledged since the backup is gone, and no file here says so; what is left is billed right."""
    data_dir = restored(tmp_path / "var", journal=lives.first, ledger=lives.first)
    starts_and_stops(data_dir)
    check_ledger(data_dir)
    with pytest.raises(AssertionError, match="acknowledged, but not in the journal"):
        check_journal(data_dir, lives.fleet)
