"""One segment file: rows that left the journal, gzip, a JSON line a row. Readable without billaged.

Payloads are base64, chains hexadecimal. The first line also has ``previous``: the chain of the row before it,
so that each segment can be verified by itself, whatever became of the ones before.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from billaged.intake.journal import Head, JournalRow, has_types
from billaged.model.errors import StorageError

_NAME: Final = re.compile(r"journal-(\d{16})-(\d{16})\.jsonl\.gz")
_CHUNK_ROWS: Final = 4_096
_DAMAGE: Final = (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, AttributeError)


class SegmentFile(NamedTuple):
    """A segment by its name: its first and last sequence."""

    first: int
    last: int
    path: Path

    def rows(self) -> Iterator[list[JournalRow]]:
        """Its rows, in chunks.

        Raises:
            StorageError: a line is none, or it ends in the middle; the message names the place.
        """
        rows: list[JournalRow] = []
        last = None
        try:
            with gzip.open(self.path, "rb") as packed:
                for line in packed:
                    rows.append(_row(json.loads(line)))
                    if len(rows) == _CHUNK_ROWS:
                        yield rows
                        last, rows = rows[-1].sequence, []
        except _DAMAGE as error:
            # What could be read is well.
            if rows:
                yield rows
                last = rows[-1].sequence
            place = "at its beginning" if last is None else f"after row {last}"
            raise StorageError(
                f"the segment {self.path} is damaged {place}: {error}.", "Restore it from a backup."
            ) from error
        yield rows

    def known(self) -> Head | None:
        """What its first row goes on from; None where it does not say.

        Raises:
            StorageError: its first line is none.
        """
        try:
            with gzip.open(self.path, "rb") as packed:
                fields = json.loads(packed.readline())
                previous = bytes.fromhex(fields.get("previous", ""))
                return Head(int(fields["sequence"]) - 1, previous) if previous else None
        except _DAMAGE as error:
            raise StorageError(
                f"the segment {self.path} is damaged at its beginning: {error}.", "Restore it from a backup."
            ) from error


def segments_in(folder: Path) -> list[SegmentFile]:
    """The segments of a folder, in order; of two that begin alike the longer one last."""
    found = []
    for path in folder.glob("journal-*.jsonl.gz") if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            found.append(SegmentFile(int(match[1]), int(match[2]), path))
    return sorted(found)


def write_segment(folder: Path, rows: Sequence[JournalRow], previous: bytes) -> None:
    """Write the rows into a segment of their own, synced before it has its name."""
    folder.mkdir(mode=0o700, exist_ok=True)
    name = f"journal-{rows[0].sequence:016d}-{rows[-1].sequence:016d}.jsonl.gz"
    unfinished = folder / f"{name}.tmp"
    with unfinished.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        # No time stamp in it: the same rows give the same bytes.
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, mtime=0, filename="") as packed:
            for row in rows:
                packed.write(_line(row, previous))
                previous = b""
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(folder / name)
    _sync_folder(folder)


def _line(row: JournalRow, previous: bytes) -> bytes:
    fields: dict[str, Any] = row._asdict()
    fields["payload"] = base64.b64encode(row.payload).decode()
    fields["chain"] = row.chain.hex()
    if previous:
        fields["previous"] = previous.hex()
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _row(fields: dict[str, Any]) -> JournalRow:
    fields.pop("previous", None)
    fields["payload"] = base64.b64decode(fields["payload"], validate=True)
    fields["chain"] = bytes.fromhex(fields.get("chain", ""))
    row = JournalRow(**fields)
    if not has_types(row):
        raise TypeError("a value is not of its type")
    return row


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
