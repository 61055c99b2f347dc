"""The courier, with the time passed in: what waits arrives in order; retries, refusals, heartbeats."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from client_fixtures import (
    NOW_NS,
    SECOND,
    Judge,
    Rig,
    TlsFolder,
    ToldClock,
    billing_server,
    delivery_rig,
    seconds_of,
    wait_until,
)
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_status import rpc_status
from tls_material import Authority

from billaged.client.backoff import Backoff
from billaged.client.channel import BillingClient, Target
from billaged.client.courier import Courier
from billaged.client.readings import started_record, stopped_record
from billaged.client.refused import MAX_REFUSED_BYTES, NotKept, RefusedFile
from billaged.client.segment import HEADER_BYTES, SpoolRecord
from billaged.client.spool import Spool
from billaged.model.records import Kind
from billaged.wire.billing.v1 import billing_pb2 as pb

_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
GARBAGE_DETAILS = [
    b"\xff\xff\xff\xff",
    status_pb2.Status(
        code=8, message="not now", details=[AnyMessage(type_url=_RETRY_INFO, value=b"\xff\xff")]
    ).SerializeToString(),
    # Of another status than the call's.
    status_pb2.Status(code=3, message="not now").SerializeToString(),
]


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
    ("code", "longest"),
    [
        ("UNAVAILABLE", 30.0),
        ("RESOURCE_EXHAUSTED", 30.0),
        ("DEADLINE_EXCEEDED", 30.0),
        ("INTERNAL", 30.0),
        # What a server that stops says of calls that it has not begun.
        ("CANCELLED", 30.0),
        # Somebody has to do something about it: it is asked about less often.
        ("UNAUTHENTICATED", 60.0),
    ],
)
def test_a_failure_that_may_pass_is_tried_again_with_longer_waits(rig: Rig, code: str, longest: float) -> None:
    rig.put("a", 1, 2)
    rig.server.judge = lambda _: (grpc.StatusCode[code], "not now")
    waits = []
    for _ in range(9):
        waits.append(rig.courier.deliver())
        rig.clock.advance(waits[-1])
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, min(longest, 32.0), longest, longest]
    assert rig.server.taken == []
    assert rig.spool.used_bytes > 0
    assert not (rig.spool.directory / "refused.jsonl").exists()
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


@pytest.mark.parametrize("seconds", [10**9, 315_576_000_000, -1, -(10**9)])
def test_a_delay_beyond_reason_is_bounded(rig: Rig, seconds: int) -> None:
    rig.put("a", 1)
    rig.server.retry_delay_seconds = seconds
    rig.server.judge = lambda _: (grpc.StatusCode.UNAVAILABLE, "not now")
    assert rig.courier.deliver() == (30.0 if seconds > 0 else 0.5)


@pytest.mark.parametrize(
    ("asked", "seconds"), [(math.nan, 0.5), (math.inf, 30.0), (-math.inf, 0.5), (1e300, 30.0), (None, 0.5), (2.5, 2.5)]
)
def test_the_backoff_takes_any_number(asked: float | None, seconds: float) -> None:
    assert Backoff(chance=lambda: 0.0).after_failure("RESOURCE_EXHAUSTED", asked) == seconds


@pytest.mark.parametrize("details", GARBAGE_DETAILS)
def test_details_that_are_garbage_are_no_delay(rig: Rig, details: bytes) -> None:
    rig.put("a", 1)
    rig.server.trailing = ((rpc_status.GRPC_DETAILS_METADATA_KEY, details),)
    rig.server.judge = lambda _: (grpc.StatusCode.RESOURCE_EXHAUSTED, "not now")
    assert rig.courier.deliver() == 0.5
    assert rig.courier.is_away()
    rig.server.judge = lambda _: None
    rig.clock.advance(1)
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [1]


def test_throttling_is_waited_out_with_the_batch_whole(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A delay says that there is no room now; only without one is a batch perhaps too large."""
    caplog.set_level(logging.INFO)
    rig.put("a", *range(100))
    rig.server.retry_delay_seconds = 2
    rig.server.judge = lambda request: (
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down") if hasattr(request, "metrics") else None
    )
    assert [rig.courier.deliver()] == [2.0]
    assert rig.server.attempts == 2, "the heartbeat, and the samples once"
    for _ in range(3):
        rig.clock.advance(30)
        rig.courier.deliver()
    rig.server.judge = lambda _: None
    rig.clock.advance(30)
    rig.deliver_all()
    (batch,) = rig.server.usage
    assert isinstance(batch, pb.SendMetricsBatchRequest)
    assert len(batch.metrics) == 100
    said = [record.getMessage() for record in caplog.records if record.name.startswith("billaged.client")]
    assert len(said) == 1, "no outage, and said once"
    assert "slow down; slowing down" in said[0]


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


