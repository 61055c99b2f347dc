"""The file that the audit log goes into, for logrotate to move away."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Final, TextIO

from billaged.model.errors import StorageError

_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_log: Final = logging.getLogger("billaged.telemetry")


class AuditFile(logging.Handler):
    """Appends a line for each event. What cannot be written there goes into the log: no denial is lost silently."""

    def __init__(self, path: Path, formatter: logging.Formatter, instead: logging.Handler) -> None:
        """``instead`` takes what cannot be written.

        Raises:
            StorageError: the file cannot be opened.
        """
        super().__init__()
        self.setFormatter(formatter)
        self._path = path
        self._instead = instead
        self._failing = False
        try:
            self._file = _opened(path)
        except OSError as error:
            raise StorageError(
                f"the audit log {path} cannot be written: {error.strerror or error}",
                "UNKEY_BILLAGED_LOG_AUDIT_FILE says where it is; its folder must be there, and billaged's user may"
                " write in it.",
            ) from error

    def reopen(self) -> None:
        """Go on in the file that has this name now, or in the old one where that cannot be."""
        try:
            file = _opened(self._path)
        except OSError as error:
            _log.error("the audit log %s stays in the file that was open: %s", self._path, error.strerror or error)
            return
        self.acquire()
        try:
            old, self._file = self._file, file
        finally:
            self.release()
        try:
            old.close()
        except OSError as error:
            # Its disk is full: those lines are in the log, too.
            _log.error("the end of the old audit log cannot be written: %s", error.strerror or error)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.write(self.format(record) + "\n")
            self._failing = False
        except Exception as error:  # noqa: BLE001 - whatever it is, the event must not be lost
            if not self._failing:
                self._failing = True
                _log.error("the audit log %s cannot be written, so its lines come here: %s", self._path, error)
            self._instead.handle(record)

    def close(self) -> None:
        self._file.close()
        super().close()


def _opened(path: Path) -> TextIO:
    """Unbuffered but for one line, so that what was said is there after a crash of the process.

    Raises:
        OSError: it is no plain file, or cannot be had.
    """
    descriptor = os.open(path, _FLAGS, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no plain file")
    return os.fdopen(descriptor, "a", buffering=1, encoding="utf-8", errors="backslashreplace")
