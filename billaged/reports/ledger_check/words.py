"""The words that the fold writes, and no others (docs/billing-semantics.md)."""

from __future__ import annotations

from typing import Final

END_KINDS: Final = frozenset(("stop", "missed_stop", "vanished"))
GAP_KINDS: Final = frozenset(("step", "start", "stop"))
CAUSES: Final = frozenset(("step", "backfill", "start", "stop"))
DEAD_LETTER_REASONS: Final = frozenset(("wrong_owner", "overflow", "fold_failed"))
SILENCE_REASONS: Final = frozenset(("silent_vm", "silent_host", "no_samples", "vanished", "billaged_down"))
ANOMALY_KINDS: Final = frozenset(
    (
        *("late", "conflict", "counter_reset", "implausible", "late_start", "late_stop"),
        *("missed_stop", "contradicted_stop", "extra_stop", "unknown_stop", "vanished", "returned"),
    )
)
TALLIES: Final = frozenset(
    (
        *("samples", "duplicates", "conflicts", "late", "backfilled", "duplicate_starts", "duplicate_stops"),
        *("starts", "stops", "heartbeats", "possible_gaps", "ticks", "dead_letters"),
    )
)
