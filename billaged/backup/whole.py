"""A backup of a whole data directory while its daemon runs: ledger, journal, segments, snapshots, one after the other.

In this order the journal's copy holds all that the ledger's has folded and more, and the segments all that has
left the journal's: a start from the copies folds what the ledger's lacks, and is exact up to the journal's end.
"""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import IO, Final

from billaged import __version__
from billaged.backup.contents import DATABASES, Entry, Manifest
from billaged.backup.meter import Meter
from billaged.backup.moving import SyncedWriter, bytes_of, check_room, same_disk
from billaged.backup.targets import Folder, Tar, Target
from billaged.intake.journal_file import JournalFile
from billaged.intake.segment_file import segments_in
from billaged.intake.segments import FOLDER_NAME as SEGMENTS
from billaged.intake.sqlite import FILE_NAME as JOURNAL
from billaged.ledger.backup import look_at
from billaged.ledger.copying import BytesDone, Pace, new_file, own_folder, sync_folder
from billaged.ledger.cuts import FOLDER_NAME as SNAPSHOTS
from billaged.ledger.cuts import cuts_in
from billaged.ledger.database import FILE_NAME as LEDGER
from billaged.model.errors import StorageError
from billaged.model.time import format_instant

_BLOCK_BYTES: Final = 2**20


def back_up_into_folder(data_dir: Path, folder: Path, spare_bytes: int, pace: Pace, told: BytesDone) -> Manifest:
    """Back up into a new folder, or an empty one. ``spare_bytes`` are what the daemon needs free on its disk.

    Raises:
        StorageError: something cannot be read or written, or there is no room for it.
    """
    with _named(folder):
        if folder.exists() and any(folder.iterdir()):
            raise StorageError(f"{folder} is not empty.", "Choose a new folder for each backup.")
        _refuse_inside(data_dir, folder)
        made = _missing_parent(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        meter = Meter(data_dir, pace, told)
        check_room(folder, _all_bytes(data_dir), spare_bytes if same_disk(folder, data_dir) else 0)
        manifest = _back_up(data_dir, Folder(folder, meter))
        sync_folder(made)
        return manifest


def back_up_into_tar(data_dir: Path, file: Path, spare_bytes: int, pace: Pace, told: BytesDone) -> Manifest:
    """Back up into a new tar file; each database's copy is made beside it first.

    Raises:
        StorageError: as ``back_up_into_folder``.
    """
    _refuse_inside(data_dir, file)
    with _named(file), new_file(file) as (descriptor, _):
        needed = _all_bytes(data_dir) + _stage_bytes(data_dir)
        check_room(file.parent, needed, spare_bytes if same_disk(file.parent, data_dir) else 0)
        return _into_stream(data_dir, SyncedWriter(descriptor), file.parent, pace, told)


def back_up_into_stream(data_dir: Path, stream: IO[bytes], spare_bytes: int, pace: Pace, told: BytesDone) -> Manifest:
    """Write a tar file to a stream; each database's copy is made in the folder for temporary files first.

    Raises:
        StorageError: as ``back_up_into_folder``.
    """
    stage = Path(gettempdir())
    with _named(stage):
        check_room(stage, _stage_bytes(data_dir), spare_bytes if same_disk(stage, data_dir) else 0)
        return _into_stream(data_dir, stream, stage, pace, told)


def _into_stream(
    data_dir: Path, stream: IO[bytes] | SyncedWriter, stage: Path, pace: Pace, told: BytesDone
) -> Manifest:
    meter = Meter(data_dir, pace, told)
    with (
        own_folder(stage) as own,
        tarfile.open(fileobj=stream, mode="w|", bufsize=_BLOCK_BYTES, format=tarfile.PAX_FORMAT) as archive,  # type: ignore[call-overload]
    ):
        return _back_up(data_dir, Tar(archive, own, meter))


def _back_up(data_dir: Path, target: Target) -> Manifest:
    for name in DATABASES:
        if not (data_dir / name).exists():
            raise StorageError(
                f"there is no {name} in {data_dir}.",
                "Point --data-dir or UNKEY_BILLAGED_DATA_DIR at the daemon's data directory.",
            )
    entry, copy = target.database(data_dir / LEDGER)
    files, ledger = [entry], look_at(copy)
    entry, copy = target.database(data_dir / JOURNAL)
    files.append(entry)
    with closing(JournalFile(copy)) as journal:
        about, head = journal.about(), journal.head()
    if ledger.journal_id not in ("", about.journal_id):
        raise StorageError(
            f"the ledger was folded from journal {ledger.journal_id}, but the journal beside it is {about.journal_id}."
        )
    if not about.left.sequence <= ledger.position <= head.sequence:
        # Rows leave once they are in the ledger, an hour after they came or later.
        raise StorageError(
            f"the ledger's copy has folded up to row {ledger.position}, the journal's holds"
            f" {about.left.sequence + 1} to {head.sequence}: that took longer than rows stay in the journal.",
            "Raise UNKEY_BILLAGED_JOURNAL_RETENTION, or back up faster (--rate).",
        )
    files += _files(data_dir, target, ledger.position)
    manifest = Manifest(
        __version__,
        format_instant(int(time.time()) * 10**9),
        about.journal_id,
        head.sequence,
        head.chain.hex(),
        ledger.schema,
        ledger.position,
        files,
    )
    target.finish(manifest)
    return manifest


def _files(data_dir: Path, target: Target, ledger_position: int) -> Iterator[Entry]:
    """Segments, and the snapshots that were taken before the ledger's copy."""
    paths = [segment.path for segment in segments_in(data_dir / SEGMENTS)]
    paths += [cut.path for cut in cuts_in(data_dir / SNAPSHOTS) if cut.position <= ledger_position]
    for path in paths:
        try:
            yield target.file(path, f"{path.parent.name}/{path.name}")
        except FileNotFoundError:
            # It was kept long enough, and has just been deleted.
            if path.exists():
                raise


def _all_bytes(data_dir: Path) -> int:
    paths = [segment.path for segment in segments_in(data_dir / SEGMENTS)]
    paths += [cut.path for cut in cuts_in(data_dir / SNAPSHOTS)]
    return sum(bytes_of(data_dir / name) for name in DATABASES) + sum(path.stat().st_size for path in paths)


def _stage_bytes(data_dir: Path) -> int:
    return max(bytes_of(data_dir / name) for name in DATABASES)


def _refuse_inside(data_dir: Path, target: Path) -> None:
    if data_dir.resolve() in target.resolve().parents:
        raise StorageError(
            f"{target} is in the data directory {data_dir} itself: what takes the one takes the other.",
            "Choose a place outside, on another disk.",
        )


def _missing_parent(folder: Path) -> Path:
    """The first folder above that is there already: the names below it have to be made durable."""
    return next(above for above in folder.absolute().parents if above.exists())


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """
    Raises:
        StorageError: for any error of the system's.
    """
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else os.fspath(target)
        raise StorageError(f"the backup cannot be made: {where}: {error.strerror}.") from error
