"""How records lie in a spool's file: framing alone, no I/O.

A segment is a header and frames. The header names the segment's *generation*, a
number never used twice in a spool, so that a position (generation, offset) can
never be mistaken for one in a file that was emptied and filled again. A frame is

    body length, uint32 | crc32 of length and body, uint32 | body: kind, uint8, and the request's bytes

Little-endian. A length of 0 is never written, so a tail of zeros (what a power
loss may leave) is no frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

from billaged.model.records import Kind

_MAGIC: Final = b"BLGSPOL1"
_HEADER: Final = struct.Struct("<8sQI")
_FRAME: Final = struct.Struct("<II")
_LENGTH: Final = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size
_KINDS: Final = {int(kind): kind for kind in Kind}


class SpoolRecord(NamedTuple):
    """A request that waits: which RPC, and its serialized message."""

    kind: Kind
    payload: bytes


def header(generation: int) -> bytes:
    start = _HEADER.pack(_MAGIC, generation, 0)[:-4]
    return start + _LENGTH.pack(crc32(start))


def generation_of(data: bytes) -> int | None:
    """The generation that a segment's first bytes name; None where they are no header."""
    if len(data) < HEADER_BYTES:
        return None
    generation = int(_HEADER.unpack_from(data)[1])
    return generation if header(generation) == data[:HEADER_BYTES] else None


def frame(record: SpoolRecord) -> bytes:
    body = bytes((record.kind,)) + record.payload
    return _FRAME.pack(len(body), crc32(body, crc32(_LENGTH.pack(len(body))))) + body


def frames(data: bytes) -> Iterator[tuple[SpoolRecord, int]]:
    """The whole frames from the data's start on, each with the offset after it; ends at the first that is none."""
    offset = 0
    while offset + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, offset)
        start, end = offset + _FRAME.size, offset + _FRAME.size + length
        body = data[start:end]
        if length == 0 or end > len(data) or crc32(body, crc32(_LENGTH.pack(length))) != checksum:
            return
        if (kind := _KINDS.get(body[0])) is None:  # a later version's
            return
        yield SpoolRecord(kind, body[1:]), end
        offset = end
