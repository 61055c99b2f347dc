"""How a SQLite file is opened by those who only read it: a daemon's while it runs, or a copy on a disk like a CD."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from billaged.model.errors import StorageError

_READ_ONLY: Final = {"mode": "ro"}
# SQLite then asks for no file beside it. What it reads must not change, which a disk that nobody can write is told.
_IMMUTABLE: Final = {**_READ_ONLY, "immutable": "1"}


def read_only_uri(path: Path) -> str:
    """For ``sqlite3.connect`` and ATTACH.

    Raises:
        StorageError: it has a log beside it that cannot be read where it is.
    """
    return f"{path.resolve().as_uri()}?{urlencode(read_only_options(path))}"


def read_only_options(path: Path) -> dict[str, str]:
    """The same, for whoever puts the URI together.

    Raises:
        StorageError: as ``read_only_uri``.
    """
    real = path.resolve()
    try:
        is_read_only = bool(os.statvfs(real).f_flag & os.ST_RDONLY)
    except OSError:
        # SQLite says why.
        return _READ_ONLY
    if not is_read_only:
        return _READ_ONLY
    log, index = (real.with_name(real.name + ending) for ending in ("-wal", "-shm"))
    if not log.exists() or not log.stat().st_size:
        return _IMMUTABLE
    if not index.exists():
        raise StorageError(
            f"{path} is on a read-only disk, and what is in {log.name} beside it cannot be read there.",
            "Copy the folder to a place that can be written, and read it there.",
        )
    # A daemon may write it by another mount, and keeps these files for its readers.
    return _READ_ONLY
