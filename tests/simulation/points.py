"""What the journal says of each VM: its points, as they were taken, whatever the fold made of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from auditor.events import Batch, Event, Sample, Started, Stopped


@dataclass
class Points:
    """Of one VM, each once, in order of time."""

    samples: list[Sample] = field(default_factory=list)
    starts_ns: list[int] = field(default_factory=list)
    stops_ns: list[int] = field(default_factory=list)

    @property
    def times_ns(self) -> list[int]:
        return sorted({*(sample.time_ns for sample in self.samples), *self.starts_ns, *self.stops_ns})


def points_of(events: Iterable[Event]) -> dict[str, Points]:
    found: defaultdict[str, tuple[set[Sample], set[int], set[int]]] = defaultdict(lambda: (set(), set(), set()))
    for event in events:
        what = event.what
        if isinstance(what, Batch):
            found[what.vm_id][0].update(Sample(*row) for row in what.samples)
        elif isinstance(what, Started):
            found[what.vm_id][1].add(what.start_ns)
        elif isinstance(what, Stopped):
            found[what.vm_id][2].add(what.stop_ns)
    return {vm_id: Points(*map(sorted, sets)) for vm_id, sets in found.items()}
