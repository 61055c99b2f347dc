"""Bytes of a spool that are no records any more, set aside beside it for whoever can make something of them.

Nothing here deletes such a file, and none is ever written over. Each damage is at most a segment
long; what they are together has no bound of ours, so it is said at each start.
"""

from __future__ import annotations

import logging
import os
from itertools import count
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

_SUFFIX: Final = ".damaged"


class DamageFolder:
    """The ``*.damaged`` files of a spool's directory. Every method raises OSError if the disk fails."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def say_what_is_there(self) -> None:
        sizes = [path.stat().st_size for path in self._directory.glob(f"*{_SUFFIX}")]
        if sizes:
            where = self._directory / f"*{_SUFFIX}"
            _log.warning("%d bytes of damaged usage were set aside in %s; nothing deletes them", sum(sizes), where)

    def keep(self, segment: Path, generation: int, start: int, data: bytes) -> None:
        """Make a copy of these bytes durable, once: the same damage is found again by who reads the segment again."""
        path = self._directory / f"{generation:020d}-{start}{_SUFFIX}"
        if path.exists() and path.read_bytes() == data:
            return
        # Complete under its name or not there: a copy cut short by a crash must not pass for the whole.
        unfinished = path.with_suffix(".unfinished")
        file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as copy:
            copy.write(data)
            copy.flush()
            os.fsync(file)
        path = _free(path)
        unfinished.rename(path)
        sync_directory(self._directory)
        _log.error("%s: damaged at byte %d: %d bytes set aside in %s", segment, start, len(data), path)

    def move(self, path: Path) -> None:
        """Set a whole file aside."""
        size_bytes = path.stat().st_size
        aside = _free(path.with_suffix(_SUFFIX))
        path.rename(aside)
        sync_directory(self._directory)
        _log.error("%s: not a spool file: %d bytes set aside in %s", path, size_bytes, aside)


def sync_directory(directory: Path) -> None:
    """Make its entries durable."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _free(path: Path) -> Path:
    """This path, or the next one with a number, that is not taken."""
    if not path.exists():
        return path
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return next(candidate for candidate in numbered if not candidate.exists())
