"""Mutations of requests as JSON: of their values, and of their bytes."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e300, 10**17, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, "", "1", "-1", "1e3",
    "1.0", " 1", "0x10", "9" * 400, "NaN", "Infinity", float("nan"), float("inf"), "2026-11-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z", "0001-01-01T00:00:00Z", "2026-02-30T00:00:00Z", "1970-01-01T00:00:00.1234567891Z",
    [], {}, [[]], [None], {"": None}, {"seconds": 1}, "\ud800", "vm\0", "v" * 2_000, "ä",
)  # fmt: skip
_NAMES = (
    "vmId", "vm_id", "customerId", "metrics", "timestamp", "cpuTimeNanos", "@type", "", "__proto__", "vmId ", "\ud800",
    'a"b', "\0",
)  # fmt: skip


def as_json(request: Message) -> Any:
    return json_format.MessageToDict(request)


def mutated(chance: Random, values: Any) -> bytes:
    """One to three mutations of values; often of the text, too."""
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        values = _somewhere(chance, values)
    # Lone surrogates and NaN included: what Python writes, others may send.
    text = json.dumps(values, ensure_ascii=chance.random() < 0.8).encode("utf-8", "surrogatepass")
    return _text(chance, text) if chance.random() < 0.3 else text


def _somewhere(chance: Random, values: Any) -> Any:
    if isinstance(values, dict) and values and chance.random() < 0.8:
        name = chance.choice([*values])
        match chance.randrange(6):
            case 0:
                return {other: value for other, value in values.items() if other != name}
            case 1:
                return values | {chance.choice(_NAMES): chance.choice(ODD_VALUES)}
            case _:
                return values | {name: _somewhere(chance, values[name])}
    if isinstance(values, list) and values and chance.random() < 0.8:
        at = chance.randrange(len(values))
        return [*values[:at], _somewhere(chance, values[at]), *values[at + 1 :]]
    if chance.random() < 0.1:
        return _nested(chance, values)
    return chance.choice(ODD_VALUES)


def _nested(chance: Random, values: Any) -> Any:
    for _ in range(chance.choice((1, 5, 50, 150))):
        values = [values] if chance.random() < 0.5 else {"vmId": values}
    return values


def _text(chance: Random, text: bytes) -> bytes:
    at = chance.randrange(len(text) + 1)
    match chance.randrange(7):
        case 0:
            return text[:at]
        case 1:
            return text[:at] + chance.randbytes(chance.choice((1, 3))) + text[at:]
        case 2:
            return text[:at] + text[at + chance.randint(1, 9) :]
        case 3:
            # A name twice: parsers do not agree on which one holds.
            return text[:-1] + b"," + text[1:]
        case 4:
            return text + chance.choice((b" ", b"{}", b"\0", text, b"// comment"))
        case 5:
            return chance.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"[", b" \n\t", b"\x0b")) + text
        case _:
            return chance.choice((b"", b"[" * 90_000, b'{"a":' * 900, b"null", b"[]", b'""', b"1" * 5_000, b"{}"))
