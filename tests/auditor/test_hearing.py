"""Silence by hand: who is heard, who is listed, what vanishes and what comes back. Ticks count, clocks do not."""

from __future__ import annotations

import pytest

from auditor.events import Heartbeat, PossibleGap, Resumed, Rules
from auditor.journal import GIB, VM, Journal, at, expected, life, sample, second

HOST, OTHER = "host-1", "host-2"
QUARTER = 900


def silences(journal: Journal) -> list[tuple[object, ...]]:
    """(VM, start, reason, end, sequence)"""
    return [
        (
            row["vm_id"],
            second(row["start_ns"]),
            row["reason"],
            None if row["end_ns"] is None else second(row["end_ns"]),
            row["sequence"],
        )
        for row in journal.bill().rows("silences")
    ]


def pass_time(journal: Journal, seconds: float) -> Journal:
    """A tick whose clock stands still."""
    return journal.tick(0, seconds)


def listed(journal: Journal, *vm_ids: str, host: str = HOST) -> Journal:
    return journal.add(Heartbeat(host, vm_ids))


def found(journal: Journal) -> list[tuple[object, ...]]:
    return [(row[0], *row[2:5], row[5]) for row in journal.anomalies()]


# Silent VMs


def test_a_running_vm_is_silent_after_the_gap_threshold_of_ticks() -> None:
    journal = pass_time(Journal().samples(sample(10)), QUARTER - 1)
    assert silences(journal) == []
    assert silences(pass_time(journal, 1)) == [(VM, 10, "no_samples", None, 4)]
    # Once; and the clock says nothing.
    journal.tick(10**6, QUARTER)
    assert silences(journal) == [(VM, 10, "no_samples", None, 4)]
    assert silences(journal.samples(sample(1000), sample(1060))) == [(VM, 10, "no_samples", 1000, 4)]
    assert life(journal.session()) == expected(1, 0, 10, 1060)


def test_silence_counts_in_whole_seconds_rounded_down_at_either_end() -> None:
    journal = pass_time(Journal(Rules(gap_threshold_ns=10**9)), 0.75).samples(sample(10))
    # Heard at 0, now 1: though only half a second went by.
    assert len(silences(pass_time(journal, 0.5))) == 1
    journal = pass_time(Journal(Rules(gap_threshold_ns=10**9)), 1).samples(sample(10))
    assert len(silences(pass_time(journal, 0.75))) == 0


@pytest.mark.parametrize("heard", ["late sample", "duplicate", "late start", "stop of before"])
def test_a_vm_is_heard_with_whatever_it_says(heard: str) -> None:
    journal = pass_time(Journal().samples(*(sample(when) for when in (0, 10, 20, 30))), QUARTER - 1)
    if heard == "late sample":
        journal.samples(sample(11))
    elif heard == "duplicate":
        journal.samples(sample(30))
    elif heard == "late start":
        journal.start(11)
    else:
        journal.stop(11)
    assert silences(pass_time(journal, QUARTER - 1)) == []
    assert len(silences(pass_time(journal, 1))) == 1


def test_a_dead_letter_and_a_reported_gap_are_not_heard() -> None:
    journal = pass_time(Journal().samples(sample(0)), QUARTER - 1)
    journal.samples(sample(10), customer="globex").start(5, "globex").add(PossibleGap(VM, at(0), at(10)))
    assert len(silences(pass_time(journal, 1))) == 1


def test_an_ended_vm_is_never_silent() -> None:
    assert silences(pass_time(Journal().samples(sample(0)).stop(10), 10**6)) == []


@pytest.mark.parametrize(
    ("beats", "reason"),
    [((), "no_samples"), ((HOST,), "silent_vm"), ((OTHER, HOST), "silent_vm")],
)
def test_a_silent_vms_reason_is_who_lists_it(beats: tuple[str, ...], reason: str) -> None:
    journal = Journal().samples(sample(0))
    for host in beats:
        listed(journal, VM, host=host)
    # Each instance is heard in time.
    for _ in range(15):
        pass_time(journal, 60)
        for host in beats[-1:]:
            listed(journal, VM, host=host)
    assert [row[2] for row in silences(journal)] == [reason]


# Silent instances


def test_an_instance_not_heard_for_90_seconds_is_silent_and_so_are_the_vms_that_it_alone_lists() -> None:
    journal = pass_time(listed(Journal().samples(sample(5)), VM, "unknown"), 89)
    assert journal.bill().dump()["instances"] == [(HOST, at(3), f'["unknown","{VM}"]', 0, 0)]
    assert silences(journal) == []
    assert silences(pass_time(journal, 1)) == [(VM, 5, "silent_host", None, 5)]
    assert journal.bill().dump()["instances"] == [(HOST, at(3), f'["unknown","{VM}"]', 0, 1)]
    # Heard again, its VM is not.
    listed(journal, VM)
    assert journal.bill().dump()["instances"] == [(HOST, at(6), f'["{VM}"]', 90, 0)]
    assert silences(journal) == [(VM, 5, "silent_host", None, 5)]
    assert silences(journal.samples(sample(95))) == [(VM, 5, "silent_host", 95, 5)]


def test_a_vm_on_two_instances_is_silent_with_the_second() -> None:
    journal = listed(pass_time(listed(Journal().samples(sample(5)), VM), 60), VM, host=OTHER)
    assert silences(pass_time(journal, 30)) == []
    assert silences(pass_time(journal, 60)) == [(VM, 5, "silent_host", None, 7)]