def test_what_cannot_be_kept_as_refused_stays_in_the_spool(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.put("a", 1)
    rig.server.judge = refuse_samples(grpc.StatusCode.INVALID_ARGUMENT, 1)
    (rig.spool.directory / "refused.jsonl").mkdir()
    rig.courier.deliver()
    assert rig.courier.is_away()
    assert rig.spool.used_bytes > 0
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "UNKEPT: " in record.getMessage()
    assert "for INVALID_ARGUMENT: metrics: bad 1; usage waits on disk" in record.getMessage()


def kept_in(folder: Path) -> dict[str, list[str]]:
    """The VMs of a folder's refused records, by the file's name."""
    return {
        path.name: [json.loads(line)["request"]["vmId"] for line in path.read_text().splitlines()]
        for path in sorted(folder.iterdir())
    }


def stopped(vm_id: str) -> SpoolRecord:
    return stopped_record(vm_id, NOW_NS)


def test_the_refused_files_are_never_written_over(tmp_path: Path) -> None:
    file = RefusedFile(tmp_path / "refused.jsonl", file_bytes=400)
    for number in range(1, 8):
        file.add(NOW_NS, stopped(f"vm-{number}"), "INVALID_ARGUMENT: no")
    assert kept_in(tmp_path) == {
        "refused.jsonl": ["vm-7"],
        "refused.jsonl.1": ["vm-1", "vm-2"],
        "refused.jsonl.2": ["vm-3", "vm-4"],
        "refused.jsonl.3": ["vm-5", "vm-6"],
    }
    (tmp_path / "refused.jsonl.1").unlink()
    for number in (8, 9):
        RefusedFile(tmp_path / "refused.jsonl", file_bytes=400).add(NOW_NS, stopped(f"vm-{number}"), "no")
    assert "refused.jsonl.4" in kept_in(tmp_path), "a number is not used twice while a later one is there"
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())


def test_the_refused_files_have_a_bound_and_stay_whole(tmp_path: Path) -> None:
    file = RefusedFile(tmp_path / "refused.jsonl", file_bytes=400, max_bytes=700)
    with pytest.raises(NotKept, match="have reached 700 bytes") as caught:
        for number in range(100):
            file.add(NOW_NS, stopped(f"vm-{number}"), "INVALID_ARGUMENT: no")
    assert "move" in caught.value.hint
    kept = [vm_id for vm_ids in kept_in(tmp_path).values() for vm_id in vm_ids]
    assert sorted(kept) == [f"vm-{number}" for number in range(len(kept))]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 700


def test_a_refused_line_that_a_crash_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "refused.jsonl"
    path.write_text('{"time": "20')
    RefusedFile(path).add(NOW_NS, stopped("vm-1"), "no")
    assert [line.startswith('{"time": "2026-') for line in path.read_text().splitlines()] == [False, True]


