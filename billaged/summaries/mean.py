"""The mean memory of a summary."""

from __future__ import annotations

from billaged.model.quantity import Usage


def memory_mean_bytes(usage: Usage) -> int:
    """Mean memory over the measured time, bytes: never below 0, never above the peak.

    A window in which a stop was taken back has that stop's time and memory in it with a minus: what
    is left is what the ledger changed by, but no mean of anything, and may divide to any number at
    all. The memory that was held lies between nothing and the peak.
    """
    return min(max(usage.memory_mean_bytes, 0), usage.memory_peak_bytes)