def test_the_silence_of_its_host_does_not_make_a_vm_silent() -> None:
    journal = pass_time(listed(Journal().samples(sample(5)), VM), 90)
    listed(journal, VM)
    for _ in range(14):
        listed(pass_time(journal, 60), VM)
    assert [row[2] for row in silences(journal)] == ["silent_host", "silent_vm"]
    # Where the host is silent still it is the same silence.
    journal = pass_time(pass_time(listed(Journal().samples(sample(5)), VM), 90), QUARTER)
    assert silences(journal) == [(VM, 5, "silent_host", None, 4)]


# Vanished


def vanished_vm() -> Journal:
    """Sampled at 0 and 10, listed, then not; an hour goes by. The tick has sequence 5."""
    journal = listed(Journal().samples(sample(0), sample(10, memory=GIB)), VM)
    return pass_time(listed(journal), 3600)


def test_a_vm_that_is_listed_no_more_and_not_heard_has_vanished() -> None:
    journal = listed(listed(Journal().samples(sample(0), sample(10, memory=GIB)), VM))
    assert life(pass_time(journal, 3599).session()) == expected(1, 0, 0, 10)
    pass_time(journal, 1)
    assert life(journal.session()) == expected(1, 0, 0, 10, 10, "vanished")
    assert (journal.session()["measured_ns"], journal.session()["memory_mib_seconds"]) == (10 * 10**9, 0)
    assert found(journal) == [(6, "vanished", 1, 10, "{}")]
    assert [row[2:] for row in silences(journal)] == [("no_samples", None, 5), ("vanished", None, 6)]


@pytest.mark.parametrize("case", ["never listed", "listed by another", "its host is silent", "heard", "listed before"])
def test_what_does_not_vanish(case: str) -> None:
    journal = Journal()
    if case == "listed before":
        listed(listed(journal, VM))
    journal.samples(sample(0))
    if case not in ("never listed", "listed before"):
        listed(journal, VM)
    if case == "listed by another":
        listed(listed(journal, VM, host=OTHER))
    if case == "heard":
        listed(pass_time(listed(journal), 3000)).samples(sample(0))
    assert journal.session()["end_ns"] is None
    assert pass_time(journal, 3599).session()["end_ns"] is None
    if case != "heard":
        assert pass_time(journal, 10**6).session()["end_ns"] is None


def test_the_time_counts_from_when_it_was_listed_last() -> None:
    journal = listed(pass_time(listed(Journal().samples(sample(0)), VM), 3000))
    assert pass_time(journal, 3599).session()["end_ns"] is None
    assert pass_time(journal, 1).session()["end_kind"] == "vanished"


def test_what_had_vanished_runs_on_with_its_next_sample() -> None:
    journal = vanished_vm().samples(sample(700, cpu=4))
    assert life(journal.session()) == expected(1, 0, 0, 700)
    assert (journal.session()["cpu_time_ns"], journal.session()["measured_ns"]) == (4, 700 * 10**9)
    assert found(journal) == [
        (5, "vanished", 1, 10, "{}"),
        (6, "returned", 1, 10, '{"sample_ns":1800000700000000000}'),
    ]
    assert {row[3] for row in silences(journal)} == {700}
    # And may vanish again.
    assert pass_time(journal, 3600).session()["end_kind"] == "vanished"


@pytest.mark.parametrize("sort", ["start", "stop"])
def test_what_had_vanished_ends_as_it_would_have(sort: str) -> None:
    journal = vanished_vm()
    journal = journal.start(700) if sort == "start" else journal.stop(700)
    end = expected(1, 0, 0, 10, 10, "missed_stop") if sort == "start" else expected(1, 0, 0, 10, 700)
    assert life(journal.sessions()[0]) == end
    assert [row[1] for row in found(journal)] == (["vanished", "missed_stop"] if sort == "start" else ["vanished"])
    assert {row[3] for row in silences(journal)} == {700}


def test_what_is_put_before_the_newest_instant_leaves_it_vanished() -> None:
    journal = vanished_vm().samples(sample(5, cpu=3))
    assert life(journal.session()) == expected(1, 0, 0, 10, 10, "vanished")
    assert {row[3] for row in silences(journal)} == {None}
    # A stop at the newest instant is what was missing.
    assert life(journal.stop(10).session()) == expected(1, 0, 0, 10, 10)


def test_another_owner_may_take_over_what_has_vanished() -> None:
    for early in (True, False):
        journal = vanished_vm().samples(sample(9 if early else 10), customer="globex")
        assert len(journal.bill().dump()["dead_letters"]) == early
        assert life(journal.sessions()[0]) == expected(1, 0, 0, 10, 10, "vanished")
        assert {row[3] for row in silences(journal)} == ({None} if early else {10})
    journal = vanished_vm().start(700, "globex")
    assert [life(row) for row in journal.sessions()] == [
        expected(1, 0, 0, 10, 10, "vanished"),
        expected(2, 1, 700, 700),
    ]


# Down


def test_while_nothing_could_be_taken_everybody_is_silent() -> None:
    journal = Journal().add(Resumed(at(5), at(65))).add(Resumed(at(5), at(90))).add(Resumed(at(100), at(100)))
    assert silences(journal) == [("", 5, "billaged_down", 65, 2)]
    assert journal.tallies() == {}