def test_refused_usage_over_the_bound_waits_and_says_so(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    (rig.spool.directory / "refused.jsonl.1").write_bytes(b"x" * 1_000)
    os.truncate(rig.spool.directory / "refused.jsonl.1", MAX_REFUSED_BYTES)
    rig.put("a", 1, 2)
    rig.server.judge = refuse_samples(grpc.StatusCode.INVALID_ARGUMENT, 1)
    rig.courier.deliver()
    assert rig.courier.is_away()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 1
    assert "Find out why usage is refused, then move " in said[0]
    (rig.spool.directory / "refused.jsonl.1").unlink()
    rig.clock.advance(1)
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [2]
    assert rig.courier.refused == 1


@pytest.mark.parametrize(
    "record",
    [
        SpoolRecord(Kind.METRICS, b"\xff\xff\xff"),
        SpoolRecord(Kind.STOPPED, b"\x0a\x02\xff\xff"),  # an id that is no UTF-8
    ],
)
def test_what_is_no_request_is_kept_as_refused_and_holds_up_nothing(rig: Rig, record: SpoolRecord) -> None:
    rig.put("a", 1)
    rig.spool.append([record])
    rig.put("a", 2)
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [1, 2]
    line = json.loads((rig.spool.directory / "refused.jsonl").read_text())
    assert line["answer"].startswith("UNREADABLE: no ")
    assert base64.b64decode(line["payload"]) == record.payload


HOSTILE_TEXT = "\x1b[2J\x1b]0;pwned\x07 line\nfake: OK \u202e " + "A" * 3_000_000


def test_an_answers_text_is_made_harmless(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with answering(pb.SendMetricsBatchResponse(message=HOSTILE_TEXT).SerializeToString()) as address:
        client = BillingClient(Target(address, None, 5.0))
        courier = Courier(client, rig.spool, "here", lambda: ("a",), rig.clock, Backoff())
        rig.put("a", 1)
        courier.deliver()
        client.close()
    assert courier.refused == 1
    answer = json.loads((rig.spool.directory / "refused.jsonl").read_text())["answer"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert r"\x1b[2J\x1b]0;pwned\x07 line\nfake: OK \u202e AAA" in answer
    for text in (answer, said):
        assert len(text) < 1_000
        assert text.isprintable()


@pytest.mark.parametrize("answer", [b"", b"\x08\x00", b"\x12\x02\x20\x0a"], ids=["empty", "false", "spaces"])
def test_an_answer_without_success_or_reason_refuses_nothing(
    rig: Rig, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    rig.put("a", 1, 2)
    with answering(answer) as address:
        client = BillingClient(Target(address, None, 5.0))
        courier = Courier(client, rig.spool, "here", lambda: ("a",), rig.clock, Backoff(chance=lambda: 0.0))
        waits = []
        for _ in range(9):
            waits.append(courier.deliver())
            rig.clock.advance(waits[-1])
        client.close()
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert not list(rig.spool.directory.glob("refused*"))
    assert (
        sum("NO_REASON: answered with success=false and no reason" in one.getMessage() for one in caplog.records) == 1
    )
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [1, 2]


def test_an_answer_that_is_garbage_may_pass_and_leaves_no_traceback(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.put("a", 1)
    with answering(b"\xff\xff\xff") as address:
        client = BillingClient(Target(address, None, 5.0))
        courier = Courier(client, rig.spool, "here", lambda: ("a",), rig.clock, Backoff(chance=lambda: 0.0))
        assert courier.deliver() == 0.5
        client.close()
    (record,) = caplog.records
    assert "INTERNAL: the answer is no SendHeartbeatResponse" in record.getMessage()
    assert record.exc_info is None
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [1]


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of a server that gives every call this answer, whatever it says."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def test_damaged_bytes_that_cannot_be_set_aside_hold_up_what_is_behind(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.put("a", 1, 2, 3)
    (segment,) = rig.spool.directory.glob("*.spool")
    data = bytearray(segment.read_bytes())
    frame_bytes = (len(data) - HEADER_BYTES) // 3
    data[HEADER_BYTES + 2 * frame_bytes - 1] ^= 1
    segment.write_bytes(data)
    block = rig.spool.directory / f"{1:020d}-{HEADER_BYTES + frame_bytes}.unfinished"
    block.mkdir()
    for _ in range(3):
        rig.courier.deliver()
    assert rig.courier.is_away()
    assert seconds_of(rig.server.taken, "a") == [1]
    assert "UNKEPT: " in caplog.records[-1].getMessage()
    block.rmdir()
    rig.clock.advance(1)
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [1, 3]
    assert len(list(rig.spool.directory.glob("*.damaged"))) == 1


def test_a_server_that_stops_is_called_again_soon(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The calls that it has not begun are cancelled; nobody has to read about that unless it goes on."""
    rig.put("a", 1)
    rig.server.judge = lambda _: (grpc.StatusCode.CANCELLED, "stopping")
    assert rig.courier.deliver() == 0.5
    assert not caplog.records
    while rig.clock.monotonic_ns < 60 * SECOND:
        assert not caplog.records
        rig.clock.advance(rig.courier.deliver())
    rig.courier.deliver()
    (record,) = caplog.records
    assert "CANCELLED: stopping; usage waits on disk" in record.getMessage()
    rig.server.judge = lambda _: None
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [1]
    caplog.clear()
    rig.put("a", 2)
    rig.server.judge = lambda _: (grpc.StatusCode.CANCELLED, "stopping")
    rig.courier.deliver()
    assert not caplog.records, "the next one has a minute of its own"


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


def test_a_heartbeat_that_is_not_allowed_does_not_stop_the_samples(rig: Rig) -> None:
    rig.put("a", 1)
    rig.server.judge = lambda request: (
        (grpc.StatusCode.PERMISSION_DENIED, "not allowed") if hasattr(request, "instance_id") else None
    )
    rig.deliver_all()
    assert seconds_of(rig.server.taken, "a") == [1]


def test_an_outage_is_said_once_again_after_ten_minutes_and_when_it_ends(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rig.put("a", 1)
    rig.server.judge = lambda _: (grpc.StatusCode.UNAUTHENTICATED, "not you")
    while rig.clock.monotonic_ns < 1_300 * SECOND:
        rig.clock.advance(rig.courier.deliver())
    warnings = [record.getMessage() for record in caplog.records if "usage waits on disk" in record.getMessage()]
    assert len(warnings) == 3
    assert "UNAUTHENTICATED: not you" in warnings[0]
    assert "asks for a certificate: give --tls-cert and --tls-key" in warnings[0]
    rig.server.judge = lambda _: None
    rig.deliver_all()
    assert caplog.records[-1].getMessage() == f"{rig.server.address} is back; 1 records acknowledged so far"
    assert rig.spool.used_bytes == 0


def test_new_tls_files_are_taken_up_without_waiting(tmp_path: Path) -> None:
    """A certificate that the server does not take is replaced on disk: no restart, and no wait to its end."""
    files = TlsFolder(tmp_path / "tls")
    files.write(Authority().sign("stranger", names=("agent.test",)))
    clock, spool = ToldClock(), Spool(tmp_path / "spool", 2**20)
    spool.append([stopped_record("a", NOW_NS)])
    with (
        billing_server(files.server_credentials) as server,
        BillingClient(Target(server.address, files.tls, 5.0)) as client,
    ):
        courier = Courier(client, spool, "here", lambda: ("a",), clock, Backoff())
        assert courier.deliver() > 0
        assert courier.is_away()
        assert courier.deliver() > 0, "the clock stands still: it waits"
        assert not courier.may_differ()
        files.write()
        wait_until(courier.may_differ, "the new files are found")
        assert courier.deliver() == 0.0
        assert server.usage == [pb.NotifyVmStoppedRequest(vm_id="a", stop_time=NOW_NS)]
    spool.close()
