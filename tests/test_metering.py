"""Metering, with the time passed in: ticks, and a spool that has no room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from client_fixtures import (
    NOW_NS,
    SECOND,
    Rig,
    ToldClock,
    delivery_rig,
    reading,
    sample_times,
    seconds_of,
)

from billaged.client.agent import Agent
from billaged.client.backoff import Backoff
from billaged.client.courier import Courier
from billaged.client.metering import Metering
from billaged.client.readings import Observation
from billaged.client.spool import Spool
from billaged.model.records import Kind
from billaged.wire.billing.v1 import billing_pb2 as pb


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with delivery_rig(tmp_path / "spool") as built:
        yield built


class Script:
    """A source that says what it is given, a list a tick."""

    def __init__(self, *ticks: list[Observation]) -> None:
        self._ticks = list(ticks)

    def observe(self) -> list[Observation]:
        return self._ticks.pop(0)

    def spooled(self) -> None:
        pass

    def exhausted(self) -> bool:
        return not self._ticks


def test_a_full_spool_leaves_samples_out_and_reports_the_gap(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    at = [NOW_NS + second * SECOND for second in range(200)]
    ticks = [[Observation("a", reading(ns)), Observation("b", reading(ns))] for ns in at]
    ticks[150] = [Observation("a", reading(at[150])), Observation("b", stopped_ns=at[149])]
    for second in range(151, 200):
        ticks[second] = [Observation("a", reading(at[second]))]
    ticks[160].append(Observation("new", reading(at[160]), started_ns=at[159]))
    for second in range(161, 200):
        ticks[second].append(Observation("new", reading(at[second])))
    spool = Spool(tmp_path / "small", 4_096)
    metering = Metering([Script(*ticks)], spool, "c", rig.clock)
    for _ in range(190):
        metering.tick()
    assert spool.used_bytes <= 4_096 + 512
    courier = Courier(rig.client, spool, "here", lambda: metering.active_vms, rig.clock, Backoff())
    while courier.deliver() == 0.0:
        continue
    metering.tick()
    while courier.deliver() == 0.0:
        continue
    spool.close()
    times = sample_times(rig.server.taken, "a")
    sent = len(times) - 1
    assert times == [*at[:sent], at[190]], "the samples up to when it was full, and from when there was room"
    for vm_id, expected in {
        "a": [
            pb.NotifyPossibleGapRequest(vm_id="a", last_sent=at[sent - 1], resume_time=at[190]),
        ],
        "b": [
            pb.NotifyPossibleGapRequest(vm_id="b", last_sent=at[sent - 1], resume_time=at[149]),
            pb.NotifyVmStoppedRequest(vm_id="b", stop_time=at[149]),
        ],
        "new": [
            pb.NotifyVmStartedRequest(vm_id="new", customer_id="c", start_time=at[159]),
            pb.NotifyPossibleGapRequest(vm_id="new", last_sent=at[159], resume_time=at[190]),
        ],
    }.items():
        of_vm = [message for message in rig.server.taken if getattr(message, "vm_id", "") == vm_id]
        assert [message for message in of_vm if not isinstance(message, pb.SendMetricsBatchRequest)] == expected
    assert sample_times(rig.server.taken, "new") == [at[190]]
    assert sum("samples are left out" in record.getMessage() for record in caplog.records) == 1, "said once"


def test_an_end_while_the_spool_is_full_reports_the_gap_so_far(rig: Rig, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "small", 4_096)
    at = [NOW_NS + second * SECOND for second in range(200)]
    metering = Metering([Script(*[[Observation("a", reading(ns))] for ns in at])], spool, "c", rig.clock)
    for _ in at:
        metering.tick()
    rig.clock.advance(500)
    metering.finish()
    last = spool.peek(10**6, 10**9)[0][-1]
    spool.close()
    gap = pb.NotifyPossibleGapRequest.FromString(last.payload)
    assert last.kind is Kind.POSSIBLE_GAP
    assert NOW_NS < gap.last_sent < at[-1]
    assert gap.resume_time == NOW_NS + 500 * SECOND


class Ticks:
    """What ends an agent after some ticks, and moves the told clock between them instead of waiting."""

    def __init__(self, clock: ToldClock, steps_seconds: list[float]) -> None:
        self._clock = clock
        self._steps_seconds = steps_seconds
        self.asked_seconds: list[float] = []

    def wait(self, timeout: float) -> bool:
        self.asked_seconds.append(timeout)
        if not self._steps_seconds:
            return True
        self._clock.advance(self._steps_seconds.pop(0))
        return False


def test_ticks_keep_to_their_grid_and_missed_ones_are_left_out(rig: Rig) -> None:
    source = Script(*[[Observation("a", reading(NOW_NS + tick * SECOND))] for tick in range(9)])
    metering = Metering([source], rig.spool, "c", rig.clock)
    stop = Ticks(rig.clock, [1.25, 0.75, 5.5, 0.5])
    Agent(metering, rig.courier, rig.client, rig.spool, rig.clock, stop).run(SECOND)
    assert stop.asked_seconds == [1.0, 0.75, 1.0, 0.5, 1.0]
    assert seconds_of(rig.server.taken, "a") == [0, 1, 2, 3, 4]
    assert rig.spool.used_bytes == 0, "an end sends what it can"
