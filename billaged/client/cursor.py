"""How far a spool has been acknowledged, in a small file of its own.

Written without fsync: after a power loss it may be old, and what it then names
again is sent again, which the server takes as known. It is never ahead of the truth.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

_CURSOR: Final = struct.Struct("<QQI")


class Position(NamedTuple):
    """A place in a spool: a segment's generation and the offset of a frame in it, bytes."""

    generation: int
    offset: int


class Cursor:
    """The file that holds one position."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def read(self) -> Position:
        """The position last written; (0, 0) where there is none that can be read."""
        data = os.pread(self._file, _CURSOR.size, 0)
        if len(data) < _CURSOR.size:
            return Position(0, 0)
        generation, offset, checksum = _CURSOR.unpack(data)
        return Position(generation, offset) if crc32(data[:16]) == checksum else Position(0, 0)

    def write(self, position: Position) -> None:
        data = struct.pack("<QQ", *position)
        os.pwrite(self._file, data + struct.pack("<I", crc32(data)), 0)

    def close(self) -> None:
        os.close(self._file)
