"""Mutations of protobuf requests: of their structure, field by field, and of their bytes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fuzz.honest import GIB, Moment, Request, request
from fuzz.wire import END_GROUP, FIXED32, FIXED64, GROUP, LENGTH, RAW, VARINT, Field, Fields, encode, varint

EDGES = (0, 1, -1, 127, 128, 2**31 - 1, 2**31, 2**32, 2**48, 2**48 + 1, 2**53 + 1, 10**17, 10**18, 2**62, 2**63 - 1)
NUMBERS = (1, 2, 3, 4, 7, 8, 15, 16, 2_047, 2_048, 19_000, 2**29 - 1)
TEXTS = (
    b"", b"v", b"@plaintext", b"@", b" vm", b"vm-1\n", b"vm\0", b"v" * 255, b"v" * 256, b"v" * 5_000, b"../../etc",
    b"\xff", b"vm-\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbfvm", "vm-ä".encode(),
    "٣".encode(), "\u202evm".encode(), b"%s%n", b"'; DROP TABLE journal; --",
)  # fmt: skip
LONG_BYTES = 200_000

Mutation = Callable[[Random, Fields, Moment], Fields]


def structure(chance: Random, wanted: Request, moment: Moment) -> bytes:
    """One to three mutations of fields, at any depth."""
    fields = wanted.fields
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        fields = _somewhere(chance, chance.choice(OF_FIELDS), fields, moment)
    return encode(fields)


def octets(chance: Random, payload: bytes, moment: Moment) -> bytes:
    """One to four mutations of bytes, whatever they mean."""
    mutated = bytearray(payload)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randint(0, len(mutated))
        length = min(chance.choice((1, 1, 2, 8, 40)), len(mutated) - at)
        match chance.randrange(9):
            case 0 | 1 if length:
                mutated[at] ^= 1 << chance.randrange(8)
            case 2 if length:
                mutated[at] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
            case 3:
                mutated[at:at] = chance.randbytes(chance.choice((1, 2, 5, 30)))
            case 4:
                del mutated[at : at + length]
            case 5:
                del mutated[at:]
            case 6:
                mutated[at:at] = mutated[at : at + length] * chance.choice((1, 2, 20))
            case 7:
                mutated[at:] = encode(request(chance, moment).fields)[at:]
            case _:
                mutated[at:at] = varint(chance.choice(EDGES), chance.randint(1, 11))
    return bytes(mutated)


def _somewhere(chance: Random, mutation: Mutation, fields: Fields, moment: Moment) -> Fields:
    """The mutation of the message, or of one of those within it."""
    within = [at for at, field in enumerate(fields) if isinstance(field.value, tuple)]
    if not within or chance.random() < 0.4:
        return mutation(chance, fields, moment)
    at = chance.choice(within)
    inner = fields[at].value
    if not isinstance(inner, tuple):
        raise TypeError("only messages have fields")
    return _changed(fields, at, fields[at]._replace(value=_somewhere(chance, mutation, inner, moment)))


def _changed(fields: Fields, at: int, *instead: Field) -> Fields:
    return (*fields[:at], *instead, *fields[at + 1 :])


def _place(chance: Random, fields: Fields) -> int:
    return chance.randrange(len(fields)) if fields else 0


def _drop(chance: Random, fields: Fields, moment: Moment) -> Fields:
    return _changed(fields, _place(chance, fields))


def _repeat(chance: Random, fields: Fields, moment: Moment) -> Fields:
    """A singular field twice: the last one holds, and of messages their union."""
    if not fields:
        return fields
    field = chance.choice(fields)
    return (*fields, *(field for _ in range(chance.choice((1, 1, 1, 1, 3, 50)))))


def _shuffle(chance: Random, fields: Fields, moment: Moment) -> Fields:
    return tuple(chance.sample(fields, len(fields)))


def _value(chance: Random, fields: Fields, moment: Moment) -> Fields:
    """Another value of its type."""
    if not fields:
        return fields
    at = _place(chance, fields)
    field = fields[at]
    if isinstance(field.value, int):
        near = field.value + chance.choice((-1, 1, -1_000, 1_000, -(10**9), 10**12, -(10**12), GIB))
        now = moment.epoch_ns // chance.choice((1, 1, 10**3, 10**6, 10**9))
        value: int | bytes = chance.choice((near, now, chance.choice(EDGES), chance.getrandbits(chance.randint(1, 64))))
    elif isinstance(field.value, bytes):
        value = chance.choice((*TEXTS, field.value + b"x", field.value[:-1], chance.randbytes(8)))
    else:
        value = chance.choice((b"", chance.randbytes(chance.randint(1, 40))))
    return _changed(fields, at, field._replace(value=value))


def _number(chance: Random, fields: Fields, moment: Moment) -> Fields:
    """The value of another field; 0 and more than 2^29 - 1 are no fields."""
    if not fields:
        return fields
    at = _place(chance, fields)
    return _changed(fields, at, fields[at]._replace(number=chance.choice((*NUMBERS, 0, 2**29, 2**32 - 1))))


def _kind(chance: Random, fields: Fields, moment: Moment) -> Fields:
    """Another wire type: a number as text, a message as a group; 6 and 7 are none."""
    if not fields:
        return fields
    at = _place(chance, fields)
    return _changed(fields, at, fields[at]._replace(kind=chance.randrange(8)))


def _huge_varint(chance: Random, fields: Fields, moment: Moment) -> Fields:
    """Up to 12 bytes, of which protobuf knows ten; of values, lengths and what a group has for a tag."""
    raw = bytes(128 | chance.randrange(128) for _ in range(chance.randint(5, 11))) + bytes([chance.randrange(128)])
    return (*fields, Field(chance.choice(NUMBERS), RAW | chance.choice((VARINT, VARINT, LENGTH, GROUP)), raw))


def _unknown(chance: Random, fields: Fields, moment: Moment) -> Fields:
    number = chance.choice((*NUMBERS[3:], chance.randint(8, 2**29 - 1)))
    kind = chance.choice((VARINT, FIXED64, FIXED32, LENGTH, GROUP))
    value = chance.randbytes(chance.choice((0, 1, 50))) if kind == LENGTH else chance.getrandbits(63)
    field = Field(number, kind, () if kind == GROUP else value, chance.choice((1, 1, 5)))
    at = chance.randint(0, len(fields))
    return (*fields[:at], *(field for _ in range(chance.choice((1, 1, 1, 1, 1, 100)))), *fields[at:])


def _nested(chance: Random, fields: Fields, moment: Moment) -> Fields:
    """Groups in groups, or messages in messages; 100 deep is what protobuf reads."""
    kind, number = chance.choice((GROUP, LENGTH)), chance.choice(NUMBERS)
    depth = chance.choice((1, 2, 50, 98, 99, 100, 101, 120))
    inner: Fields = fields if chance.random() < 0.2 else ()
    for _ in range(depth):
        inner = (Field(number, kind, inner),)
    return (*fields, *inner)


def _half_group(chance: Random, fields: Fields, moment: Moment) -> Fields:
    """A group that never ends, or ends and never began, or ends as another one."""
    begins, ends, other = (Field(chance.choice(NUMBERS), RAW | kind, b"") for kind in (GROUP, END_GROUP, END_GROUP))
    return (*fields, *chance.choice(((begins,), (ends,), (begins, other), (begins, begins, ends))))


def _length(chance: Random, fields: Fields, moment: Moment) -> Fields:
    """A length that is not what follows it."""
    content = chance.randbytes(chance.choice((0, 3, 30)))
    length = chance.choice((len(content) + 1, max(len(content) - 1, 0), 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1))
    return (*fields, Field(chance.choice(NUMBERS), RAW | LENGTH, varint(length) + content))


def _wide_tag(chance: Random, fields: Fields, moment: Moment) -> Fields:
    """Tags of more bytes than they need; five are what protobuf reads."""
    return tuple(field._replace(width=chance.choice((1, 2, 5, 6, 10))) for field in fields)


def _concatenated(chance: Random, fields: Fields, moment: Moment) -> Fields:
    """Another message behind it, of its own type or not: to protobuf that is one message."""
    return (*fields, *request(chance, moment).fields)


def _long(chance: Random, fields: Fields, moment: Moment) -> Fields:
    """Seldom very long: each of those costs as much as a hundred others."""
    length = LONG_BYTES if chance.random() < 0.01 else 1_000
    field = chance.choice((Field(1, LENGTH, b"v" * length), Field(16, LENGTH, bytes(length)), Field(3, LENGTH, b"")))
    return (*fields, *(field for _ in range(1 if field.value else length // 2)))


OF_FIELDS: tuple[Mutation, ...] = (
    _drop, _repeat, _shuffle, _value, _value, _value, _number, _kind, _huge_varint, _unknown, _nested, _half_group,
    _length, _wide_tag, _concatenated, _long,
)  # fmt: skip
