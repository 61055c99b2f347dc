"""How the points of a clean run come: late, twice, in any order, packed anew; and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from auditor.bill import Bill
from auditor.chooser import Chooser
from auditor.events import HOUR_NS, MINUTE_NS, Batch, Event, Sample, Started, Stopped, Tick, What
from auditor.text import canonical_json

from simulation.clean import Point

_DELAYS = (0, 0, 0, 0, 1, 1, 2, 3, 5, 12, 1_000)


def delivered(chooser: Chooser, points: Sequence[Point], *, changed: bool = False) -> list[What]:
    """In hostile order, some of them again and again; with ``changed``, some also with other values."""
    sent: list[tuple[int, Point]] = []
    for place, point in enumerate(points):
        sent.append((place + chooser.pick(_DELAYS), point))
        while chooser.pick((False, False, False, False, True)):
            sent.append((place + chooser.pick(_DELAYS), point))
        if changed and isinstance(point.what, Batch) and chooser.pick((False, False, False, True)):
            sent.append((place + chooser.pick(_DELAYS), _with_other_values(chooser, point)))
    sent.sort(key=lambda item: item[0])
    return packed(chooser, [point for _, point in sent])


def packed(chooser: Chooser, points: Sequence[Point], apart: Sequence[Point] = ()) -> list[What]:
    """Neighbouring samples of one VM may come in one batch, and time passes between requests.

    Those that are ``apart`` are in no batch with others: a batch is sorted before it is read.
    """
    whats: list[What] = []
    open_batches: dict[tuple[str, bool], int] = {}
    newest_ns = 0
    for point in points:
        lane = (point.vm_id, point in apart)
        at = open_batches.get(lane)
        if isinstance(point.what, Batch) and at is not None and chooser.pick((True, False)):
            before = whats[at]
            assert isinstance(before, Batch)
            whats[at] = before._replace(samples=[*before.samples, *point.what.samples])
            continue
        whats.append(point.what)
        if isinstance(point.what, Batch):
            open_batches[lane] = len(whats) - 1
        else:
            open_batches.pop((point.vm_id, False), None)
            open_batches.pop((point.vm_id, True), None)
        newest_ns = max(newest_ns, point.time_ns)
        if chooser.pick((False, False, False, True)):
            whats.append(Tick(newest_ns, chooser.pick((MINUTE_NS, 10 * MINUTE_NS, HOUR_NS)), False))
            open_batches.clear()
    return whats


def swapped(chooser: Chooser, points: Sequence[Point]) -> list[What]:
    """Each VM's points in order of time but for neighbours that change places, and some at once again."""
    order = list(points)
    last: dict[str, int] = {}
    for place, point in enumerate(order):
        before = last.get(point.vm_id)
        if before is not None and chooser.pick((False, True)):
            order[before], order[place] = order[place], order[before]
            # Both have moved: neither moves again.
            del last[point.vm_id]
        else:
            last[point.vm_id] = place
    return packed(chooser, [point for each in order for point in [each] * chooser.pick((1, 1, 1, 2))])


def after_an_outage(chooser: Chooser, points: Sequence[Point], threshold_ns: int) -> list[What]:
    """In order, but what was sampled in one longer silence of each VM comes after it, at any time, in any order."""
    held: list[Point] = []
    sent: list[Point] = []
    for vm_id in sorted({point.vm_id for point in points}):
        mine = [point for point in points if point.vm_id == vm_id]
        begin = chooser.between(1, max(len(mine) - 1, 1))
        for at in range(begin, len(mine)):
            around = mine[begin - 1], *mine[begin : at + 1]
            if not all(isinstance(point.what, Batch) for point in around):
                break
            if mine[at].time_ns - mine[begin - 1].time_ns > threshold_ns:
                held += mine[begin:at]
                break
    for point in points:
        if point not in held:
            sent.append(point)
    for point in held:
        # After what came first beyond the silence.
        beyond = next(
            place
            for place, other in enumerate(sent)
            if other.vm_id == point.vm_id and other.time_ns > point.time_ns and other not in held
        )
        sent.insert(chooser.between(beyond + 1, len(sent)), point)
    return packed(chooser, sent, apart=held)


def shuffled(chooser: Chooser, points: Sequence[Point]) -> list[What]:
    """In any order at all, and some twice."""
    sent: list[Point] = []
    for point in points:
        for _ in range(chooser.pick((1, 1, 1, 2))):
            sent.insert(chooser.between(0, len(sent)), point)
    return packed(chooser, sent)


def _with_other_values(chooser: Chooser, point: Point) -> Point:
    assert isinstance(point.what, Batch)
    sample = Sample(*point.what.samples[0])
    other = sample._replace(
        memory_bytes=sample.memory_bytes ^ 1, cpu_time_ns=max(sample.cpu_time_ns + chooser.pick((0, 1, -1)), 0)
    )
    return point._replace(what=point.what._replace(samples=[other]))


def points_in(events: Sequence[Event]) -> Iterator[Point]:
    """Every delivery of every point."""
    for event in events:
        what = event.what
        if isinstance(what, Batch):
            for row in what.samples:
                yield Point(Sample(*row).time_ns, what.vm_id, what._replace(samples=[Sample(*row)]))
        elif isinstance(what, Started):
            yield Point(what.start_ns, what.vm_id, what)
        elif isinstance(what, Stopped):
            yield Point(what.stop_ns, what.vm_id, what)


class Fates:
    """What a bill says became of the points of its journal."""

    def __init__(self, bill: Bill, events: Sequence[Event]) -> None:
        self._deliveries = Counter(map(_key, points_in(events)))
        self._points = {_key(point): point for point in points_in(events)}
        self._refused: Counter[tuple[object, ...]] = Counter()
        contradicted: Counter[tuple[object, ...]] = Counter()
        for row in bill.rows("anomalies"):
            vm_id, at_ns = row["vm_id"], row["at_ns"]
            if row["kind"] in ("late", "conflict"):
                self._refused["sample", vm_id, at_ns, row["detail"]] += 1
            elif row["kind"] == "late_start":
                self._refused["start", vm_id, at_ns, ""] += 1
            elif row["kind"] == "late_stop":
                self._refused["stop", vm_id, at_ns, ""] += 1
            elif row["kind"] == "contradicted_stop":
                contradicted["stop", vm_id, at_ns, ""] += 1
        # Refused, or taken and told by a later sample to be wrong: the record is the same.
        self.doubtful = [
            self._points[key]
            for key, count in contradicted.items()
            if count + self._refused[key] >= self._deliveries[key] > self._refused[key]
        ]

    def taken(self) -> list[Point]:
        """Points that are in the bill; those that are doubtful, too."""
        return [point for key, point in self._points.items() if self._refused[key] < self._deliveries[key]]

    def refused(self) -> list[Point]:
        """Points that came and are on record, but bill nothing."""
        return [point for key, point in self._points.items() if self._refused[key] >= self._deliveries[key]]

    def count(self, sort: str) -> int:
        """Deliveries of samples, starts or stops."""
        return sum(count for key, count in self._deliveries.items() if key[0] == sort)


def _key(point: Point) -> tuple[object, ...]:
    what = point.what
    if isinstance(what, Batch):
        values = canonical_json({"values": list(Sample(*what.samples[0]).values)})
        return ("sample", point.vm_id, point.time_ns, values)
    return ("start" if isinstance(what, Started) else "stop", point.vm_id, point.time_ns, "")
