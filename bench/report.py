"""What a benchmark prints: measurements, ratios to a baseline, and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Verdict(NamedTuple):
    """One target, and whether it held."""

    what: str
    measured: str
    holds: bool


class Report:
    """Prints as it goes, and remembers the verdicts."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []

    def title(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def line(self, what: str, value: str, note: str = "") -> None:
        print(f"  {what:<46} {value:>14}  {note}".rstrip(), flush=True)

    def target(self, what: str, measured: str, holds: bool) -> None:
        self.verdicts.append(Verdict(what, measured, holds))
        print(f"  target: {what}: {measured}, {'holds' if holds else 'MISSED'}", flush=True)

    def summary(self) -> None:
        """All verdicts once more, for whoever looks at the end only."""
        self.title("targets")
        for verdict in self.verdicts:
            self.line(verdict.what, verdict.measured, "holds" if verdict.holds else "MISSED")

    @property
    def missed(self) -> bool:
        return any(not verdict.holds for verdict in self.verdicts)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that this many percent of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-len(ordered) * percent // 100) - 1))]


def ratio(value: float, baseline: float) -> str:
    return f"{value / baseline:.2f} of the baseline"


def spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
