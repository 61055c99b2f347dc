"""An auditor's copy: on a disk that nobody can write, or with a ledger that says two things."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from backup_fixtures import change, data_directory, run

from billaged.directory import DataDirectory
from billaged.model.errors import StorageError
from billaged.storage import open_stores

READING = (
    ("verify",),
    ("journal", "head"),
    ("vms",),
    ("ledger", "check"),
    ("journal", "cuts"),
    ("bill", "--period", "2026-11-10", "--customer", "acme"),
)
COLUMNS = "journal_id, position, epoch, window_number, window_start_ns, rules, clock, chain, passed_ns"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return data_directory(tmp_path / "var")


# --- a disk that nobody can write ----------------------------------------------------


# In a mount namespace of its own: nothing of it is left on the machine.
MOUNTED = (
    *("unshare", "--user", "--map-root-user", "--mount", "sh", "-c"),
    'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"',
    "sh",
)
RUN_ALL = """
import json, sys
from backup_fixtures import run
print(json.dumps([run(*command) for command in json.loads(sys.argv[1])]))
"""


def run_mounted(directory: Path, *commands: tuple[str, ...]) -> list[tuple[int, str, str]]:
    """What commands say to whom the directory is mounted read-only."""
    mounted = [*MOUNTED, str(directory)]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    asked = [[*command, "--data-dir", str(directory)] for command in commands]
    ended = subprocess.run(
        [*mounted, sys.executable, "-c", RUN_ALL, json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    return [(code, out, err) for code, out, err in json.loads(ended.stdout)]


def test_all_that_reads_reads_it_there(directory: Path, tmp_path: Path) -> None:
    # What readers leave: there is nothing in it.
    (directory / "journal.db-wal").touch()
    backup = ("backup", "--to", str(tmp_path / "copy"), "--rate", "0")
    for command, (code, out, err) in zip([*READING, backup], run_mounted(directory, *READING, backup), strict=True):
        assert (code, err) == (0, ""), (command, out)
    assert run("verify", "--data-dir", tmp_path / "copy")[0] == 0


def test_a_log_beside_it_is_one_clear_error(directory: Path) -> None:
    """As of a daemon that was killed: what is in the log must not be left out."""
    for name in ("ledger", "journal"):
        with closing(sqlite3.connect(directory / f"{name}.db")) as held:
            held.execute("CREATE TABLE another (one)")
            # Whoever closes it would put it into the file.
            shutil.copy(directory / f"{name}.db-wal", directory / "kept")
        (directory / "kept").rename(directory / f"{name}.db-wal")
    commands = READING[:3]
    for command, (code, out, err) in zip(commands, run_mounted(directory, *commands), strict=True):
        assert code == 1, (command, out)
        assert "is on a read-only disk, and what is in " in err + out
        assert "unable to open" not in err + out


def test_one_whose_daemon_runs_is_read_by_a_mount_of_it(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "ledger.db")) as held:
        held.execute("CREATE TABLE another (one)")
        [(code, _, err)] = run_mounted(directory, ("vms",))
        assert (code, err) == (0, "")


# --- a ledger that says two things ---------------------------------------------------


@pytest.mark.parametrize("command", [("verify",), ("journal", "replay"), ("ledger", "check"), ("vms",)])
def test_a_second_checkpoint_is_one_clear_error(directory: Path, command: tuple[str, ...]) -> None:
    change(
        directory / "ledger.db",
        f"INSERT INTO checkpoint (part, {COLUMNS}) SELECT part + 1, {COLUMNS} FROM checkpoint",
    )
    code, _, err = run(*command, "--data-dir", directory)
    assert code == 1
    assert "the ledger's checkpoint is damaged: it has more than one row." in err
    held = DataDirectory(directory)
    try:
        with pytest.raises(StorageError, match="it has more than one row"):
            open_stores(held)
    finally:
        held.release()
