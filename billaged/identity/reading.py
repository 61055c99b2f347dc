"""Reading a file that an operator named, which may be anything: a pipe, a device, a terabyte."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple


class Content(NamedTuple):
    """What a file holds. ``mode`` has its permissions, as of ``os.stat``."""

    data: bytes
    mode: int


def read_file(path: Path | str, bytes_max: int) -> Content:
    """A regular file of at most so many bytes, whole.

    Raises:
        OSError: it cannot be read, is no regular file, or has more; ``strerror`` says which.
    """
    # Not blocking: a named pipe that nobody writes to would hold up whoever reads.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(0, "Is a directory")
        if not stat.S_ISREG(mode):
            raise OSError(0, "it is no regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(bytes_max + 1)
    finally:
        os.close(descriptor)
    if len(data) > bytes_max:
        raise OSError(0, f"it has more than {bytes_max} bytes")
    return Content(data, mode)
