"""Usage of VMs that the server does not allow waits apart: others go on, and nothing is lost or sent out of order."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from client_fixtures import NOW_NS, SECOND, BillingServer, Rig, billing_server, reading, seconds_of
from google.protobuf.message import Message

from billaged.client import waiting
from billaged.client.readings import metrics_record, started_record, stopped_record
from billaged.client.spool import Spool, SpoolRefused
from billaged.wire.billing.v1 import billing_pb2 as pb

MINUTE = 60.0


class Policy:
    """Which VMs a server denies."""

    def __init__(self, server: BillingServer, *denied: str) -> None:
        self.denied = set(denied)
        self.asked: list[str] = []  # the VMs of denied calls
        server.judge = self._judge

    def _judge(self, request: Message) -> tuple[grpc.StatusCode, str] | None:
        vm_id = getattr(request, "vm_id", None)
        if vm_id not in self.denied:
            return None
        self.asked.append(vm_id)
        return grpc.StatusCode.PERMISSION_DENIED, "not allowed"


@contextmanager
def rig_of(server: BillingServer, directory: Path) -> Iterator[Rig]:
    rig = Rig(server, directory)
    try:
        yield rig
    finally:
        rig.courier.close()
        rig.close()


@pytest.fixture
def server() -> Iterator[BillingServer]:
    with billing_server() as running:
        yield running


@pytest.fixture
def rig(server: BillingServer, tmp_path: Path) -> Iterator[Rig]:
    with rig_of(server, tmp_path / "spool") as built:
        yield built


def run(rig: Rig, seconds: float) -> None:
    """Deliver for so long, as often as the courier wants to."""
    end_ns = rig.clock.monotonic_ns + int(seconds * SECOND)
    while rig.clock.monotonic_ns < end_ns:
        rig.clock.advance(rig.courier.deliver())


def directories(rig: Rig) -> list[Path]:
    return list((rig.spool.directory / "waiting").glob("*"))


def test_a_denied_vm_holds_up_no_other(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy(rig.server, "a")
    for second in range(50):
        rig.put("a", second)
        rig.put("b", second)
    run(rig, 10)
    assert seconds_of(rig.server.taken, "b") == list(range(50))
    assert rig.spool.used_bytes == 0, "what is denied has moved"
    assert not rig.courier.is_away()
    assert rig.courier.is_held_up()
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert "a: PERMISSION_DENIED: not allowed; its usage waits in " in warning
    assert "would have to allow this to callers without TLS (@plaintext)" in warning
    policy.denied.clear()
    rig.put("a", 50)
    rig.spool.append([stopped_record("a", NOW_NS + 51 * SECOND)])
    run(rig, 2 * MINUTE)
    assert seconds_of(rig.server.taken, "a") == list(range(51))
    assert isinstance(rig.server.usage[-1], pb.NotifyVmStoppedRequest)
    assert not rig.courier.is_held_up()
    assert not directories(rig)
    assert rig.spool.reserved_bytes == 0
    assert not list(rig.spool.directory.glob("refused*"))


def test_it_is_asked_about_less_and_less_often_and_said_every_ten_minutes(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy(rig.server, "a", "c")
    rig.put("a", *range(20))
    rig.put("c", 1)
    run(rig, 31)
    # At 0 with all of it, then after 0.5, 1.5, 3.5, 7.5, 15.5 s with one record.
    assert policy.asked.count("a") == 6
    policy.asked.clear()
    run(rig, 1_270)
    assert 20 <= policy.asked.count("a") <= 24, "once a minute"
    said = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert len(said) == 4, "each once at first, then both together"
    assert "not allowed: a, c (2 VMs): " in said[-1]


def test_what_waits_is_taken_up_by_the_next_agent_in_its_order(server: BillingServer, tmp_path: Path) -> None:
    policy = Policy(server, "a")
    with rig_of(server, tmp_path) as rig:
        rig.spool.append([started_record("a", "c", NOW_NS)])
        rig.put("a", *range(10))
        rig.put("b", 1)
        run(rig, 5)
        reserved_bytes = rig.spool.reserved_bytes
        assert reserved_bytes > 0
    with rig_of(server, tmp_path) as rig:
        assert rig.courier.is_held_up()
        assert rig.spool.reserved_bytes == reserved_bytes
        rig.put("a", *range(10, 20))
        rig.put("b", 2)
        run(rig, 5)
        assert seconds_of(server.taken, "b") == [1, 2]
        policy.denied.clear()
        run(rig, MINUTE)
    of_a = [message for message in server.usage if getattr(message, "vm_id", "") == "a"]
    assert isinstance(of_a[0], pb.NotifyVmStartedRequest)
    assert seconds_of(server.taken, "a") == list(range(20))


def test_a_policy_that_changes_all_the_time_reorders_and_loses_nothing(server: BillingServer, tmp_path: Path) -> None:
    """Six VMs, denied by chance, a server that fails by chance, and an agent that is started again now and then."""
    chance = random.Random(7)
    vms = "abcdef"
    policy = Policy(server)
    judge = server.judge
    server.judge = lambda request: (grpc.StatusCode.UNAVAILABLE, "no") if chance.random() < 0.1 else judge(request)
    second = 0
    for _ in range(8):
        with rig_of(server, tmp_path) as rig:
            for _ in range(10):
                policy.denied = {vm_id for vm_id in vms if chance.random() < 0.3}
                for vm_id in vms:
                    rig.put(vm_id, *range(second, second + 3))
                second += 3
                run(rig, chance.choice([1, 40]))
            # A window is acknowledged as a whole: an end within one sends its first part again.
            while rig.courier.is_away():
                run(rig, 1)
    server.judge = lambda _: None
    with rig_of(server, tmp_path) as rig:
        run(rig, 3 * MINUTE)
        assert rig.spool.used_bytes == 0
        assert not rig.courier.is_held_up()
    for vm_id in vms:
        assert seconds_of(server.taken, vm_id) == list(range(second)), vm_id


def test_when_its_share_is_full_it_holds_up_the_others_and_says_so(
    server: BillingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy(server, "a")
    with rig_of(server, tmp_path) as rig:
        small = Spool(tmp_path / "small", 16_384)
        courier = type(rig.courier)(rig.client, small, "here", lambda: (), rig.clock, rig.courier._backoff)
        put = 0
        while not courier.is_away():
            small.append([metrics_record("a", "c", reading(NOW_NS + put * SECOND))])
            put += 1
            rig.clock.advance(1)
            courier.deliver()
            assert put < 1_000
        assert 6_000 < small.reserved_bytes <= 8_192
        (error,) = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
        assert "UNKEPT: a is not allowed, and cannot wait apart: 8192 bytes wait to be allowed already" in error
        with pytest.raises(SpoolRefused, match="full"):
            while True:
                small.append([metrics_record("b", "c", reading(NOW_NS + put * SECOND))])
        assert small.used_bytes + small.reserved_bytes <= 16_384
        policy.denied.clear()
        for _ in range(100):
            rig.clock.advance(courier.deliver())
        assert seconds_of(server.taken, "a") == list(range(put))
        assert seconds_of(server.taken, "b")
        courier.close()
        small.close()


def test_more_vms_than_may_wait_apart_hold_up_the_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MAX_VMS", 3)
    policy = Policy(rig.server, *"abcd")
    for vm_id in "abcde":
        rig.put(vm_id, 1)
    run(rig, MINUTE)
    assert rig.courier.is_away()
    assert len(directories(rig)) == 3
    policy.denied = {"b", "c", "d"}
    run(rig, 2 * MINUTE)
    assert seconds_of(rig.server.taken, "a") == [1]
    assert seconds_of(rig.server.taken, "e") == [1], "d has a's place"
    policy.denied.clear()
    run(rig, 2 * MINUTE)
    assert all(seconds_of(rig.server.taken, vm_id) == [1] for vm_id in "abcde")


def test_a_refusal_for_good_among_what_waited_takes_no_other_with_it(rig: Rig) -> None:
    policy = Policy(rig.server, "a")
    rig.put("a", *range(10))
    run(rig, 1)
    policy.denied.clear()
    rig.server.judge = lambda request: (
        (grpc.StatusCode.INVALID_ARGUMENT, "bad") if 5 in seconds_of([request], "a") else None
    )
    run(rig, MINUTE)
    assert seconds_of(rig.server.taken, "a") == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert len((rig.spool.directory / "refused.jsonl").read_text().splitlines()) == 1
    assert not rig.courier.is_held_up()


def test_a_vms_name_may_be_anything_that_an_id_may_be(rig: Rig) -> None:
    names = ["../../up", "a/b", "." * 3, "x" * 255]
    policy = Policy(rig.server, *names)
    for name in names:
        rig.put(name, 1)
    run(rig, 1)
    assert len(directories(rig)) == len(names)
    policy.denied.clear()
    run(rig, MINUTE)
    assert all(seconds_of(rig.server.taken, name) == [1] for name in names)
