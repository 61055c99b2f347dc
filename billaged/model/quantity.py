"""Quantities: exact integers, and the billing score over them.

Memory x time is a pair: MiB-seconds, and the rest in byte-nanoseconds below
``REST_PER_MIB_SECOND``. One number would not fit 64 bits: 64 GiB for a month is
1.8e26 byte-nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Final, NamedTuple, Self

from billaged.model.time import NANOS

MIB: Final = 2**20
GIB: Final = 2**30
REST_PER_MIB_SECOND: Final = MIB * NANOS

# Enough digits that no division here rounds before the sixth decimal.
_CONTEXT: Final = Context(prec=60)


class MemoryTime(NamedTuple):
    """Memory x time, ``mib_seconds * 2**20 * 10**9 + rest`` byte-nanoseconds, 0 <= rest."""

    mib_seconds: int
    rest: int

    @classmethod
    def of_byte_nanos(cls, byte_nanos: int) -> MemoryTime:
        return cls(*divmod(byte_nanos, REST_PER_MIB_SECOND))

    @property
    def byte_nanos(self) -> int:
        return self.mib_seconds * REST_PER_MIB_SECOND + self.rest


@dataclass(frozen=True, slots=True)
class Usage:
    """What a VM used in a span: counters in their units, memory x time, and how the span is known."""

    cpu_time_ns: int = 0
    disk_read_bytes: int = 0
    disk_write_bytes: int = 0
    network_rx_bytes: int = 0
    network_tx_bytes: int = 0
    memory_byte_nanos: int = 0
    memory_peak_bytes: int = 0
    measured_ns: int = 0
    gap_ns: int = 0
    samples: int = 0

    def __add__(self, other: Self) -> Usage:
        return Usage(
            **{
                field.name: (
                    max(getattr(self, field.name), getattr(other, field.name))
                    if field.name == "memory_peak_bytes"
                    else getattr(self, field.name) + getattr(other, field.name)
                )
                for field in fields(self)
            }
        )

    @property
    def memory_mean_bytes(self) -> int:
        """Mean memory over the measured time, bytes, floored; 0 where nothing was measured."""
        return self.memory_byte_nanos // self.measured_ns if self.measured_ns > 0 else 0

    @property
    def memory_byte_seconds(self) -> float:
        return self.memory_byte_nanos / NANOS


@dataclass(frozen=True, slots=True)
class ScoreWeights:
    """The weights of the billing score: per CPU second, per mean GB of memory, per MB of disk traffic."""

    cpu_second: Decimal = Decimal("1.0")
    memory_gb: Decimal = Decimal("0.5")
    disk_mb: Decimal = Decimal("0.3")


def resource_score(usage: Usage, window_ns: int, weights: ScoreWeights) -> Decimal:
    """``cpu_seconds * 1.0 + memory_GB * 0.5 + disk_MB * 0.3``, six decimals, half away from zero.

    Memory is its mean over the whole window (GB = 2**30 bytes), or, where more time than that
    was folded in it, over that time: a step can be longer than the window it is folded in, and
    its memory is never more than its mean. Disk is read plus written (MB = 2**20 bytes). An
    empty window has no mean: its memory counts nothing.
    """
    window_ns = max(window_ns, usage.measured_ns + usage.gap_ns)
    multiply, divide, add = _CONTEXT.multiply, _CONTEXT.divide, _CONTEXT.add
    cpu_seconds = divide(Decimal(usage.cpu_time_ns), Decimal(NANOS))
    disk_mb = divide(Decimal(usage.disk_read_bytes + usage.disk_write_bytes), Decimal(MIB))
    memory_gb = divide(Decimal(usage.memory_byte_nanos), Decimal(window_ns * GIB)) if window_ns > 0 else Decimal(0)
    score = multiply(cpu_seconds, weights.cpu_second)
    score = add(score, multiply(memory_gb, weights.memory_gb))
    score = add(score, multiply(disk_mb, weights.disk_mb))
    return score.quantize(Decimal("0.000001"), rounding=ROUND_HALF_UP, context=_CONTEXT)
