"""What the metrics say of a daemon at one moment, read of its stages. Part of the composition root."""

from __future__ import annotations

import asyncio
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Final, NamedTuple

from billaged import __version__
from billaged.aggregator.worker import Aggregator, AggregatorStatus
from billaged.directory import DataDirectory
from billaged.doors.connect import ConnectDoor
from billaged.doors.grpc_server import GrpcDoor
from billaged.doors.watchers import Watchers
from billaged.identity.material import Material
from billaged.intake.journal import Journal
from billaged.intake.service import Intake
from billaged.intake.sqlite import FILE_NAME as JOURNAL_NAME
from billaged.ledger.database import FILE_NAME as LEDGER_NAME
from billaged.meters import Meters
from billaged.model.time import NANOS, Clock
from billaged.security import Security
from billaged.settings import Settings
from billaged.summaries.broadcast import Broadcast
from billaged.telemetry.metrics import catalog as c
from billaged.telemetry.metrics.collector import Reading
from billaged.telemetry.metrics.labels import LABELLED_MAX, OTHER

# What a journal and a ledger have beside them while they are open.
_SUFFIXES: Final = ("", "-wal", "-shm")


class Stages(NamedTuple):
    """What is looked at. Without a directory nothing is on disk."""

    journal: Journal
    intake: Intake
    aggregator: Aggregator
    broadcast: Broadcast
    watchers: Watchers
    grpc: GrpcDoor
    connect: ConnectDoor
    security: Security
    directory: DataDirectory | None


