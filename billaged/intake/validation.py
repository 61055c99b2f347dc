"""What a record may hold. One clear error, naming the field, before anything is written.

Pure: the time is an argument.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from billaged.model.errors import InvalidField, NotServing
from billaged.model.ids import is_id, why_not_id
from billaged.model.records import (
    MAX_MEMORY_BYTES,
    SAMPLE_WIDTH,
    Heartbeat,
    MetricsBatch,
    PossibleGap,
    Record,
    VmStarted,
    VmStopped,
)
from billaged.model.time import DAY_NANOS, MINUTE_NANOS, format_duration, format_instant

# The wire's names of a sample's columns, for errors.
_WIRE_FIELDS: Final = (
    "timestamp",
    "memory_usage_bytes",
    "cpu_time_nanos",
    "disk_read_bytes",
    "disk_write_bytes",
    "network_rx_bytes",
    "network_tx_bytes",
)
# An int64 time below this (March 1973 in nanoseconds) was meant in another unit.
_PLAUSIBLE_NANOS: Final = 10**17
_UNITS: Final = ((10**11, "seconds"), (10**14, "milliseconds"), (10**17, "microseconds"))


class Limits(NamedTuple):
    """How much and how far a request may reach; from the settings."""

    max_samples_per_batch: int = 100_000
    max_active_vms_per_heartbeat: int = 100_000
    max_sample_age_ns: int = 35 * DAY_NANOS
    max_future_ns: int = 5 * MINUTE_NANOS


class Now(NamedTuple):
    """The time a request is judged by."""

    wall_ns: int
    # The machine's clock is known to have gone back: what seems ahead may be right.
    stepped_back: bool = False


def validate(record: Record, limits: Limits, now: Now) -> None:
    """
    Raises:
        InvalidField: the record may not be taken, now or later.
        NotServing: it seems to come from the future, but it is billaged's clock that is wrong.
    """
    if isinstance(record, MetricsBatch):
        _metrics(record, limits, now)
    elif isinstance(record, VmStarted):
        _id("vm_id", record.vm_id)
        _id("customer_id", record.customer_id)
        _instant("start_time", record.start_ns, limits, now)
    elif isinstance(record, VmStopped):
        _id("vm_id", record.vm_id)
        _instant("stop_time", record.stop_ns, limits, now)
    elif isinstance(record, Heartbeat):
        _heartbeat(record, limits)
    elif isinstance(record, PossibleGap):
        _id("vm_id", record.vm_id)
        _instant("last_sent", record.last_sent_ns, limits, now)
        _instant("resume_time", record.resume_ns, limits, now)
        if record.resume_ns < record.last_sent_ns:
            raise InvalidField("resume_time", "must not be before last_sent")


def _metrics(batch: MetricsBatch, limits: Limits, now: Now) -> None:
    # The common case first: everything in order costs two matches and a few comparisons.
    if not is_id(batch.vm_id):
        _id("vm_id", batch.vm_id)
    if not is_id(batch.customer_id):
        _id("customer_id", batch.customer_id)
    samples = batch.samples
    if len(samples) == SAMPLE_WIDTH:
        time_ns = samples[0]
        if (
            now.wall_ns - limits.max_sample_age_ns <= time_ns <= now.wall_ns + limits.max_future_ns
            and min(samples) >= 0
            and samples[1] <= MAX_MEMORY_BYTES
        ):
            return
    elif not samples:
        raise InvalidField("metrics", "must not be empty")
    elif len(samples) > limits.max_samples_per_batch * SAMPLE_WIDTH:
        count = len(samples) // SAMPLE_WIDTH
        raise InvalidField("metrics", f"holds {count} samples, at most {limits.max_samples_per_batch} may come at once")
    _columns(batch, limits, now)


def _columns(batch: MetricsBatch, limits: Limits, now: Now) -> None:
    values = np.frombuffer(batch.samples, dtype=np.int64).reshape(-1, SAMPLE_WIDTH)
    negative = values < 0
    if negative.any():
        index, column = np.argwhere(negative)[0].tolist()
        raise InvalidField(f"metrics[{index}].{_WIRE_FIELDS[column]}", f"is negative: {values[index, column]}")
    large = np.flatnonzero(values[:, 1] > MAX_MEMORY_BYTES)
    if len(large):
        index = int(large[0])
        raise InvalidField(
            f"metrics[{index}].memory_usage_bytes", f"{values[index, 1]} is more than 2^48 bytes, which no machine has"
        )
    times = values[:, 0]
    old = np.flatnonzero(times < now.wall_ns - limits.max_sample_age_ns)
    if len(old):
        index = int(old[0])
        age = format_duration(limits.max_sample_age_ns)
        raise InvalidField(
            f"metrics[{index}].timestamp", f"{format_instant(int(times[index]))} is more than {age} in the past"
        )
    ahead = np.flatnonzero(times > now.wall_ns + limits.max_future_ns)
    if len(ahead):
        index = int(ahead[0])
        _refuse_future(f"metrics[{index}].timestamp", int(times[index]), limits, now)


def _heartbeat(heartbeat: Heartbeat, limits: Limits) -> None:
    _id("instance_id", heartbeat.instance_id)
    count, most = len(heartbeat.active_vms), limits.max_active_vms_per_heartbeat
    if count > most:
        raise InvalidField("active_vms", f"lists {count} VMs, at most {most} may come at once")
    for index, vm_id in enumerate(heartbeat.active_vms):
        if not is_id(vm_id):
            _id(f"active_vms[{index}]", vm_id)


def _id(field: str, text: str) -> None:
    if problem := why_not_id(text):
        raise InvalidField(field, problem)


def _instant(field: str, nanos: int, limits: Limits, now: Now) -> None:
    if nanos == 0:
        raise InvalidField(field, "is missing: nanoseconds since the Unix epoch are expected")
    if nanos < 0:
        raise InvalidField(field, f"is negative: {nanos}")
    if nanos < _PLAUSIBLE_NANOS:
        unit = next(unit for below, unit in _UNITS if nanos < below)
        raise InvalidField(field, f"{nanos} looks like {unit}; nanoseconds since the Unix epoch are expected")
    if nanos > now.wall_ns + limits.max_future_ns:
        _refuse_future(field, nanos, limits, now)


def _refuse_future(field: str, nanos: int, limits: Limits, now: Now) -> None:
    ahead = f"{field}: {format_instant(nanos)} is more than {format_duration(limits.max_future_ns)} ahead"
    if now.stepped_back:
        raise NotServing(f"{ahead}, but billaged's own clock cannot be trusted now; try again later", 30.0)
    raise InvalidField(field, ahead.removeprefix(f"{field}: ") + f" of {format_instant(now.wall_ns)}")
