"""How records lie in a spool's file: framing alone, no I/O.

A segment is a header (twice, so that damage to one loses nothing) and frames. The header names the
segment's *generation*, a number never used twice in a spool, so that a position (generation, offset) can
never be mistaken for one in a file that was emptied and filled again. A frame is

    body length, uint32 | check of the length, uint32 | check of the body, uint32 | body

with the body's first byte for the kind and the request's bytes after it; all little-endian. Both checks are crc32,
begun with the segment's salt (a random number in its header) and the frame's own offset: what was copied from
elsewhere, or lies in a payload and looks like a frame, holds at no place but by chance, once in 2^32.

A damaged body costs that record; where the next frame begins is known. After a damaged length
every byte is tried, until the length's check holds again.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple
from zlib import crc32

from billaged.client.methods import METHODS
from billaged.model.records import Kind

_MAGIC: Final = b"BLGSPOL2"
_HEADER: Final = struct.Struct("<8sQII")
_CHECK: Final = struct.Struct("<I")
_PLACE: Final = struct.Struct("<IQI")  # what the length's check is of: salt, offset, length
_FRAME: Final = struct.Struct("<III")
HEADER_BYTES: Final = 2 * _HEADER.size
FRAME_BYTES: Final = _FRAME.size  # of a frame, before its body
_KINDS: Final = {int(kind): kind for kind in METHODS}


class SpoolRecord(NamedTuple):
    """A request that waits: which RPC, and its serialized message."""

    kind: Kind
    payload: bytes


class Header(NamedTuple):
    """What a segment's file begins with."""

    generation: int
    salt: int

    @classmethod
    def new(cls, generation: int) -> Header:
        return cls(generation, secrets.randbits(32))

    @classmethod
    def read(cls, data: bytes) -> Header | None:
        """Of a file's first bytes; None where neither copy is a header."""
        for start in (0, _HEADER.size):
            if len(data) >= start + _HEADER.size:
                _, generation, salt, _ = _HEADER.unpack_from(data, start)
                found = cls(generation, salt)
                if found._once() == data[start : start + _HEADER.size]:
                    return found
        return None

    def data(self) -> bytes:
        return 2 * self._once()

    def _once(self) -> bytes:
        start = _HEADER.pack(_MAGIC, self.generation, self.salt, 0)[: -_CHECK.size]
        return start + _CHECK.pack(crc32(start))


class Piece(NamedTuple):
    """A stretch of a segment, by offsets in its file: a record, or (None) bytes that are none."""

    start: int
    end: int
    record: SpoolRecord | None
    # They are what a crash leaves of a write, at the end of the data: nobody was told that they are safe.
    is_torn: bool = False


def frame(salt: int, offset: int, record: SpoolRecord) -> bytes:
    """The record as it lies at this offset of a segment with this salt."""
    body = bytes((record.kind,)) + record.payload
    check = _length_check(salt, offset, len(body))
    return _FRAME.pack(len(body), check, crc32(body, check)) + body


def frames(salt: int, offset: int, records: Iterable[SpoolRecord]) -> bytes:
    """The records one behind the other, from this offset on."""
    data = bytearray()
    for record in records:
        data += frame(salt, offset + len(data), record)
    return bytes(data)


def pieces(data: bytes, salt: int, offset: int) -> Iterator[Piece]:
    """All of the data, which begins at this offset of its segment; damage that is not parted by a record as one."""
    damaged_from: int | None = None
    at = 0
    while at < len(data):
        end = _end(data, at, salt, offset)
        record = _record(data, at, end) if end is not None and end <= len(data) else None
        if record is not None and end is not None:
            if damaged_from is not None:
                yield Piece(offset + damaged_from, offset + at, None)
                damaged_from = None
            yield Piece(offset + at, offset + end, record)
        elif damaged_from is None:
            if _is_torn(data, at, end):
                yield Piece(offset + at, offset + len(data), None, is_torn=True)
                return
            damaged_from = at
        # A length that holds is to be trusted also where its body is not.
        at = end if end is not None and end <= len(data) else _next_length(data, at + 1, salt, offset)
    if damaged_from is not None:
        yield Piece(offset + damaged_from, offset + len(data), None)


def _length_check(salt: int, offset: int, length: int) -> int:
    return crc32(_PLACE.pack(salt, offset, length))


def _end(data: bytes, at: int, salt: int, offset: int) -> int | None:
    """Where the frame at this place says that it ends, perhaps behind the data; None where its length does not hold."""
    if at + FRAME_BYTES > len(data):
        return None
    length, check, _ = _FRAME.unpack_from(data, at)
    return at + FRAME_BYTES + length if length and _length_check(salt, offset + at, length) == check else None


def _record(data: bytes, at: int, end: int) -> SpoolRecord | None:
    """None for a body that does not hold, or of a kind that this version does not know."""
    _, check, body_check = _FRAME.unpack_from(data, at)
    body = data[at + FRAME_BYTES : end]
    if crc32(body, check) != body_check or (kind := _KINDS.get(body[0])) is None:
        return None
    return SpoolRecord(kind, body[1:])


def _is_torn(data: bytes, at: int, end: int | None) -> bool:
    if end is not None:
        return end > len(data)
    # A write cut short within its first bytes, or (after a power loss) a file that grew before its content came.
    return at + FRAME_BYTES > len(data) or not any(data[at:])


def _next_length(data: bytes, at: int, salt: int, offset: int) -> int:
    """The next place where a whole frame may begin; the data's end where there is none."""
    most = len(data) - FRAME_BYTES
    unpack, check_of = _FRAME.unpack_from, _length_check
    for place in range(at, most):
        length, check, _ = unpack(data, place)
        if 0 < length <= most - place and check_of(salt, offset + place, length) == check:
            return place
    return len(data)