class Observation:
    """Read by any thread, as often as somebody asks; takes the fold's lock for moments only."""

    def __init__(self, stages: Stages, meters: Meters, settings: Settings, clock: Clock) -> None:
        """To be made on the event loop."""
        self._stages = stages
        self._meters = meters
        self._settings = settings
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        # What the start has to tell.
        self.replayed_records = 0
        self.downtime_seconds = 0.0
        # Spans by what became of them; none where OpenTelemetry is off.
        self.spans: Callable[[], Mapping[str, int]] = dict
        self._more_customers_than_labels = False

    def read(self) -> Iterator[Reading]:
        """Every metric's values of this moment."""
        began = time.perf_counter()
        status = self._stages.aggregator.status()
        yield from chain(self._usage(status), self._missing(status), self._requests(), self._stores(status))
        yield from chain(self._intake(), self._identity(), self._process())
        yield Reading(c.SCRAPE, time.perf_counter() - began)

    def _usage(self, status: AggregatorStatus) -> Iterator[Reading]:
        fold = self._meters.fold
        if fold.by_vm is None:
            yield Reading(c.RECORDS, fold.samples)
        else:
            yield from (Reading(c.RECORDS_BY_VM, count, key) for key, count in fold.by_vm.read())
            yield Reading(c.LABELS_FULL, fold.by_vm.is_full, ("vm_id",))
        yield from self._active_vms(status)
        yield Reading(c.AGGREGATION, fold.folds.counted())
        yield from _by_label(c.SAMPLES, fold.outcomes)
        refused = self._stages.grpc.samples_refused + self._stages.connect.samples_refused
        yield Reading(c.SAMPLES, refused, ("refused",))
        yield from _by_label(c.ERRORS, self._errors())

    def _active_vms(self, status: AggregatorStatus) -> Iterator[Reading]:
        if self._settings.metrics.high_cardinality:
            counts = sorted(self._stages.aggregator.running_by_customer().items())
            # The ones with most VMs have labels: they are whom one asks about.
            counts.sort(key=lambda item: -item[1])
            shown = {customer_id: count for customer_id, count in counts[:LABELLED_MAX] if customer_id != OTHER}
            if rest := sum(count for _, count in counts) - sum(shown.values()):
                shown[OTHER] = rest
            self._more_customers_than_labels |= len(counts) > LABELLED_MAX
            yield from _by_label(c.ACTIVE_VMS_BY_CUSTOMER, shown)
            yield Reading(c.LABELS_FULL, self._more_customers_than_labels, ("customer_id",))
        else:
            yield Reading(c.ACTIVE_VMS, status.active_vms)
        yield Reading(c.KNOWN_VMS, status.known_vms)
        yield Reading(c.MAX_VMS, self._settings.aggregation.max_vms)
        yield Reading(c.CUSTOMERS, status.customers)

    def _errors(self) -> Mapping[str, int]:
        """Each of another kind: nothing is counted under two of them."""
        fold = self._meters.fold
        doors = chain(self._meters.grpc.read(), self._meters.http.read())
        return {
            **fold.dead_letters,
            "late": fold.outcomes["late"],
            "conflict": fold.outcomes["conflict"],
            "implausible": fold.anomalies["implausible"],
            "internal": sum(ended.by_code["INTERNAL"] for ended in doors),
        }

    def _missing(self, status: AggregatorStatus) -> Iterator[Reading]:
        fold = self._meters.fold
        yield from _by_label(c.OPEN_GAPS, status.silent_vms)
        yield from _by_label(c.ANOMALIES, fold.anomalies)
        yield from _by_label(c.DEAD_LETTERS, fold.dead_letters)
        yield Reading(c.INSTANCES, status.heard_instances, ("heard",))
        yield Reading(c.INSTANCES, status.silent_instances, ("silent",))
        if status.oldest_heartbeat_ns is not None:
            yield Reading(c.HEARTBEAT_AGE, max(0, self._clock.wall_nanos() - status.oldest_heartbeat_ns) / NANOS)

    def _requests(self) -> Iterator[Reading]:
        for ended in chain(self._meters.grpc.read(), self._meters.http.read()):
            for code, count in ended.by_code.items():
                yield Reading(c.REQUESTS, count, (ended.door, ended.method, code))
            if ended.durations is not None:
                yield Reading(c.REQUEST_DURATION, ended.durations, (ended.door, ended.method))
        security = self._stages.security.status()
        yield from _by_label(c.DENIED, security["denied"])
        yield Reading(c.THROTTLED, security["throttled"])
        yield Reading(c.CONNECTIONS_REFUSED, security["connections_refused"])
        yield Reading(c.WATCHERS, self._stages.watchers.open_count)
        yield Reading(c.WATCHERS_MAX, self._settings.grpc.watchers_max)
        yield Reading(c.SUMMARIES_DROPPED, self._stages.broadcast.dropped)

    def _stores(self, status: AggregatorStatus) -> Iterator[Reading]:
        journal, meter = self._stages.journal, self._meters.journal
        # Read after the ledger's: the other way round that could seem ahead.
        position, in_ledger = journal.position, status.ledger_position
        yield Reading(c.COMMIT, meter.commits.counted())
        yield Reading(c.GROUP, meter.group_records.counted())
        yield Reading(c.JOURNAL_POSITION, position)
        yield Reading(c.JOURNAL_ROWS, position - journal.pruned)
        yield Reading(c.LEDGER_POSITION, in_ledger)
        yield Reading(c.LAG_RECORDS, position - in_ledger)
        yield Reading(c.LAG_SECONDS, meter.lag_seconds(position, in_ledger))
        yield Reading(c.FLUSH, self._meters.fold.flushes.counted())
        yield Reading(c.DISK_NEEDED, self._settings.storage.min_free_bytes)
        if (directory := self._stages.directory) is not None:
            # What a disk in trouble does not tell is left out: all else is wanted just then.
            with suppress(OSError):
                yield Reading(c.DISK_FREE, directory.free_bytes())
                for store, name in (("journal", JOURNAL_NAME), ("ledger", LEDGER_NAME)):
                    yield Reading(c.FILE_BYTES, _size_bytes(directory, name), (store,))

    def _intake(self) -> Iterator[Reading]:
        intake, limits = self._stages.intake, self._settings.intake
        yield Reading(c.TAKING, intake.taking)
        yield Reading(c.QUEUE_RECORDS, intake.in_flight)
        yield Reading(c.QUEUE_RECORDS_MAX, limits.queue_max_records)
        yield Reading(c.QUEUE_BYTES, intake.in_flight_bytes)
        yield Reading(c.QUEUE_BYTES_MAX, limits.queue_max_bytes)

    def _identity(self) -> Iterator[Reading]:
        keeper = self._stages.security.keeper
        kept = keeper.status()
        if (material := keeper.material) is not None:
            yield from _by_label(c.CERTIFICATE_EXPIRY, _ends(material))
        yield Reading(c.IDENTITY_CHANGES, kept.changes)
        yield Reading(c.IDENTITY_REFUSALS, kept.refusals)
        yield Reading(c.POLICY_STALE, self._stages.security.status()["policy_problem"] is not None)

    def _process(self) -> Iterator[Reading]:
        settings = self._settings
        runs = (__version__, platform.python_version(), settings.tls.mode, settings.storage.store)
        yield Reading(c.BUILD, 1, runs)
        yield from _by_label(c.SPANS, self.spans())
        yield Reading(c.REPLAYED, self.replayed_records)
        yield Reading(c.DOWNTIME, self.downtime_seconds)
        yield Reading(c.THREADS, threading.active_count())
        yield Reading(c.TASKS, len(asyncio.all_tasks(self._loop)))


def _by_label(metric: c.Metric, values: Mapping[str, float]) -> Iterator[Reading]:
    return (Reading(metric, value, (label,)) for label, value in values.items())


def _ends(material: Material) -> Mapping[str, float]:
    """When each use of it ends, Unix time in seconds."""
    ends = {}
    if material.valid_until is not None:
        ends["identity"] = material.valid_until.timestamp()
    if material.trust is not None:
        domains = (roots for roots in material.trust.bundles.values() if roots)
        last = [max(root.not_valid_after_utc for root in roots) for roots in domains]
        if last:
            ends["trust"] = min(last).timestamp()
    return ends


def _size_bytes(directory: DataDirectory, name: str) -> int:
    size = 0
    for suffix in _SUFFIXES:
        try:
            size += (directory.path / f"{name}{suffix}").stat().st_size
        except FileNotFoundError:
            # The last one to close it removes what lies beside it.
            continue
    return size
