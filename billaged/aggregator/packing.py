"""Kept instants as the ledger holds them: packed, little-endian, in few bytes."""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import Final

from billaged.aggregator.effects import NO_AMOUNTS
from billaged.aggregator.instant import Instant, Kept
from billaged.aggregator.state import MARKS, NO_MARKS, State
from billaged.model.errors import StorageError
from billaged.model.records import COUNTERS

_VERSION: Final = 1
_HEAD: Final = Struct("<BBiiq")
_SAMPLE: Final = Struct(f"<{1 + COUNTERS}q")
_AMOUNTS: Final = Struct(f"<{COUNTERS}q")
_MARKS: Final = Struct(f"<{MARKS}q")
_STATE: Final = Struct("<Biqi")
_LAST: Final = Struct("<qq")

_HAS_START, _HAS_SAMPLE, _HAS_STOP, _IS_OPEN, _IS_FIRST, _HAS_BEFORE = (1 << bit for bit in range(6))
# Of a state's first byte; the phase is in its lowest two bits.
_PHASE: Final = 3
_SAMPLED, _AT_SAMPLE, _HAS_LAST, _HAS_MARKS = (4 << bit for bit in range(4))


def pack(kept: Kept) -> bytes:
    """The content; the time is in the row's key."""
    instant = kept.instant
    flags = (
        instant.has_start * _HAS_START
        | (instant.sample is not None) * _HAS_SAMPLE
        | instant.has_stop * _HAS_STOP
        | kept.is_open * _IS_OPEN
        | kept.is_first * _IS_FIRST
        | (kept.before is not None) * _HAS_BEFORE
    )
    parts = [_HEAD.pack(_VERSION, flags, kept.rules, instant.opens, kept.floor_ns)]
    if instant.sample is not None:
        parts.append(_SAMPLE.pack(*instant.sample))
    if kept.before is not None:
        parts.append(_pack_state(kept.before, None))
    parts.append(_pack_state(kept.after, instant))
    return b"".join(parts)


def unpack(time_ns: int, content: bytes) -> Kept:
    """
    Raises:
        StorageError: this is not what this version wrote.
    """
    try:
        version, flags, rules, opens, floor_ns = _HEAD.unpack_from(content)
        if version != _VERSION:
            raise ValueError(version)
        at = _HEAD.size
        sample: tuple[int, ...] | None = None
        if flags & _HAS_SAMPLE:
            sample, at = _SAMPLE.unpack_from(content, at), at + _SAMPLE.size
        instant = Instant(time_ns, opens, bool(flags & _HAS_START), sample, bool(flags & _HAS_STOP))
        before = None
        if flags & _HAS_BEFORE:
            before, at = _unpack_state(content, at, instant)
        after, at = _unpack_state(content, at, instant)
        if at != len(content):
            raise ValueError(at)
    except (StructError, ValueError) as error:
        raise StorageError(
            f"the ledger's kept instant at {time_ns} is damaged or of another version: {content.hex()}.",
            "Restore a backup of the ledger.",
        ) from error
    return Kept(instant, rules, bool(flags & _IS_OPEN), after, before, bool(flags & _IS_FIRST), floor_ns)


def _pack_state(state: State, instant: Instant | None) -> bytes:
    """``instant``: one whose sample need not be said twice."""
    at_sample = (
        instant is not None
        and state.has_samples
        and state.last_ns == instant.time_ns
        and instant.sample == (state.memory_bytes, *state.last)
    )
    bits = state.phase | state.has_samples * _SAMPLED | at_sample * _AT_SAMPLE
    parts = [b"", b"", b"", b""]
    if not at_sample:
        parts[1] = _LAST.pack(state.last_ns, state.memory_bytes)
        if state.last != NO_AMOUNTS:
            bits |= _HAS_LAST
            parts[2] = _AMOUNTS.pack(*state.last)
    if state.marks != NO_MARKS:
        bits |= _HAS_MARKS
        parts[3] = _MARKS.pack(*state.marks)
    parts[0] = _STATE.pack(bits, state.ordinal, state.end_ns, state.tail_rules)
    return b"".join(parts)


def _unpack_state(content: bytes, at: int, instant: Instant) -> tuple[State, int]:
    bits, ordinal, end_ns, tail_rules = _STATE.unpack_from(content, at)
    at += _STATE.size
    last, marks = NO_AMOUNTS, NO_MARKS
    if bits & _AT_SAMPLE:
        if instant.sample is None:
            raise ValueError(bits)
        last_ns, (memory_bytes, *values) = instant.time_ns, instant.sample
        last = tuple(values)  # type: ignore[assignment]
    else:
        last_ns, memory_bytes = _LAST.unpack_from(content, at)
        at += _LAST.size
        if bits & _HAS_LAST:
            last, at = _AMOUNTS.unpack_from(content, at), at + _AMOUNTS.size
    if bits & _HAS_MARKS:
        marks, at = _MARKS.unpack_from(content, at), at + _MARKS.size
    has_samples = bool(bits & _SAMPLED)
    return State(bits & _PHASE, ordinal, has_samples, last_ns, memory_bytes, end_ns, tail_rules, last, marks), at
