"""The intake and the journal's writer: when a caller hears yes, and when it does not. Real journal, real fold."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from client_fixtures import NOW_NS, SECOND, ToldClock
from door_fixtures import until
from intake_stages import Stages, metrics, payload_of, stages

from billaged.intake.clock import ClockWatch, awake_and_asleep_nanos, suspended_nanos
from billaged.intake.journal import entry_of
from billaged.model.errors import DurabilityLost, InvalidField, NotServing, Overloaded, WrongOwner
from billaged.model.records import Kind, Resumed, Tick, VmStarted, VmStopped
from billaged.wire.codec import encode_own

DAY = 86_400 * SECOND

# --- durable, then acknowledged ------------------------------------------------------


async def test_a_caller_hears_yes_only_after_the_commit(tmp_path: Path) -> None:
    async with stages(tmp_path) as s:
        s.journal.gate.clear()
        task = s.submit(metrics("vm-1"))
        await until(lambda: s.journal.at_gate == 1, "the commit begins")
        assert not task.done()
        assert s.rows() == []
        s.journal.gate.set()
        await task
        assert s.rows() == [(1, Kind.METRICS, "test", payload_of(metrics("vm-1")))]


async def test_who_waits_during_a_commit_makes_up_the_next_group_in_order(tmp_path: Path) -> None:
    async with stages(tmp_path) as s:
        s.journal.gate.clear()
        tasks = [s.submit(metrics("vm-0"))]
        await until(lambda: s.journal.at_gate == 1, "the first commit begins")
        tasks += [s.submit(metrics(f"vm-{number}")) for number in range(1, 51)]
        await until(lambda: s.intake.in_flight == 51, "all are handed over")
        s.journal.gate.set()
        await asyncio.gather(*tasks)
        assert s.journal.group_sizes == [1, 50]
        assert [row[3] for row in s.rows()] == [payload_of(metrics(f"vm-{number}")) for number in range(51)]
        await until(lambda: s.fold.folded_entries == 51, "all are folded")
        assert s.fold.known_vms() == 51


@pytest.mark.parametrize(
    ("bounds", "sizes"),
    [
        ({"group_max_records": 10}, [1, 10, 10, 5]),
        # A group is full with the record that reaches the bound.
        ({"group_max_bytes": 3 * len(payload_of(metrics("vm-10")))}, [1, *[3] * 8, 1]),
    ],
)
async def test_a_group_has_bounds(tmp_path: Path, bounds: dict[str, int], sizes: list[int]) -> None:
    async with stages(tmp_path, **bounds) as s:
        s.journal.gate.clear()
        tasks = [s.submit(metrics("vm-10"))]
        await until(lambda: s.journal.at_gate == 1, "the first commit begins")
        tasks += [s.submit(metrics(f"vm-{number}")) for number in range(10, 35)]
        await until(lambda: s.intake.in_flight == 26, "all are handed over")
        s.journal.gate.set()
        await asyncio.gather(*tasks)
        assert s.journal.group_sizes == sizes


async def test_a_commit_that_fails_refuses_everybody_and_is_the_end(tmp_path: Path) -> None:
    async with stages(tmp_path) as s:
        await s.submit(metrics("vm-before"))
        s.journal.gate.clear()
        in_group = s.submit(metrics("vm-1"))
        await until(lambda: s.journal.at_gate == 2, "the commit begins")
        behind = [s.submit(metrics(f"vm-{number}")) for number in (2, 3)]
        await until(lambda: s.intake.in_flight >= 3, "they wait behind it")
        # Somebody has broken the file: a real error of the real driver.
        with closing(sqlite3.connect(s.path)) as connection:
            connection.execute("DROP TABLE journal")
        s.journal.gate.set()
        for task in (in_group, *behind):
            with pytest.raises(NotServing, match="send again"):
                await task
        await until(lambda: bool(s.fatal), "the daemon is told")
        assert [type(error) for error in s.fatal] == [DurabilityLost]
        # Nothing that may not be durable went on to the fold.
        await until(lambda: s.fold.folded_entries == 1, "what was durable is folded")
        assert s.fold.knows("vm-before")
        assert not any(s.fold.knows(f"vm-{number}") for number in (1, 2, 3))


async def test_a_caller_that_goes_away_leaves_its_record_and_no_trouble(tmp_path: Path) -> None:
    async with stages(tmp_path) as s:
        s.journal.gate.clear()
        first, second = s.submit(metrics("vm-1")), s.submit(metrics("vm-2"))
        await until(lambda: s.intake.in_flight == 2, "both are handed over")
        first.cancel()
        s.journal.gate.set()
        await second
        assert first.cancelled()
        assert len(s.rows()) == 2
        await until(lambda: s.fold.knows("vm-1"), "it is folded all the same")


async def test_the_rows_decode_to_what_was_submitted(tmp_path: Path) -> None:
    sent = [VmStarted("vm-1", "acme", NOW_NS), metrics("vm-1"), VmStopped("vm-1", NOW_NS + 5)]
    async with stages(tmp_path) as s:
        for record in sent:
            await s.submit(record)
        s.intake.submit_own(tick := Tick(NOW_NS, SECOND, closes_interval=True))
        await until(lambda: s.fold.folded_entries == 4, "all four are folded")
        entries = [entry_of(row) for rows in s.journal.read(0) for row in rows]
    assert [entry.record for entry in entries] == [*sent, tick]
    assert [entry.caller for entry in entries] == ["test", "test", "test", ""]
    assert {entry.received_ns for entry in entries} == {NOW_NS}


# --- bounds --------------------------------------------------------------------------


async def test_the_queue_is_full_at_its_bound_and_has_room_again_once_all_is_folded(tmp_path: Path) -> None:
    async with stages(tmp_path, folding=False, queue_max_records=3) as s:
        for number in range(3):
            await s.submit(metrics(f"vm-{number}"))
        # Journaled and acknowledged, but not folded: still in flight, so that memory is bounded.
        assert s.intake.in_flight == 3
        with pytest.raises(Overloaded) as caught:
            await s.submit(metrics("vm-4"))
        assert caught.value.retry_after_seconds > 0
        assert len(s.rows()) == 3
        s.fold.start()
        await until(lambda: s.intake.in_flight == 0, "all are folded")
        assert s.intake.in_flight_bytes == 0
        await s.submit(metrics("vm-4"))


async def test_the_queue_is_bounded_in_bytes(tmp_path: Path) -> None:
    size = len(payload_of(metrics("vm-1")))
    async with stages(tmp_path, folding=False, queue_max_bytes=2 * size + 1) as s:
        await s.submit(metrics("vm-1"))
        await s.submit(metrics("vm-2"))
        assert s.intake.in_flight_bytes == 2 * size
        with pytest.raises(Overloaded):
            await s.submit(metrics("vm-3"))
        s.fold.start()
        await until(lambda: s.intake.in_flight_bytes == 0, "all are folded")


async def test_a_vm_too_many_is_refused_and_known_ones_go_on(tmp_path: Path) -> None:
    async with stages(tmp_path, max_vms=2) as s:
        await s.submit(metrics("vm-1"))
        await s.submit(metrics("vm-2"))
        await until(lambda: s.fold.known_vms() == 2, "both are folded")
        with pytest.raises(Overloaded, match="UNKEY_BILLAGED_MAX_VMS"):
            await s.submit(metrics("vm-3"))
        await s.submit(metrics("vm-1", time_ns=NOW_NS + 1))


async def test_it_takes_nothing_when_closed_or_without_disk_but_its_own(tmp_path: Path) -> None:
    async with stages(tmp_path) as s:
        s.intake.disk_is_full("no room")
        assert (s.intake.serving, s.intake.taking) == (True, False)
        with pytest.raises(Overloaded, match="no room"):
            await s.submit(metrics("vm-1"))
        s.intake.disk_is_full(None)
        s.intake.close("billaged is stopping")
        assert (s.intake.serving, s.intake.taking) == (False, False)
        with pytest.raises(NotServing, match="stopping"):
            await s.submit(metrics("vm-1"))
        s.intake.submit_own(Tick(NOW_NS, 0, closes_interval=True))
        await until(lambda: s.fold.folded_entries == 1, "the last tick")
        assert [row[1] for row in s.rows()] == [Kind.TICK]


async def test_a_time_without_disk_is_journaled_once_there_is_room(tmp_path: Path) -> None:
    async with stages(tmp_path) as s:
        s.intake.disk_is_full("no room")
        s.clock.advance(20)
        s.intake.disk_is_full("less room")
        s.clock.advance(10)
        s.intake.disk_is_full(None)
        s.intake.disk_is_full(None)
        await until(lambda: s.fold.folded_entries == 1, "the record of it")
        assert s.rows() == [(1, Kind.RESUMED, "", encode_own(Resumed(NOW_NS, NOW_NS + 30 * SECOND)))]


async def test_a_time_that_was_none_is_not_journaled(tmp_path: Path) -> None:
    async with stages(tmp_path) as s:
        s.intake.disk_is_full("no room")
        s.clock.wall_ns -= 5 * SECOND
        s.intake.disk_is_full(None)
        s.intake.resumed_after(NOW_NS)
        s.intake.submit_own(Tick(NOW_NS, 0, closes_interval=True))
        await until(lambda: s.fold.folded_entries == 1, "the tick")
        assert [row[1] for row in s.rows()] == [Kind.TICK]


# --- whose VM ------------------------------------------------------------------------


async def folded_for_acme(s: Stages) -> None:
    """vm-1 belongs to acme, as far as is folded; the fold's thread does not run yet."""
    await s.submit(metrics("vm-1"))
    s.fold.replay([[entry_of(row) for row in rows] for rows in s.journal.read(0)])
    assert s.fold.owner_of("vm-1") == "acme"


