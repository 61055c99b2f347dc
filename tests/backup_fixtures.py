"""A data directory to back up and restore, the commands that do it, and what changes files behind their backs."""

from __future__ import annotations

import atexit
import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from click.testing import CliRunner
from daemon_process import ROOT, environment
from report_fixtures import GIB, DataDir, at, batch

from billaged.cli.errors import exit_code
from billaged.cli.main import billaged
from billaged.intake.segments import Segments
from billaged.model.errors import BillagedError
from billaged.model.records import FoldRules, Record, Tick
from billaged.model.time import MINUTE_NANOS, NANOS

RECEIVED_LONG_AFTER = 2**62
LEFT = 12


def samples(first: int, last: int, vm_id: str = "a") -> list[Record]:
    start_ns = at("10:00:00")
    return [batch(vm_id, (start_ns + at_ * MINUTE_NANOS, GIB, at_ * NANOS)) for at_ in range(first, last + 1)]


RECORDS: list[Record] = [FoldRules(), Tick(at("10:00:00"), 0, False), *samples(1, 28)]


# --- the directory -----------------------------------------------------------------


@cache
def _made() -> Path:
    """Making it takes longer than copying it."""
    path = Path(mkdtemp(prefix="billaged-test-"))
    atexit.register(shutil.rmtree, path)
    with closing(DataDir(path)) as made:
        made.put(*RECORDS)
        segments = Segments(path / "segments")
        for after, last in ((0, 5), (5, LEFT)):
            assert segments.archive(made.journal, after, last, RECEIVED_LONG_AFTER) == last
        made.journal.prune(LEFT)
    return path


def data_directory(path: Path) -> Path:
    """Rows 1 to 12 in two segments, the rest in the journal, all of them in the ledger."""
    return shutil.copytree(_made(), path)


def carry_on(directory: Path, *records: Record) -> None:
    with closing(DataDir(directory)) as made:
        made.put(*records)


def files_of(folder: Path) -> dict[str, bytes]:
    """All that counts in a data directory."""
    passing = {"lock"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in passing and not path.name.endswith(("-shm", "-wal"))
    }


def ledger_tables(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


# --- the commands --------------------------------------------------------------------


def run(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, stdout, and what stderr or the error says."""
    result = CliRunner().invoke(billaged, [str(argument) for argument in arguments], input=stdin)
    if isinstance(result.exception, BillagedError):
        return exit_code(result.exception), result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def done(*arguments: str | Path, stdin: bytes = b"") -> dict[str, Any]:
    """What a command that must work says."""
    code, out, err = run(*arguments, "--json", stdin=stdin)
    assert (code, err) == (0, "")
    return dict(json.loads(out))


def refused(*arguments: str | Path, stdin: bytes = b"") -> str:
    """What a command says that must not work; one line."""
    code, out, err = run(*arguments, stdin=stdin)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    return err


def live(directory: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own, as an operator has it beside the daemon."""
    ended = subprocess.run(
        [sys.executable, "-m", "billaged", *map(str, arguments)],
        env=environment(directory, {}),
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended
    return ended


# --- behind their backs --------------------------------------------------------------


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            assert connection.execute(statement).rowcount, statement


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
