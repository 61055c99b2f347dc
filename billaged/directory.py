"""The data directory: one daemon's at a time, and nobody else's to read."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from typing import Final

from billaged.model.errors import StorageError

_log: Final = logging.getLogger("billaged.daemon")

_LOCK_NAME: Final = "lock"


class DataDirectory:
    """Made with mode 0700 where it is missing, and locked until ``release``."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            StorageError: it cannot be made or used, or another daemon holds it.
        """
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            # A backup that was put back may have come with a wider mode.
            for file in path.glob("*.db*"):
                file.chmod(0o600)
            self._lock = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"the data directory {path} cannot be used: {error.strerror}.",
                "Set UNKEY_BILLAGED_DATA_DIR to a directory this user may write.",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip()
            os.close(self._lock)
            raise StorageError(
                f"the data directory {path} is held by another billaged" + (f" (pid {holder})." if holder else "."),
                "Stop that one, or set UNKEY_BILLAGED_DATA_DIR to another directory.",
            ) from error
        self._say_who()

    def _say_who(self) -> None:
        pid = f"{os.getpid()}\n".encode()
        try:
            # Over what is there: on a full disk that still works.
            os.pwrite(self._lock, pid, 0)
            os.ftruncate(self._lock, len(pid))
        except OSError as error:
            # The lock is held all the same; only who is refused cannot be told whose it is.
            _log.warning("the pid could not be written into the lock of %s: %s", self.path, error.strerror)

    def free_bytes(self) -> int:
        """Bytes that this user may still write on the directory's file system."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def release(self) -> None:
        os.close(self._lock)
