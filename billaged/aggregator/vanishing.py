"""A VM that nobody lists or hears any more: its session ends at its newest sample."""

from __future__ import annotations

import numpy as np

from billaged.aggregator.columns import RUNNING, VANISHED, Columns, Ended
from billaged.aggregator.effects import Anomaly, Effects, FinalSummary
from billaged.model.records import JournalEntry


def vanish(columns: Columns, row: int, entry: JournalEntry, effects: Effects) -> None:
    """End a running row's session so, by the tick ``entry``. It runs on if a later point says that it lives."""
    rows = np.array([row], dtype=np.intp)
    vm_id, last_ns = columns.vm_id[row], int(columns.last_time[row])
    columns.flags[row] = int(columns.flags[row]) & ~RUNNING | VANISHED
    columns.ended[row] = Ended(last_ns, last_ns, 0)
    columns.open_windows(rows)
    columns.dirty[row] = True
    effects.anomalies.append(Anomaly(entry.sequence, 0, "vanished", vm_id, last_ns, int(columns.ordinal[row]), "{}"))
    totals = columns.totals(rows)[0].tolist()
    base = columns.windows.values[columns.window_slot[row]]
    effects.finals.append(
        FinalSummary(
            vm_id,
            columns.customer_ids[columns.customer[row]],
            int(columns.ordinal[row]),
            int(columns.start[row]),
            last_ns,
            entry.received_ns,
            tuple(base.tolist()),
            tuple(totals),
        )
    )
    base[:] = [*totals[:-1], 0]
