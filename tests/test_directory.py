"""The data directory: private, and one daemon's at a time."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from billaged.directory import DataDirectory
from billaged.model.errors import StorageError


def test_it_is_made_with_its_parents_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "var" / "lib" / "billaged"
    directory = DataDirectory(path)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE((path / "lock").stat().st_mode) == 0o600
        assert (path / "lock").read_text() == f"{os.getpid()}\n"
    finally:
        directory.release()


def test_one_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    directory = DataDirectory(tmp_path)
    directory.release()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_second_holder_is_told_the_first_ones_pid(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    try:
        with pytest.raises(StorageError, match=rf"held by another billaged \(pid {os.getpid()}\)") as caught:
            DataDirectory(tmp_path)
        assert "UNKEY_BILLAGED_DATA_DIR" in caught.value.hint
        # To be refused changes nothing for the holder.
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    finally:
        directory.release()
    DataDirectory(tmp_path).release()


def test_a_holder_that_was_killed_leaves_no_lock_behind(tmp_path: Path) -> None:
    """The lock is the kernel's: a stale file means nothing."""
    hold = "import os, pathlib, sys; from billaged.directory import DataDirectory; "
    hold += "DataDirectory(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", hold, str(tmp_path)], timeout=30, check=False)
    assert done.returncode == -9
    assert (tmp_path / "lock").read_text().strip().isdigit()
    DataDirectory(tmp_path).release()


def test_a_lock_that_takes_no_pid_is_held_all_the_same(tmp_path: Path) -> None:
    """As on a full disk: a start that could not even say who holds it would leave a traceback, and wait for nobody."""
    hold = "import fcntl, pathlib, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    hold += "from billaged.directory import DataDirectory; d = DataDirectory(pathlib.Path(sys.argv[1])); "
    hold += "fcntl.flock(open(d.path / 'lock'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run(
        [sys.executable, "-c", hold, str(tmp_path)], timeout=30, check=False, capture_output=True, text=True
    )
    assert "BlockingIOError" in done.stderr
    assert "the pid could not be written" in done.stderr
    DataDirectory(tmp_path).release()


def test_a_place_that_cannot_be_a_directory_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "var"):
        with pytest.raises(StorageError, match="cannot be used") as caught:
            DataDirectory(path)
        assert "UNKEY_BILLAGED_DATA_DIR" in caught.value.hint


def test_it_knows_the_room_that_is_left(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    try:
        assert 0 < directory.free_bytes() <= shutil.disk_usage(tmp_path).total
    finally:
        directory.release()
