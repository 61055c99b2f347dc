"""What a backup of a data directory holds, and what it says of itself: ``backup.json``, written when all is there."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from billaged.intake.segments import FOLDER_NAME as SEGMENTS
from billaged.intake.sqlite import FILE_NAME as JOURNAL
from billaged.ledger.cuts import FOLDER_NAME as SNAPSHOTS
from billaged.ledger.database import FILE_NAME as LEDGER
from billaged.model.errors import StorageError

MANIFEST: Final = "backup.json"
# Each backup has both.
DATABASES: Final = (LEDGER, JOURNAL)
# Of these as many files as there are.
FOLDERS: Final = (SEGMENTS, SNAPSHOTS)

_FORMAT: Final = 1
_FILE: Final = re.compile(rf"{SEGMENTS}/journal-\d{{16}}-\d{{16}}\.jsonl\.gz|{SNAPSHOTS}/ledger-\d{{16}}\.db\.gz")
_ANOTHER: Final = "Take another backup."


class Entry(NamedTuple):
    """A file of a backup: its name below the data directory, its size and SHA-256."""

    name: str
    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """What a backup says about itself; the positions are journal rows."""

    billaged: str
    # RFC 3339.
    made: str
    journal_id: str
    journal_position: int
    # What stands for every row up to there, in hexadecimal.
    journal_chain: str
    ledger_schema: str
    ledger_position: int
    files: Sequence[Entry]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)

    def as_json(self) -> str:
        fields = {"format": _FORMAT, **self._asdict(), "files": [entry._asdict() for entry in self.files]}
        return json.dumps(fields, indent=2)


def read_manifest(text: bytes, origin: str) -> Manifest:
    """
    Raises:
        StorageError: it is none, or of a later format.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        if fields.pop("format") != _FORMAT:
            raise StorageError(f"{origin} was made by a later version of billaged.", "Restore it with that one.")
        manifest = Manifest(**{**fields, "files": [Entry(**entry) for entry in fields["files"]]})
        names = [entry.name for entry in manifest.files]
        whole = len(set(names)) == len(names) and all(map(is_known, names)) and set(DATABASES) <= set(names)
        whole = whole and _has_types(manifest) and all(map(_has_types, manifest.files))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StorageError(f"{MANIFEST} of {origin} is damaged: {error}.", _ANOTHER) from error
    if not whole:
        raise StorageError(f"{MANIFEST} of {origin} is damaged: its files are {names}.", _ANOTHER)
    return manifest


def _has_types(record: Manifest | Entry) -> bool:
    """Whether its texts are printable, and its numbers are some; who tampered with a backup may write anything."""
    values = record._asdict()
    values.pop("files", None)
    of_numbers = {"bytes", "journal_position", "ledger_position"}
    return all(
        type(value) is int and value >= 0 if name in of_numbers else isinstance(value, str) and value.isprintable()
        for name, value in values.items()
    )


def check_files(manifest: Manifest, found: Sequence[Entry], origin: str) -> None:
    """
    Raises:
        StorageError: a file is not as it was written, is missing, or is one too many; the message names it.
    """
    there = {entry.name: entry for entry in found}
    for entry in manifest.files:
        if entry.name not in there:
            raise StorageError(f"{origin} lacks {entry.name}.", _ANOTHER)
        if there.pop(entry.name) != entry:
            raise StorageError(f"{entry.name} of {origin} is not what was written: it is damaged.", _ANOTHER)
    if there:
        raise StorageError(f"{origin} has {', '.join(sorted(there))}, which its {MANIFEST} does not know.", _ANOTHER)


def is_known(name: str) -> bool:
    """Whether a backup may have a file of this name: no other is ever written."""
    return name in DATABASES or _FILE.fullmatch(name) is not None
