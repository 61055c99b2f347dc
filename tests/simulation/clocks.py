"""Clocks that are wrong: by a little always, by a lot now and then."""

from __future__ import annotations

from auditor.events import SECOND_NS

from simulation.agenda import Agenda

_PARTS = 1_000_000


class HostClock:
    """A host's wall clock: off by some time, a little too fast or too slow, whole seconds where it is coarse."""

    def __init__(self, agenda: Agenda, offset_ns: int, drift_parts_per_million: int, *, coarse: bool) -> None:
        self._agenda = agenda
        self._began_ns = agenda.now_ns
        self._offset_ns = offset_ns
        self._drift = drift_parts_per_million
        self._grain_ns = SECOND_NS if coarse else 1

    def now_ns(self) -> int:
        true_ns = self._agenda.now_ns
        reading_ns = true_ns + self._offset_ns + (true_ns - self._began_ns) * self._drift // _PARTS
        return reading_ns - reading_ns % self._grain_ns

    def be_off_by(self, offset_ns: int) -> None:
        self._offset_ns = offset_ns


class MachineClock:
    """The clocks of billaged's machine. Satisfies ``billaged.model.time.Clock``."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._offset_ns = 0

    def wall_nanos(self) -> int:
        return self._agenda.now_ns + self._offset_ns

    def monotonic_nanos(self) -> int:
        return self._agenda.now_ns

    def be_off_by(self, offset_ns: int) -> None:
        self._offset_ns = offset_ns
