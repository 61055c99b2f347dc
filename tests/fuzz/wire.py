"""Protobuf's wire format, by hand: also what no library would ever write."""

from __future__ import annotations

from typing import NamedTuple

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)
# Added to a kind: bytes that follow the tag as they are.
RAW = 8
_UINT64 = 2**64 - 1
_SMALL = [bytes([value]) for value in range(128)]


class Field(NamedTuple):
    """``value`` is an int (varint, fixed), bytes (length-delimited) or fields (a message, or a group).

    ``width`` is the least number of bytes of its tag: more than needed is odd, and valid.
    """

    number: int
    kind: int
    value: int | bytes | tuple[Field, ...]
    width: int = 1


Fields = tuple[Field, ...]


def varint(value: int, width: int = 1) -> bytes:
    """At least so many bytes. Negative numbers as protobuf has them: ten bytes."""
    value &= _UINT64
    if value < 128 and width == 1:
        return _SMALL[value]
    encoded = bytearray()
    while value > 127 or len(encoded) < width - 1:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes(encoded) + bytes([value])


def encode(fields: Fields) -> bytes:
    return b"".join(map(_field, fields))


def _field(field: Field) -> bytes:
    number, kind, value, width = field
    tag = varint(number << 3 | kind & 7, width)
    if isinstance(value, int):
        if kind == FIXED64:
            return tag + (value & _UINT64).to_bytes(8, "little")
        if kind == FIXED32:
            return tag + (value & 2**32 - 1).to_bytes(4, "little")
        return tag + varint(value)
    content = encode(value) if isinstance(value, tuple) else value
    if kind == GROUP:
        return tag + content + varint(number << 3 | END_GROUP)
    if kind == LENGTH:
        return tag + varint(len(content)) + content
    return tag + content


def text(number: int, value: str) -> Field:
    return Field(number, LENGTH, value.encode())


def whole(number: int, value: int) -> Field:
    return Field(number, VARINT, value)
