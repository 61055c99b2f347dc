"""Exact sums by session, in columns: no sum of 64-bit values is too large for them."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from billaged.reports.ledger_check.rows import SUMMED

Int64 = NDArray[np.int64]

_LOW_BITS: Final = 32
_LOW_MASK: Final = 2**_LOW_BITS - 1


class Totals:
    """Each sum is kept as one of upper halves and one of lower ones; good for 2**31 rows a session."""

    def __init__(self, sessions: int) -> None:
        self._high = np.zeros((len(SUMMED), sessions), dtype=np.int64)
        self._low = np.zeros((len(SUMMED), sessions), dtype=np.int64)
        self.peak: Int64 = np.zeros(sessions, dtype=np.int64)

    def add(self, slots: Int64, values: list[Int64], peak: Int64) -> None:
        """Add rows to the sums of their sessions' slots; ``values`` are columns in the order of ``SUMMED``."""
        for field, column in enumerate(values):
            np.add.at(self._high[field], slots, column >> _LOW_BITS)
            np.add.at(self._low[field], slots, column & _LOW_MASK)
        np.maximum.at(self.peak, slots, peak)

    def of(self, slot: int) -> list[int]:
        """A session's sums, in the order of ``SUMMED``."""
        pairs = zip(self._high[:, slot].tolist(), self._low[:, slot].tolist(), strict=True)
        return [(high << _LOW_BITS) + low for high, low in pairs]
