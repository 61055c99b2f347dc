"""systemd/billaged-command, as the template's service runs it: whole files or none, and no more than are to be kept."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from daemon_calls import until
from daemon_process import ROOT, environment

YEAR = datetime.now(UTC).year


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script, with the real command beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "billaged"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m billaged "$@"\n')
    command.chmod(0o755)
    return Path(shutil.copy(ROOT / "systemd" / "billaged-command", folder))


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    (tmp_path / "reports").mkdir()
    return tmp_path / "reports"


def run(script: Path, reports: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script, *arguments],
        env=environment(None, {}) | {"PYTHONPATH": str(ROOT)} | more,
        cwd=reports,
        capture_output=True,
        text=True,
        timeout=60,
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def make(folder: Path, *old: str) -> None:
    """Files of former runs, the first one the oldest."""
    for age, name in enumerate(reversed(old), 1):
        (folder / name).touch()
        os.utime(folder / name, (1_700_000_000 - age, 1_700_000_000 - age))


def test_so_many_files_stay_and_nobody_elses_go(script: Path, reports: Path) -> None:
    old = [f"a (1).b-{year}-01.json" for year in (2001, 2002, 2003)]
    others = ["a (1).b-corp-2001-01.json", "a (1)xb-2001-01.json", "a (1).b-2001-01.json.gz"]
    make(reports, *others, *old)
    (reports / "a (1).b-2000-01.json").mkdir()
    done = run(script, reports, "version", OUTPUT="a (1).b-%Y-%m.json", KEEP="2")
    assert (done.returncode, done.stderr) == (0, "")
    [new] = names(reports) - {*old, *others, "a (1).b-2000-01.json"}
    assert new.startswith(f"a (1).b-{YEAR}-")
    assert names(reports) == {new, old[2], *others, "a (1).b-2000-01.json"}
    assert done.stdout.splitlines() == [f"wrote {new}", f"removed ./{old[1]}", f"removed ./{old[0]}"]


def test_files_in_another_folder_are_counted_there(script: Path, reports: Path, tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    backups.mkdir()
    make(backups, "2001.txt", "2002.txt")
    make(reports, "2001.txt")
    assert run(script, reports, "version", OUTPUT=f"{backups}/%Y.txt", KEEP="1").returncode == 0
    assert (names(backups), names(reports)) == ({f"{YEAR}.txt"}, {"2001.txt"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"OUTPUT": "%Y.txt", "KEEP": "0"}, "KEEP is no number of files"),
        ({"OUTPUT": "%Y.txt", "KEEP": "7 days"}, "KEEP is no number of files"),
        ({"OUTPUT": "%b.txt", "KEEP": "7"}, "KEEP wants times in digits: OUTPUT=%b.txt"),
        ({"KEEP": "7"}, "KEEP is for files; set OUTPUT"),
    ],
)
def test_what_would_remove_the_wrong_files_is_refused(
    script: Path, reports: Path, settings: dict[str, str], said: str
) -> None:
    make(reports, "2001.txt")
    done = run(script, reports, "version", **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert names(reports) == {"2001.txt"}


def test_a_failed_command_leaves_all_as_it_was(script: Path, reports: Path) -> None:
    make(reports, "2001.txt", "2002.txt")
    assert run(script, reports, "no-such-command", OUTPUT="%Y.txt", KEEP="1").returncode == 2
    assert names(reports) == {"2001.txt", "2002.txt"}


def test_one_that_takes_too_long_leaves_no_half_a_file(script: Path, reports: Path) -> None:
    """A service's whole group is asked to end."""
    with subprocess.Popen(
        [script, "serve"],
        env=environment(None, {"STORE": "memory"}) | {"PYTHONPATH": str(ROOT), "OUTPUT": "log"},
        cwd=reports,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        part = reports / "log.part"
        until(lambda: part.exists() and '"message": "serving"' in part.read_text(), "half a file")
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert names(reports) == set()
