"""Runs a Python module under a wall clock that a file moves; the monotonic clock stays as it is.

As a program: ``python jumping_clock.py FILE PYTHON -m MODULE ARGUMENT...`` runs in this very process.
"""

from __future__ import annotations

import mmap
import runpy
import struct
import sys
import time
from pathlib import Path
from typing import Final

_OFFSET: Final = struct.Struct("=q")


class JumpingClock:
    """The file, and the command that runs another one under its time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(_OFFSET.pack(0))
        self.under = (sys.executable, __file__, str(path))

    def set_ahead(self, seconds: int) -> None:
        """From now on it is so much later than it is; 0 sets it right."""
        with self._path.open("r+b", buffering=0) as file:
            file.write(_OFFSET.pack(seconds * 10**9))


def main() -> None:
    _, path, _, _, module, *arguments = sys.argv
    with Path(path).open("rb") as file:
        offset = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)
    real_nanos = time.time_ns

    def time_ns() -> int:
        return int(real_nanos() + _OFFSET.unpack(offset[:])[0])

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 10**9
    # As -m has it: modules come from where it runs, not from beside this file.
    sys.path[0] = str(Path.cwd())
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
