"""Torn, cut and flipped bytes after a crash, in the logs (-wal) and in the main files.

SQLite's logs have checksums: what of them does not hold is as if it had never been written. Its main files have
none: what a flipped bit does there shows at the start, in `billaged journal verify` or `replay`, or not at all, but
then the bill is right.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from auditor.biller import Biller
from daemon_calls import until
from daemon_process import ROOT, DaemonProcess, environment
from fuzz.judge import journal_rows

from faults.doomed import DoomedDaemon
from faults.judge import check_journal, check_ledger
from faults.load import Fleet
from faults.scale import base_seed, scaled
from faults.settings import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

# No ticks: what is in the files is what the load put there.
QUIET = SETTINGS | {"AGGREGATION_INTERVAL": "24h"}
FRAME_BYTES = 24 + 4096
SEEDS = [base_seed() + number for number in range(scaled(1, 1, 8))]

# A flipped bit may make a file look like another version's, or another program's.
WHAT_TO_DO = (
    "Restore",
    "Put back",
    "See the disk",
    "Use the version",
    "another data directory",
    "fold the journal anew",
)

Damage = Callable[[random.Random, bytes], bytes]


class Crashed(NamedTuple):
    """A data directory that lived, stopped, lived again and was killed, its clients, and where its ledger stood."""

    data_dir: Path
    fleet: Fleet
    rows: int
    ledger_position: int


def crashed(folder: Path, flush_interval: str, *, level: bool) -> Crashed:
    data_dir, fleet = folder / "var", Fleet(base_seed())
    with DaemonProcess(data_dir, QUIET) as daemon:
        with fleet.under_load(daemon):
            fleet.until_acked(100)
        assert daemon.stop() == 0
    with DaemonProcess(data_dir, QUIET | {"LEDGER_FLUSH_INTERVAL": flush_interval}) as daemon:
        with fleet.under_load(daemon):
            fleet.until_acked(100)
        if level:
            until(lambda: daemon.stats()["journal"]["lag"] == 0, "a ledger that is up to date")
        else:
            assert daemon.stats()["journal"]["lag"] > 0
        daemon.kill()
    return Crashed(data_dir, fleet, *standing(data_dir, folder / "copy"))


def standing(data_dir: Path, scratch: Path) -> tuple[int, int]:
    """The journal's last row and the ledger's position, read from a copy: opening it would repair it."""
    shutil.copytree(data_dir, scratch)
    with (
        closing(sqlite3.connect(scratch / "journal.db")) as journal,
        closing(sqlite3.connect(scratch / "ledger.db")) as ledger,
    ):
        (rows,) = journal.execute("SELECT max(sequence) FROM journal").fetchone()
        (position,) = ledger.execute("SELECT position FROM checkpoint").fetchone()
    return rows, position


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    """Its ledger lacks what the last life acknowledged."""
    return crashed(tmp_path_factory.mktemp("behind"), "1m", level=False)


@pytest.fixture(scope="module")
def level(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    """Its ledger has all."""
    return crashed(tmp_path_factory.mktemp("level"), "10ms", level=True)


def damaged(before: Crashed, into: Path, file: str, damage: Damage, seed: int) -> Path:
    shutil.copytree(before.data_dir, into)
    content = (into / file).read_bytes()
    (into / file).write_bytes(damage(random.Random(seed), content))
    return into


def started(data_dir: Path) -> str | None:
    """Start and stop; None where it served, else the one line that says why not."""
    with DoomedDaemon(data_dir, QUIET) as daemon:
        if daemon.serves:
            code = daemon.stop()
            said = daemon.says()
            if code == 0:
                assert not said
                return None
        assert daemon.wait() == 1
        (line,) = daemon.says().splitlines()
        return line


# --- damages ---------------------------------------------------------------------------


def half_a_frame_more(chance: random.Random, content: bytes) -> bytes:
    """As a commit leaves it that was never acknowledged: the power went while it was written."""
    return content + chance.randbytes(chance.randrange(1, FRAME_BYTES))


def a_frame_of_nothing_more(chance: random.Random, content: bytes) -> bytes:
    """As file systems leave it that grew the file and never wrote it."""
    return content + bytes(FRAME_BYTES * chance.randrange(1, 4))


def flipped_at_its_end(chance: random.Random, content: bytes) -> bytes:
    return flipped(chance, content, len(content) - FRAME_BYTES)


def flipped_anywhere(chance: random.Random, content: bytes) -> bytes:
    return flipped(chance, content, 0)


def flipped(chance: random.Random, content: bytes, start: int) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(max(start, 0), len(content))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut_at_its_end(chance: random.Random, content: bytes) -> bytes:
    return content[: -chance.randrange(1, FRAME_BYTES)]


def cut_anywhere(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randrange(len(content))]


LOGS = ["journal.db-wal", "ledger.db-wal"][: scaled(1, 2, 2)]
TORN = [half_a_frame_more, a_frame_of_nothing_more][: scaled(1, 2, 2)]
LOST = [flipped_at_its_end, cut_at_its_end, flipped_anywhere, cut_anywhere][: scaled(1, 4, 4)]


def by_name(value: object) -> str:
    return getattr(value, "__name__", str(value))


# --- logs ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("damage", TORN, ids=by_name)
@pytest.mark.parametrize("file", LOGS)
def test_a_torn_tail_that_nobody_was_promised_loses_nothing(
    file: str, damage: Damage, seed: int, behind: Crashed, tmp_path: Path
) -> None:
    data_dir = damaged(behind, tmp_path / "var", file, damage, seed)
    assert started(data_dir) is None
    check_journal(data_dir, behind.fleet)
    check_ledger(data_dir)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("damage", LOST, ids=by_name)
def test_what_the_journals_log_has_lost_is_noticed_where_the_ledger_has_it(
    damage: Damage, seed: int, level: Crashed, tmp_path: Path
) -> None:
    data_dir = damaged(level, tmp_path / "var", "journal.db-wal", damage, seed)
    left, position = standing(data_dir, tmp_path / "copy")
    assert left < position == level.rows
    line = started(data_dir)
    assert line is not None
    assert "the journal is older than the ledger" in line
    assert "Put back the newer journal.db" in line


@pytest.mark.more_faults
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("damage", LOST, ids=by_name)
def test_what_the_journals_log_has_lost_cannot_be_noticed_where_the_ledger_never_had_it_but_the_rest_is_billed_right(
    damage: Damage, seed: int, behind: Crashed, tmp_path: Path
) -> None:
    """Two failures at once, bytes lost after their sync and a crash: only a journal's head kept elsewhere tells."""
    data_dir = damaged(behind, tmp_path / "var", "journal.db-wal", damage, seed)
    left, position = standing(data_dir, tmp_path / "copy")
    assert left < behind.rows
    line = started(data_dir)
    if left < position:
        assert line is not None
        assert "the journal is older than the ledger" in line
        return
    assert line is None
    check_ledger(data_dir)
    with pytest.raises(AssertionError, match="acknowledged, but not in the journal"):
        check_journal(data_dir, behind.fleet)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("damage", LOST, ids=by_name)
