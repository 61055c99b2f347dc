"""One tick of metering: read the sources, put what they say into the spool."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain

from billaged.client.readings import (
    Observation,
    Source,
    metrics_record,
    possible_gap_record,
    started_record,
    stopped_record,
)
from billaged.client.segment import SpoolRecord
from billaged.client.spool import Spool, SpoolRefused
from billaged.model.time import Clock

_log = logging.getLogger(__name__)


class Metering:
    """Turns observations into records, and remembers what the spool had no room for."""

    def __init__(self, sources: Sequence[Source], spool: Spool, customer_id: str, clock: Clock) -> None:
        self._sources = sources
        self._spool = spool
        self._customer_id = customer_id
        self._clock = clock
        # When each running VM's newest sample in the spool was taken.
        self._sampled_ns: dict[str, int] = {}
        # VMs whose samples are being left out, and when each one's last sample before that was taken.
        self._left_out_since_ns: dict[str, int] = {}
        self._said_left_out = False
        # Replaced as a whole, never changed: another thread reads it.
        self.active_vms: tuple[str, ...] = ()

    def tick(self) -> None:
        """Read every source once. Where the spool takes no samples, starts and stops still go into it."""
        observations = list(chain.from_iterable(source.observe() for source in self._sources))
        self.active_vms = tuple(seen.vm_id for seen in observations if seen.reading is not None)
        if self._append(list(chain.from_iterable(map(self._records, observations)))):
            self._settle(observations)
        else:
            self._leave_out(observations)

    def exhausted(self) -> bool:
        """Whether there is nothing left to meter."""
        return all(source.exhausted() for source in self._sources)

    def finish(self) -> None:
        """Before the agent ends: report the gaps that are still open."""
        now_ns = self._clock.wall_nanos()
        self._append([possible_gap_record(vm_id, ns, now_ns) for vm_id, ns in self._left_out_since_ns.items()])

    def _records(self, seen: Observation) -> list[SpoolRecord]:
        records = self._notices_before(seen)
        if seen.reading is not None:
            records.append(metrics_record(seen.vm_id, self._customer_id, seen.reading))
        if seen.stopped_ns is not None:
            records.append(stopped_record(seen.vm_id, seen.stopped_ns))
        return records

    def _notices_before(self, seen: Observation) -> list[SpoolRecord]:
        records = []
        if seen.started_ns is not None:
            records.append(started_record(seen.vm_id, self._customer_id, seen.started_ns))
        last_ns = self._left_out_since_ns.get(seen.vm_id)
        resume_ns = seen.reading.time_ns if seen.reading is not None else seen.stopped_ns
        if last_ns is not None and resume_ns is not None:
            records.append(possible_gap_record(seen.vm_id, last_ns, resume_ns))
        return records

    def _append(self, records: list[SpoolRecord]) -> bool:
        try:
            self._spool.append(records)
        except SpoolRefused as error:
            if not self._said_left_out:
                _log.error("%s: samples are left out until there is room", error)
                self._said_left_out = True
            return False
        return True

    def _settle(self, observations: list[Observation]) -> None:
        if self._left_out_since_ns:
            _log.info("there is room in the spool again; gaps reported for %d VMs", len(self._left_out_since_ns))
        self._left_out_since_ns.clear()
        self._said_left_out = False
        for seen in observations:
            if seen.reading is not None:
                self._sampled_ns[seen.vm_id] = seen.reading.time_ns
            else:
                self._sampled_ns.pop(seen.vm_id, None)
        for source in self._sources:
            source.spooled()

    def _leave_out(self, observations: list[Observation]) -> None:
        for seen in observations:
            # A VM's notices stay together, so that its stop is never without the gap before it.
            notices: list[SpoolRecord] = []
            if seen.started_ns is not None:
                notices.append(started_record(seen.vm_id, self._customer_id, seen.started_ns))
            if seen.reading is not None:
                before_ns = seen.started_ns or seen.reading.time_ns
                self._left_out_since_ns.setdefault(seen.vm_id, self._sampled_ns.get(seen.vm_id, before_ns))
            elif seen.stopped_ns is not None:
                last_ns = self._left_out_since_ns.pop(seen.vm_id, None)
                if last_ns is not None:
                    notices.append(possible_gap_record(seen.vm_id, last_ns, seen.stopped_ns))
                notices.append(stopped_record(seen.vm_id, seen.stopped_ns))
                self._sampled_ns.pop(seen.vm_id, None)
            if not self._append(notices):
                _log.error("%s: a start or a stop is lost, the spool has no room even for it", seen.vm_id)
