"""The courier, with the time passed in: what waits arrives in order; retries, refusals, heartbeats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from client_fixtures import (
    NOW_NS,
    SECOND,
    BillingServer,
    Judge,
    Rig,
    ToldClock,
    delivery_rig,
    make_certificates,
    mutual_tls,
    seconds_of,
)
from google.protobuf.message import Message

from billaged.client.backoff import Backoff
from billaged.client.channel import BillingClient, Target, TlsFiles
from billaged.client.courier import Courier
from billaged.client.readings import started_record, stopped_record
from billaged.client.refused import RefusedFile
from billaged.client.spool import Spool
from billaged.model.records import Kind
from billaged.wire.billing.v1 import billing_pb2 as pb


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with delivery_rig(tmp_path / "spool") as built:
        yield built


def refuse_samples(code: grpc.StatusCode, *bad_seconds: int) -> Judge:
    def judge(request: Message) -> tuple[grpc.StatusCode, str] | None:
        bad = set(bad_seconds) & set(seconds_of([request], getattr(request, "vm_id", "")))
        return (code, f"metrics: bad {min(bad)}") if bad else None

    return judge


def test_samples_that_wait_go_in_batches_of_a_thousand(rig: Rig) -> None:
    rig.put("a", *range(2_500))
    rig.put("b", 0)
    rig.put("a", 2_500)
    rig.deliver_all()
    assert [
        len(message.metrics) for message in rig.server.usage if isinstance(message, pb.SendMetricsBatchRequest)
    ] == [
        1_000,
        1_000,
        501,
        1,
    ]
    assert seconds_of(rig.server.taken, "a") == list(range(2_501))
    assert rig.spool.used_bytes == 0
    assert rig.courier.acknowledged == 2_502


def test_a_vms_order_is_kept_around_its_start_and_stop(rig: Rig) -> None:
    rig.put("a", 1, 2)
    rig.spool.append([stopped_record("a", NOW_NS + 2 * SECOND), started_record("a", "c", NOW_NS + 3 * SECOND)])
    rig.put("a", 4)
    rig.put("b", 4)
    rig.put("a", 5)
    rig.put("a", 6, customer_id="another")
    rig.deliver_all()
    kinds = [type(message) for message in rig.server.usage if getattr(message, "vm_id", "") == "a"]
    batch = pb.SendMetricsBatchRequest
    assert kinds == [batch, pb.NotifyVmStoppedRequest, pb.NotifyVmStartedRequest, batch, batch]
    assert seconds_of(rig.server.taken, "a") == [1, 2, 4, 5, 6]


@pytest.mark.parametrize(
    "code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL", "UNAUTHENTICATED"]
)
def test_a_failure_that_may_pass_is_tried_again_with_longer_waits(rig: Rig, code: str) -> None:
    rig.put("a", 1, 2)
    rig.server.judge = lambda _: (grpc.StatusCode[code], "not now")
    waits = []
    for _ in range(9):
        waits.append(rig.courier.deliver())
        rig.clock.advance(waits[-1])
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert rig.server.taken == []
    rig.server.judge = lambda _: None
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [1, 2]
    rig.put("a", 3)
    rig.server.judge = lambda _: (grpc.StatusCode[code], "not now")
    assert rig.courier.deliver() == 0.5, "a success starts the waits anew"


def test_a_server_that_takes_every_other_call_is_not_backed_away_from(rig: Rig) -> None:
    for vm_id in "abcd":
        rig.put(vm_id, 1)
    rig.server.judge = lambda _: (
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "not now") if rig.server.attempts % 2 == 0 else None
    )
    waits = []
    while len(rig.server.usage) < 4:
        waits.append(rig.courier.deliver())
        rig.clock.advance(waits[-1])
    assert waits[0] == 0.5, "the heartbeat was taken, the first samples were not"
    assert set(waits[1:-1]) == {0.5}
    assert [getattr(message, "vm_id", "") for message in rig.server.usage] == list("abcd")


def test_nothing_is_called_before_the_wait_is_over(rig: Rig) -> None:
    rig.put("a", 1)
    rig.server.judge = lambda _: (grpc.StatusCode.UNAVAILABLE, "not now")
    rig.courier.deliver()
    rig.clock.advance(0.25)
    assert rig.courier.deliver() == 0.25
    assert rig.server.attempts == 1


def test_the_server_may_ask_for_a_longer_wait(rig: Rig) -> None:
    rig.put("a", 1)
    rig.server.retry_delay_seconds = 7
    rig.server.judge = lambda _: (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    assert rig.courier.deliver() == 7.0
    rig.server.retry_delay_seconds = 3_600
    rig.clock.advance(7)
    assert rig.courier.deliver() == 30.0, "but not for ever"


def test_a_batch_too_large_for_the_server_is_sent_in_parts(rig: Rig) -> None:
    rig.put("a", *range(100))
    rig.server.judge = lambda request: (
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too large") if len(getattr(request, "metrics", ())) > 10 else None
    )
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == list(range(100))


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION])
def test_a_refused_sample_takes_no_other_with_it(
    rig: Rig, code: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    rig.put("a", *range(50))
    rig.put("b", 1)
    rig.server.judge = refuse_samples(code, 7, 31)
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [second for second in range(50) if second not in (7, 31)]
    assert seconds_of(rig.server.taken, "b") == [1]
    lines = [json.loads(line) for line in (rig.spool.directory / "refused.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in lines] == [f"{code.name}: metrics: bad 7", f"{code.name}: metrics: bad 31"]
    assert [line["request"]["metrics"][0]["cpuTimeNanos"] for line in lines] == ["7", "31"]
    assert rig.courier.refused == 2
    assert rig.spool.used_bytes == 0
    assert sum("a refused: " in record.getMessage() for record in caplog.records) == 1, "said once"


def test_what_cannot_be_kept_as_refused_stays_in_the_spool(rig: Rig) -> None:
    rig.put("a", 1)
    rig.server.judge = refuse_samples(grpc.StatusCode.INVALID_ARGUMENT, 1)
    (rig.spool.directory / "refused.jsonl").mkdir()
    rig.courier.deliver()
    assert rig.courier.is_away()
    assert rig.spool.used_bytes > 0


def test_the_refused_file_keeps_one_older_one(tmp_path: Path) -> None:
    file = RefusedFile(tmp_path / "refused.jsonl", max_bytes=1)
    for vm_id in ("first", "second", "third"):
        file.add(NOW_NS, Kind.STOPPED, pb.NotifyVmStoppedRequest(vm_id=vm_id), "INVALID_ARGUMENT: no")
    kept = {path.name: json.loads(path.read_text())["request"]["vmId"] for path in tmp_path.iterdir()}
    assert kept == {"refused.jsonl": "third", "refused.jsonl.1": "second"}


def test_a_heartbeat_every_thirty_seconds_with_what_runs_now(rig: Rig) -> None:
    rig.active = ("a", "b")
    assert rig.courier.deliver() == 30.0
    rig.clock.advance(29)
    assert rig.courier.deliver() == 1.0
    rig.active = ("b",)
    rig.clock.advance(1)
    rig.courier.deliver()
    assert rig.server.taken == [
        pb.SendHeartbeatRequest(instance_id="here", active_vms=["a", "b"]),
        pb.SendHeartbeatRequest(instance_id="here", active_vms=["b"]),
    ]


def test_a_heartbeat_the_server_will_not_have_does_not_stop_the_samples(rig: Rig) -> None:
    rig.put("a", 1)
    rig.server.judge = lambda request: (
        (grpc.StatusCode.INVALID_ARGUMENT, "instance_id: no") if hasattr(request, "instance_id") else None
    )
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [1]


def test_rotated_tls_files_are_taken_up_with_the_next_try(tmp_path: Path) -> None:
    """A certificate that the server no longer takes is replaced on disk: no restart is needed."""
    for name in ("old", "new", "used"):
        (tmp_path / name).mkdir()
    old, new = make_certificates(tmp_path / "old"), make_certificates(tmp_path / "new")
    used = {name: Path(shutil.copy(path, tmp_path / "used")) for name, path in old.items()}
    server, clock, spool = BillingServer(), ToldClock(), Spool(tmp_path / "spool", 2**20)
    server.start(mutual_tls(new))
    tls = TlsFiles(used["ca.pem"], used["client.pem"], used["client.key"], "billaged.test")
    spool.append([stopped_record("a", NOW_NS)])
    try:
        with BillingClient(Target(server.address, tls, 5.0)) as client:
            courier = Courier(client, spool, "here", lambda: ("a",), clock, Backoff())
            clock.advance(courier.deliver())
            assert courier.is_away()
            for name, path in new.items():
                Path(shutil.copy(path, tmp_path / "used" / f"{name}.next")).replace(used[name])
            # One more failure at most, which is when the files are looked at.
            clock.advance(courier.deliver())
            assert courier.deliver() == 0.0
    finally:
        server.stop()
        spool.close()
    assert server.usage == [pb.NotifyVmStoppedRequest(vm_id="a", stop_time=NOW_NS)]
