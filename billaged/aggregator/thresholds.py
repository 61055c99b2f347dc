"""Gap thresholds of many rows at once: mostly one for all, else each its customer's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator.arithmetic import Int64
from billaged.aggregator.columns import Columns
from billaged.model.records import FoldRules
from billaged.model.time import INT64_MAX


class Thresholds:
    """Of some rules, in ns, and for one set of columns; none is above what fits int64 (a journal may hold any)."""

    def __init__(self, rules: FoldRules) -> None:
        self._common_ns = min(rules.gap_threshold_ns, INT64_MAX)
        self._apart_ns = {customer_id: min(nanos, INT64_MAX) for customer_id, nanos in rules.gap_thresholds}
        # By the columns' number of the customer, and for how many of them: a number is its customer's for ever.
        self._by_number: Int64 = np.zeros(0, dtype=np.int64)
        self._numbered = 0

    @property
    def lowest_ns(self) -> int:
        return min(self._common_ns, *self._apart_ns.values()) if self._apart_ns else self._common_ns

    def of(self, columns: Columns, rows: NDArray[np.intp]) -> Int64 | int:
        """One for each of these rows, or one for all of them."""
        if not self._apart_ns:
            return self._common_ns
        if self._numbered < len(columns.customer_ids):
            self._number(columns.customer_ids)
        thresholds: Int64 = self._by_number[columns.customer[rows]]
        return thresholds

    def _number(self, customer_ids: list[str]) -> None:
        if len(customer_ids) > len(self._by_number):
            # Twice the room that is needed: customers come one by one.
            grown = np.zeros(2 * len(customer_ids), dtype=np.int64)
            grown[: self._numbered] = self._by_number[: self._numbered]
            self._by_number = grown
        for number in range(self._numbered, len(customer_ids)):
            self._by_number[number] = self._apart_ns.get(customer_ids[number], self._common_ns)
        self._numbered = len(customer_ids)