def test_what_the_ledgers_log_has_lost_is_computed_from_the_journal(
    damage: Damage, seed: int, level: Crashed, tmp_path: Path
) -> None:
    data_dir = damaged(level, tmp_path / "var", "ledger.db-wal", damage, seed)
    _, position = standing(data_dir, tmp_path / "copy")
    assert position < level.rows
    assert started(data_dir) is None
    check_journal(data_dir, level.fleet)
    check_ledger(data_dir)


# --- main files ------------------------------------------------------------------------


@pytest.mark.more_faults
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("damage", LOST, ids=by_name)
@pytest.mark.parametrize("file", ["journal.db", "ledger.db"])
def test_a_damaged_main_file_is_refused_or_found_by_verify_or_replay_or_bills_right(
    file: str, damage: Damage, seed: int, level: Crashed, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(level.data_dir, stopped)
    assert started(stopped) is None
    whole = level._replace(data_dir=stopped)
    data_dir = damaged(whole, tmp_path / "var", file, damage, seed)
    if (line := started(data_dir)) is not None:
        assert any(words in line for words in WHAT_TO_DO), line
        return
    if proved(data_dir):
        assert as_it_was(data_dir, whole)


def proved(data_dir: Path) -> bool:
    """Whether the commands for it say that journal and ledger are whole; each says it without a traceback."""
    codes = []
    for command in ("verify", "replay"):
        done = subprocess.run(
            [sys.executable, "-m", "billaged", "journal", command],
            env=environment(data_dir, {}),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in (0, 1)
        assert "Traceback" not in done.stderr, done.stderr
        codes.append(done.returncode)
    return not any(codes)


def as_it_was(data_dir: Path, whole: Crashed) -> bool:
    """Whether each row that was there is there, and the bill is theirs."""
    before, after = list(journal_rows(whole.data_dir)), list(journal_rows(data_dir))
    check_ledger(data_dir, Biller())
    return after[: len(before)] == before