async def test_another_owner_waits_until_the_stop_before_it_is_folded(tmp_path: Path) -> None:
    async with stages(tmp_path, folding=False) as s:
        await folded_for_acme(s)
        await s.submit(VmStopped("vm-1", NOW_NS + 1))
        task = s.submit(VmStarted("vm-1", "globex", NOW_NS + 2))
        await s.submit(metrics("vm-2"))
        # The stop is durable but not folded: too early for a yes or a no.
        assert not task.done()
        s.fold.start()
        await task
        await until(lambda: s.fold.owner_of("vm-1") == "globex", "the start is folded")


async def test_another_owner_without_a_stop_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async with stages(tmp_path, folding=False) as s:
        await folded_for_acme(s)
        tasks = [s.submit(metrics("vm-1", "globex")), s.submit(VmStarted("vm-1", "globex", NOW_NS + 2))]
        s.fold.start()
        # What was folded by hand above comes again from the writer: a duplicate, which changes no owner.
        for task in tasks:
            with pytest.raises(WrongOwner) as caught:
                await task
            assert "acme" not in str(caught.value)
        assert len(s.rows()) == 1


# --- the clock -----------------------------------------------------------------------


def test_a_clock_that_steps_back_is_remembered_for_an_hour() -> None:
    clock = ToldClock()
    watch = ClockWatch(clock, NOW_NS)
    assert watch.now() == (NOW_NS, False)
    clock.advance(100)
    clock.wall_ns -= 4 * SECOND
    assert not watch.now().stepped_back, "that little is the clock being kept in order"
    clock.wall_ns -= 60 * SECOND
    assert watch.now() == (NOW_NS + 36 * SECOND, True)
    clock.advance(3599)
    assert watch.now().stepped_back
    clock.advance(2)
    assert not watch.now().stepped_back
    clock.wall_ns += 299 * SECOND
    assert not watch.now().stepped_back, "forward is no step back"


