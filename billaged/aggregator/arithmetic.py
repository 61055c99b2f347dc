"""Exact int64 arithmetic over columns. Nothing here overflows or loses a unit within its stated bounds."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from billaged.model.quantity import REST_PER_MIB_SECOND
from billaged.model.time import NANOS

Int64 = NDArray[np.int64]

# 2**25 divides REST_PER_MIB_SECOND, so that rests can be summed in two halves.
_HALF_BITS: Final = 25
_HALVES_PER_MIB_SECOND: Final = REST_PER_MIB_SECOND >> _HALF_BITS


def memory_time(memory_bytes: Int64, span_ns: Int64) -> tuple[Int64, Int64]:
    """Memory x time as (MiB-seconds, rest in byte-ns), exact.

    For memory up to 2**48 bytes and spans up to 9 hours: memory * seconds stays below 2**63.
    """
    seconds, nanos = np.divmod(span_ns, NANOS)
    high, low = np.divmod(memory_bytes, NANOS)
    low *= nanos
    byte_seconds = memory_bytes * seconds + high * nanos + low // NANOS
    rest = (byte_seconds & (2**20 - 1)) * NANOS + low % NANOS
    return byte_seconds >> 20, rest


def proportion(amount: Int64, part: Int64, whole: Int64) -> Int64:
    """``floor(amount * part / whole)`` for 0 <= amount < 2**63, 0 <= part <= whole, 0 < whole < 2**52.

    Long multiplication of the remainder by ``part``, digit by digit, keeping quotient and
    remainder by ``whole`` at each: with b bits in ``whole`` and 62 - b in a digit no product
    exceeds 2**63, so short spans take two digits and the longest six.
    """
    if not amount.size:
        return amount.copy()
    quotient, remainder = np.divmod(amount, whole)
    result = quotient * part
    whole_bits = int(whole.max()).bit_length()
    digit_bits = 62 - whole_bits
    carried_quotient = np.zeros_like(result)
    carried_remainder = np.zeros_like(result)
    for digit in range(-(-whole_bits // digit_bits) - 1, -1, -1):
        value = (part >> (digit_bits * digit)) & ((1 << digit_bits) - 1)
        product = (carried_remainder << digit_bits) + remainder * value
        step_quotient, carried_remainder = np.divmod(product, whole)
        carried_quotient = (carried_quotient << digit_bits) + step_quotient
    return result + carried_quotient


def carry_memory(mib_seconds: Int64, rest: Int64) -> None:
    """Bring rests back below one MiB-second, in place."""
    over = rest >= REST_PER_MIB_SECOND
    if over.any():
        carried, rest[...] = np.divmod(rest, REST_PER_MIB_SECOND)
        mib_seconds += carried


def segment_sums_memory(mib_seconds: Int64, rest: Int64, starts: NDArray[np.intp]) -> tuple[Int64, Int64]:
    """Sums of memory pairs over the segments that begin at ``starts``; good for 2**31 pairs a segment.

    Rests stay below 2**50, so more than 8,192 of them could overflow: they are summed in two halves.
    """
    mib_sums = np.add.reduceat(mib_seconds, starts)
    high = np.add.reduceat(rest >> _HALF_BITS, starts)
    low = np.add.reduceat(rest & (2**_HALF_BITS - 1), starts)
    carried, high = np.divmod(high, _HALVES_PER_MIB_SECOND)
    more, rest_sums = np.divmod((high << _HALF_BITS) + low, REST_PER_MIB_SECOND)
    return mib_sums + carried + more, rest_sums
