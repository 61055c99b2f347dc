"""Where a backup of a data directory goes: a new folder, or a tar stream."""

from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path
from typing import Protocol

from billaged.backup.contents import MANIFEST, Entry, Manifest
from billaged.backup.meter import Meter
from billaged.backup.moving import Digesting, SyncedWriter, pour
from billaged.ledger.backup import stamp
from billaged.ledger.copying import copy_database, new_file


class Target(Protocol):
    """Each raises StorageError or OSError where it cannot be written."""

    def database(self, source: Path) -> tuple[Entry, Path]:
        """Take a copy of it; the copy can be opened until the next one is taken."""

    def file(self, source: Path, name: str) -> Entry:
        """A file that is never changed; the name is below the data directory."""

    def finish(self, manifest: Manifest) -> None:
        """All of it is there: say so."""


class Folder:
    """Laid out like a data directory: whatever reads one reads the backup."""

    def __init__(self, path: Path, meter: Meter) -> None:
        self._path = path
        self._meter = meter

    def database(self, source: Path) -> tuple[Entry, Path]:
        target = self._path / source.name
        copy_database(source, target, self._meter.pace, self._meter.copied())
        with target.open("rb") as copy:
            return pour(copy, None, source.name, self._meter.moved), target

    def file(self, source: Path, name: str) -> Entry:
        target = self._path / name
        target.parent.mkdir(mode=0o700, exist_ok=True)
        with source.open("rb") as reader, new_file(target) as (descriptor, _):
            return pour(reader, SyncedWriter(descriptor), name, self._meter.moved)

    def finish(self, manifest: Manifest) -> None:
        with new_file(self._path / MANIFEST) as (descriptor, _):
            SyncedWriter(descriptor).write(manifest.as_json().encode() + b"\n")


class Tar:
    """One stream. Each database is copied into a folder of its own before it goes in: its size comes first."""

    def __init__(self, archive: tarfile.TarFile, stage: Path, meter: Meter) -> None:
        self._archive = archive
        self._stage = stage
        self._meter = meter
        # Unpacked, it is one folder.
        self._folder = f"billaged-{stamp()}"

    def database(self, source: Path) -> tuple[Entry, Path]:
        for before in self._stage.iterdir():
            before.unlink()
        target = self._stage / source.name
        copy_database(source, target, self._meter.pace, self._meter.copied())
        return self._add(target, source.name), target

    def file(self, source: Path, name: str) -> Entry:
        return self._add(source, name)

    def finish(self, manifest: Manifest) -> None:
        text = manifest.as_json().encode() + b"\n"
        self._archive.addfile(self._info(MANIFEST, len(text)), io.BytesIO(text))

    def _add(self, path: Path, name: str) -> Entry:
        with path.open("rb") as reader:
            digesting = Digesting(reader, self._meter.moved)
            self._archive.addfile(self._info(name, os.fstat(reader.fileno()).st_size), digesting)
        return digesting.entry(name)

    def _info(self, name: str, size: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(f"{self._folder}/{name}")
        info.size, info.mode, info.mtime = size, 0o600, int(time.time())
        return info
