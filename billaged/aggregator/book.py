"""The book of rules: all so far, each once. Links name them by their place, so none ever leaves it."""

from __future__ import annotations

from collections.abc import Sequence

from billaged.aggregator.thresholds import Thresholds
from billaged.model.records import FoldRules


class Book:
    """``rules`` are those in force, ``number`` is their place, and ``thresholds`` are theirs."""

    def __init__(self, every: Sequence[FoldRules], rules: FoldRules) -> None:
        self.every = list(every) or [rules]
        # Customers that any rules have a gap threshold for, and the book as it is for those who were asked for.
        self._apart: set[str] = set()
        self._read_by: dict[str, Sequence[FoldRules]] = {}
        self._note_customers(self.every)
        self.put_in_force(rules)

    def put_in_force(self, rules: FoldRules) -> None:
        """From now on."""
        if rules not in self.every:
            self.every.append(rules)
            self._note_customers([rules])
            self._read_by.clear()
        self.rules = rules
        self.number = self.every.index(rules)
        self.thresholds = Thresholds(rules)

    def of(self, customer_id: str) -> Sequence[FoldRules]:
        """All rules as they are for this customer's VMs: the gap threshold of each is that customer's."""
        if customer_id not in self._apart:
            return self.every
        mine = self._read_by.get(customer_id)
        if mine is None:
            mine = [rules._replace(gap_threshold_ns=rules.gap_threshold_of(customer_id)) for rules in self.every]
            self._read_by[customer_id] = mine
        return mine

    def _note_customers(self, every: Sequence[FoldRules]) -> None:
        self._apart.update(customer_id for rules in every for customer_id, _ in rules.gap_thresholds)
