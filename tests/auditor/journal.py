"""Journals written by hand, in seconds: for tests whose numbers somebody can check on paper."""

from __future__ import annotations

from auditor.bill import Bill
from auditor.biller import bill
from auditor.events import SECOND_NS, Batch, Event, Rules, Sample, Started, Stopped, Tick, What
from auditor.invariants import Named

# 2027, on an hour. All seconds count from here.
EPOCH_SECONDS = 1_800_000_000
VM = "vm-1"
GIB = 2**30


def at(seconds: float) -> int:
    """Nanoseconds of a second of the journal; a fraction must be exact in binary."""
    return EPOCH_SECONDS * SECOND_NS + int(seconds * SECOND_NS)


def sample(seconds: float, cpu: int = 0, memory: int = 0, disk: int = 0) -> Sample:
    """``cpu`` in ns, ``memory`` and ``disk`` (read) in bytes."""
    return Sample(at(seconds), memory, cpu, disk, 0, 0, 0)


class Journal:
    """Appends events and keeps their bill. Each method gives the journal back."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.events: list[Event] = []
        self.add(rules or Rules())

    def add(self, what: What) -> Journal:
        sequence = len(self.events) + 1
        self.events.append(Event(sequence, at(sequence), "caller", what))
        return self

    def samples(self, *rows: Sample, customer: str = "acme") -> Journal:
        return self.add(Batch(VM, customer, rows))

    def start(self, seconds: float, customer: str = "acme") -> Journal:
        return self.add(Started(VM, customer, at(seconds)))

    def stop(self, seconds: float) -> Journal:
        return self.add(Stopped(VM, at(seconds)))

    def tick(self, seconds: float, length_seconds: float) -> Journal:
        return self.add(Tick(at(seconds), int(length_seconds * SECOND_NS), True))

    def bill(self) -> Bill:
        checked = bill(self.events)
        checked.check()
        return checked

    def sessions(self) -> list[Named]:
        return self.bill().rows("sessions")

    def session(self) -> Named:
        """The newest of the one VM."""
        return self.sessions()[-1]

    def anomalies(self) -> list[tuple[object, ...]]:
        """(sequence, item, kind, ordinal, second, detail)"""
        return [
            (row["sequence"], row["item"], row["kind"], row["ordinal"], second(row["at_ns"]), row["detail"])
            for row in self.bill().rows("anomalies")
        ]

    def tallies(self) -> dict[str, int]:
        return dict(self.bill().dump()["tallies"])


def second(time_ns: int) -> float:
    """The way back from ``at``."""
    return (time_ns - EPOCH_SECONDS * SECOND_NS) / SECOND_NS


Life = tuple[object, ...]


def life(row: Named) -> Life:
    """(ordinal, explicit, start, last, end, end kind) of a session, in nanoseconds."""
    names = ("ordinal", "explicit", "start_ns", "last_ns", "end_ns", "end_kind")
    return tuple(row[name] for name in names)


def expected(
    ordinal: int, explicit: int, start: float, last: float, end: float | None = None, kind: str = "stop"
) -> Life:
    """The same from seconds, to compare with."""
    ended = (None, None) if end is None else (at(end), kind)
    return (ordinal, explicit, at(start), at(last), *ended)
