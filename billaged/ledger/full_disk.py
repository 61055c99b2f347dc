"""Whether an error means that a disk is full: nothing is damaged then."""

from __future__ import annotations

import errno
import sqlite3


def is_full(error: BaseException | None) -> bool:
    """Whether it was one, or came of one."""
    while error is not None:
        # SQLAlchemy wraps the driver's own error.
        said = getattr(error, "orig", error)
        if isinstance(said, sqlite3.Error) and said.sqlite_errorcode == sqlite3.SQLITE_FULL:
            return True
        if isinstance(said, OSError) and said.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False
