"""A backup that somebody has tampered with is refused in one line, whatever is in it."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backup_fixtures import data_directory, done, files_of, refused


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return data_directory(tmp_path / "var")


@pytest.fixture
def backup(directory: Path, tmp_path: Path) -> Path:
    done("backup", "--to", tmp_path / "backup", "--data-dir", directory)
    return tmp_path / "backup"


def edit(backup: Path, change: Callable[[Any], None]) -> None:
    path = backup / "backup.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def pipe(backup: Path) -> None:
    (backup / "ledger.db").unlink()
    os.mkfifo(backup / "ledger.db")


@pytest.mark.parametrize(
    "how",
    [
        lambda backup: (backup / "backup.json").write_text("[" * 200_000),
        lambda backup: edit(backup, lambda fields: fields.update(ledger_schema=["0003"])),
        lambda backup: edit(backup, lambda fields: fields.update(ledger_schema="\x1b[2J")),
        lambda backup: edit(backup, lambda fields: fields.update(journal_position="12")),
        lambda backup: edit(backup, lambda fields: fields["files"][0].update(bytes="12")),
        lambda backup: edit(backup, lambda fields: fields["files"][0].update(bytes=-12)),
        pipe,
    ],
    ids=["deep", "schema list", "schema escape", "position text", "size text", "size negative", "pipe"],
)
def test_a_folder(directory: Path, backup: Path, how: Callable[[Path], object]) -> None:
    how(backup)
    before = files_of(directory)
    said = refused("restore", backup, "--data-dir", directory)
    assert "\x1b" not in said and "Traceback" not in said
    assert files_of(directory) == before


def test_a_name_in_a_tar_file_moves_no_cursor(directory: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "backup.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("backup/\x1b[2J\nbillaged: all is well"), io.BytesIO())
    said = refused("restore", tmp_path / "backup.tar", "--data-dir", directory)
    assert "\x1b" not in said and len(said.splitlines()) == 1
