"""An amount of usage that can be added up and taken back."""

from __future__ import annotations

from dataclasses import dataclass

NOTHING = (0, 0, 0, 0, 0)
MEMORY_UNIT_BYTE_NANOS = 2**20 * 10**9


@dataclass(frozen=True)
class Usage:
    """Five counters, memory x time (byte-nanoseconds), measured ns, samples, and the highest sampled memory."""

    counters: tuple[int, ...] = NOTHING
    memory_byte_nanos: int = 0
    measured_ns: int = 0
    samples: int = 0
    memory_peak_bytes: int = 0

    def __bool__(self) -> bool:
        return any((*self.counters, self.memory_byte_nanos, self.measured_ns, self.samples, self.memory_peak_bytes))

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            tuple(mine + theirs for mine, theirs in zip(self.counters, other.counters, strict=True)),
            self.memory_byte_nanos + other.memory_byte_nanos,
            self.measured_ns + other.measured_ns,
            self.samples + other.samples,
            max(self.memory_peak_bytes, other.memory_peak_bytes),
        )

    def __neg__(self) -> Usage:
        """What undoes it. A peak cannot be undone: it is not in there."""
        counters = tuple(-amount for amount in self.counters)
        return Usage(counters, -self.memory_byte_nanos, -self.measured_ns, -self.samples)

    @property
    def memory_columns(self) -> tuple[int, int]:
        """MiB-seconds and the rest in byte-nanoseconds, the rest never negative."""
        return divmod(self.memory_byte_nanos, MEMORY_UNIT_BYTE_NANOS)