def test_a_clock_that_jumps_ahead_is_not_believed_until_it_stays(caplog: pytest.LogCaptureFixture) -> None:
    clock = ToldClock()
    watch = ClockWatch(clock, NOW_NS)
    clock.advance(100)
    clock.wall_ns += 100 * DAY
    # Judged by the time it would be; what is ahead of that may be right.
    assert watch.now() == (NOW_NS + 100 * SECOND, True)
    clock.advance(3)
    assert watch.now() == (NOW_NS + 103 * SECOND, True)
    clock.wall_ns -= 100 * DAY
    assert watch.now() == (NOW_NS + 103 * SECOND, False)
    clock.wall_ns += 7200 * SECOND
    assert watch.now() == (NOW_NS + 103 * SECOND, True)
    clock.advance(500)
    clock.wall_ns += 3600 * SECOND
    assert watch.now().stepped_back, "another jump"
    clock.advance(599)
    assert watch.now() == (NOW_NS + 1202 * SECOND, True)
    clock.advance(1)
    assert watch.now() == (NOW_NS + (1203 + 3 * 3600) * SECOND, False)
    assert caplog.text.count("has jumped ahead") == 3


def test_a_machine_that_slept_is_believed_at_once() -> None:
    clock, slept_ns = ToldClock(), [5 * SECOND]
    watch = ClockWatch(clock, NOW_NS, lambda: slept_ns[0])
    for hours in (1, 8):
        clock.wall_ns += hours * 3600 * SECOND
        slept_ns[0] += hours * 3600 * SECOND
        assert watch.now() == (clock.wall_ns, False)
    # Two hours are ten minutes of sleep and a jump.
    clock.wall_ns += 7200 * SECOND
    slept_ns[0] += 600 * SECOND
    assert watch.now() == (clock.wall_ns - 6600 * SECOND, True)


def test_the_machines_own_sleep_is_no_less_than_nothing() -> None:
    assert suspended_nanos() > -SECOND
    assert awake_and_asleep_nanos() > 0


async def test_while_our_clock_is_ahead_good_samples_are_taken_and_stamped_right(tmp_path: Path) -> None:
    async with stages(tmp_path) as s:
        s.clock.wall_ns += 100 * DAY
        await s.submit(metrics("vm-1"))
        with pytest.raises(NotServing):
            await s.submit(metrics("vm-1", time_ns=NOW_NS + 100 * DAY))
        assert s.journal.newest_received_ns() == NOW_NS


def test_a_clock_behind_what_is_journaled_has_stepped_back_while_nobody_looked() -> None:
    assert ClockWatch(ToldClock(), NOW_NS + 60 * SECOND).now().stepped_back
    assert not ClockWatch(ToldClock(), NOW_NS + 4 * SECOND).now().stepped_back


async def test_while_our_clock_is_wrong_the_future_is_unavailable_and_not_invalid(tmp_path: Path) -> None:
    ahead = metrics("vm-1", time_ns=NOW_NS + 600 * SECOND)
    async with stages(tmp_path) as s:
        with pytest.raises(InvalidField):
            await s.submit(ahead)
        s.clock.wall_ns -= 3600 * SECOND
        with pytest.raises(NotServing, match="clock cannot be trusted"):
            await s.submit(ahead)
        assert s.rows() == []
