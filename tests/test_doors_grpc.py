"""The gRPC door over a real socket: what callers get, and what the intake gets."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from door_fixtures import FilledFeed, RecordingIntake, batch, open_gate, until
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from billaged.doors.grpc_server import GrpcDoor
from billaged.doors.methods import METHODS, SERVICES
from billaged.doors.watchers import Watchers
from billaged.identity.names import PLAINTEXT
from billaged.model.errors import InvalidField, NotServing, Overloaded, StartError, WrongOwner
from billaged.model.records import Heartbeat, Kind, MetricsBatch, PossibleGap, VmStarted, VmStopped
from billaged.settings import Grpc
from billaged.wire.billing.v1 import billing_pb2 as pb
from billaged.wire.billing.v1 import usage_stream_pb2 as stream_pb

BILLING = "billing.v1.BillingService"
LATER = "billaged.v1.BillingService"
WATCH = "/billing.v1.UsageStreamService/WatchSummaries"
TIMEOUT = 10.0


def settings(**changes: Any) -> Grpc:
    return Grpc(**({"port": 0, "address": "127.0.0.1"} | changes))


class Running:
    """A started door, what stands behind it, and a channel to it."""

    def __init__(self, door: GrpcDoor, intake: RecordingIntake, feed: FilledFeed, port: int) -> None:
        self.door, self.intake, self.feed, self.port = door, intake, feed, port
        # Plain sends for WatchSummaries too: a small window makes a slow reader felt at once.
        options = [("grpc.max_send_message_length", -1), ("grpc.http2.lookahead_bytes", 65_536)]
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)

    async def call(self, method: str, request: bytes, *, service: str = BILLING, **named: Any) -> bytes:
        rpc: Any = self.channel.unary_unary(f"/{service}/{method}", None, None)
        return await rpc(request, timeout=TIMEOUT, **named)

    async def refused(self, method: str, request: bytes, **named: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, request, **named)
        return caught.value

    def watch(self, **filters: Any) -> Any:
        rpc: Any = self.channel.unary_stream(WATCH, None, stream_pb.UsageSummary.FromString)
        return rpc(stream_pb.WatchSummariesRequest(**filters).SerializeToString(), timeout=60.0)


@pytest.fixture
async def start() -> AsyncIterator[Any]:
    started: list[Running] = []

    async def run(feed: FilledFeed | None = None, *, stalled_seconds: float = 30.0, **changes: Any) -> Running:
        intake, feed = RecordingIntake(), feed or FilledFeed()
        door = GrpcDoor(intake, feed, settings(**changes), open_gate(), watcher_stalled_seconds=stalled_seconds)
        started.append(Running(door, intake, feed, await door.start()))
        return started[-1]

    yield run
    for running in started:
        await running.channel.close(None)
        await running.door.stop(0)


def details(error: grpc.aio.AioRpcError) -> Any:
    """The rich details, unpacked: the one BadRequest or RetryInfo in them."""
    trailing: Any = error

    class Sync:
        """rpc_status wants the methods of a synchronous call."""

        def code(self) -> grpc.StatusCode:
            return trailing.code()

        def details(self) -> str:
            return trailing.details()

        def trailing_metadata(self) -> Any:
            return tuple(trailing.trailing_metadata())

    [detail] = rpc_status.from_call(Sync()).details
    message = (
        error_details_pb2.BadRequest() if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR) else None
    ) or error_details_pb2.RetryInfo()
    assert detail.Unpack(message)
    return message


@pytest.mark.parametrize("service", [BILLING, LATER])
async def test_each_method_hands_its_record_and_its_bytes_over(start: Any, service: str) -> None:
    running = await start()
    requests = {
        "SendMetricsBatch": batch(0, 60),
        "SendHeartbeat": pb.SendHeartbeatRequest(instance_id="host-1", active_vms=["vm-1", "vm-2"]),
        "NotifyVmStarted": pb.NotifyVmStartedRequest(vm_id="vm-1", customer_id="customer-1", start_time=5),
        "NotifyVmStopped": pb.NotifyVmStoppedRequest(vm_id="vm-1", stop_time=6),
        "NotifyPossibleGap": pb.NotifyPossibleGapRequest(vm_id="vm-1", last_sent=7, resume_time=8),
    }
    assert set(requests) == {method.name for method in METHODS}

    answers = {}
    for method in METHODS:
        answer = await running.call(method.name, requests[method.name].SerializeToString(), service=service)
        answers[method.name] = method.response.FromString(answer)

    assert all(answer.success for answer in answers.values())
    assert answers["SendMetricsBatch"].message == "processed 2 metrics"
    assert [payload for _, payload, _ in running.intake.taken] == [
        requests[method.name].SerializeToString() for method in METHODS
    ]
    records = [record for record, _, _ in running.intake.taken]
    assert isinstance(records[0], MetricsBatch) and records[0].sample_count == 2
    assert records[1:] == [
        Heartbeat("host-1", ("vm-1", "vm-2")),
        VmStarted("vm-1", "customer-1", 5),
        VmStopped("vm-1", 6),
        PossibleGap("vm-1", 7, 8),
    ]
    assert {caller for _, _, caller in running.intake.taken} == {"@plaintext"}


async def test_unknown_fields_are_journaled_as_they_came(start: Any) -> None:
    running = await start()
    payload = batch(0).SerializeToString() + b"\xf2\x3f\x03new"  # field 1022, length-delimited
    await running.call("SendMetricsBatch", payload)
    assert running.intake.taken[0][1] == payload


async def test_an_empty_batch_is_answered_before_anything_is_checked(start: Any) -> None:
    running = await start()
    running.intake.error = InvalidField("vm_id", "must not be empty")
    answer = pb.SendMetricsBatchResponse.FromString(await running.call("SendMetricsBatch", b""))
    assert (answer.success, answer.message) == (False, "no metrics provided")
    assert running.intake.taken == []


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InvalidField("metrics[3].cpu_time_nanos", "must not be negative"), "INVALID_ARGUMENT", "metrics[3].cpu_t"),
        (WrongOwner("vm-1"), "FAILED_PRECONDITION", "belongs to another customer"),
        (Overloaded("the queue is full", 2.5), "RESOURCE_EXHAUSTED", "the queue is full"),
        (NotServing("replaying the journal", 0.5), "UNAVAILABLE", "replaying the journal"),
    ],
)
async def test_each_error_has_its_status(start: Any, error: Exception, code: str, text: str) -> None:
    running = await start()
    running.intake.error = error
    caught = await running.refused("SendMetricsBatch", batch(0).SerializeToString())
    assert caught.code().name == code
    assert text in caught.details()
    if isinstance(error, InvalidField):
        [violation] = details(caught).field_violations
        assert (violation.field, violation.description) == (error.field, error.problem)
    elif isinstance(error, Overloaded | NotServing):
        assert details(caught).retry_delay.ToNanoseconds() == error.retry_after_seconds * 10**9


async def test_a_bug_is_logged_and_told_by_its_reference_only(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    running = await start()
    running.intake.error = ZeroDivisionError("secret inner thing")
    with caplog.at_level(logging.ERROR, "billaged.doors"):
        caught = await running.refused("SendHeartbeat", b"")
    assert caught.code() is grpc.StatusCode.INTERNAL
    match = re.fullmatch(r"internal error, reference ([0-9a-f]{8})", caught.details())
    assert match
    [line] = [line for line in caplog.records if line.name == "billaged.doors"]
    assert match[1] in line.getMessage() and line.exc_info
    running.intake.error = None
    assert await running.call("SendHeartbeat", b"")


@pytest.mark.parametrize("method", [method.name for method in METHODS])
@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\x0a\x7fshort", b"\x0a\x02\xff\xfe", b"\x0b" * 70_000])
async def test_malformed_bytes_are_the_callers_fault(start: Any, method: str, payload: bytes) -> None:
    running = await start()
    caught = await running.refused(method, payload)
    assert caught.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a valid protobuf message" in caught.details()
    assert running.intake.taken == []


async def test_a_missing_timestamp_is_named(start: Any) -> None:
    running = await start()
    request = batch(0)
    request.metrics.add(cpu_time_nanos=1)
    caught = await running.refused("SendMetricsBatch", request.SerializeToString())
    assert details(caught).field_violations[0].field == "metrics[1].timestamp"


async def test_a_large_batch_is_taken_and_does_not_hold_up_others(start: Any) -> None:
    running = await start()
    payload = batch(*range(100_000)).SerializeToString()
    assert 2**20 < len(payload) < 2**22
    large = asyncio.ensure_future(running.call("SendMetricsBatch", payload))
    while not large.done():
        await running.call("SendHeartbeat", pb.SendHeartbeatRequest(instance_id="host-1").SerializeToString())
    assert pb.SendMetricsBatchResponse.FromString(large.result()).message == "processed 100000 metrics"
    kinds = [type(record) for record, _, _ in running.intake.taken]
    assert kinds.count(MetricsBatch) == 1
    assert kinds.index(MetricsBatch) > 0, "a heartbeat sent later was answered first"


async def test_over_the_limit_is_refused(start: Any) -> None:
    running = await start(max_message_bytes=65_536)
    caught = await running.refused("SendMetricsBatch", batch(*range(4_000)).SerializeToString())
    assert caught.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # Small when it travels, over the limit when it is unpacked.
    packed = b"\x0a\x83\x80\x40" + b"a" * (2**20 + 3)
    caught = await running.refused("SendHeartbeat", packed, compression=grpc.Compression.Gzip)
    assert caught.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert running.intake.taken == []


async def test_huge_metadata_is_refused_and_the_door_goes_on(start: Any) -> None:
    running = await start(max_metadata_bytes=8192)
    caught = await running.refused("SendHeartbeat", b"", metadata=(("x-huge", "a" * 20_000),))
    assert caught.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await running.call("SendHeartbeat", b"", metadata=(("x-small", "a" * 2_000),))


async def test_more_requests_than_the_limit_are_refused_not_queued(start: Any) -> None:
    running = await start(max_concurrent_rpcs=2)
    running.intake.gate = asyncio.Event()
    held = [asyncio.ensure_future(running.call("SendHeartbeat", b"")) for _ in range(2)]
    await until(lambda: running.intake.waiting == 2, "two requests in the intake")
    caught = await running.refused("SendHeartbeat", b"")
    assert caught.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    running.intake.gate.set()
    assert len(await asyncio.gather(*held)) == 2


async def test_unknown_methods_are_unimplemented(start: Any) -> None:
    running = await start()
    assert (await running.refused("SendBill", b"")).code() is grpc.StatusCode.UNIMPLEMENTED
    assert (await running.refused("SendHeartbeat", b"", service="x.Y")).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_follows_the_door(start: Any) -> None:
    running = await start()
    stub: Any = health_pb2_grpc.HealthStub(running.channel)
    for service in ("", *SERVICES):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await running.door.announce_stop()
    for service in ("", *SERVICES):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await running.call("SendHeartbeat", b""), "what comes before the stop is still taken"


async def test_reflection_lists_the_services_and_knows_both(start: Any) -> None:
    running = await start()
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        *(reflection_pb2.ServerReflectionRequest(file_containing_symbol=service) for service in SERVICES),
    ]
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests), timeout=TIMEOUT)]
    listed = {service.name for service in answers[0].list_services_response.service}
    assert {*SERVICES, "grpc.health.v1.Health"} <= listed
    for answer in answers[1:]:
        assert answer.file_descriptor_response.file_descriptor_proto


async def test_grpcurl_lists_and_calls(start: Any) -> None:
    grpcurl = shutil.which("grpcurl")
    if grpcurl is None:
        pytest.skip("grpcurl is not installed")
    running = await start()
    place = f"127.0.0.1:{running.port}"

    async def run(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            grpcurl, "-plaintext", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
        return output.decode()

    assert {BILLING, LATER} <= set((await run(place, "list")).split())
    data = '{"vm_id":"vm-1","customer_id":"c","metrics":[{"timestamp":"2025-11-21T08:00:00Z","cpu_time_nanos":1}]}'
    for service in (BILLING, LATER):
        output = await run("-d", data, place, f"{service}/SendMetricsBatch")
        assert '"message": "processed 1 metrics"' in output


async def test_summaries_reach_their_watcher_until_the_feed_ends(start: Any) -> None:
    running = await start()
    call = running.watch(customer_ids=["customer-1"], vm_ids=["vm-1", "vm-2"])
    await until(lambda: len(running.feed.queues) == 1, "the watcher is in the feed")
    await call.initial_metadata()
    assert running.feed.filters == [(["customer-1"], ["vm-1", "vm-2"])]
    running.feed.put(stream_pb.UsageSummary(vm_id="vm-1", window_start_nanos=2**62))
    running.feed.put(stream_pb.UsageSummary(vm_id="vm-2", final=True))
    running.feed.end()
    assert [summary.vm_id async for summary in call] == ["vm-1", "vm-2"]
    assert await call.code() is grpc.StatusCode.OK
    await until(lambda: not running.feed.queues, "the feed is released")


async def test_a_watcher_too_many_is_told_and_places_come_free(start: Any) -> None:
    running = await start(watchers_max=1)
    first = running.watch()
    await until(lambda: len(running.feed.queues) == 1, "the first watcher is in the feed")
    second = running.watch()
    assert await second.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "all 1 places for watchers are taken" in await second.details()
    first.cancel()
    await until(lambda: not running.feed.queues, "the first watcher has left the feed")
    third = running.watch()
    await until(lambda: len(running.feed.queues) == 1, "the third watcher is in the feed")
    third.cancel()


async def test_a_malformed_watch_is_invalid(start: Any) -> None:
    running = await start()
    rpc: Any = running.channel.unary_stream(WATCH, None, None)
    assert await rpc(b"\xff", timeout=TIMEOUT).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_watcher_that_falls_behind_is_cut_off(start: Any) -> None:
    running = await start(FilledFeed(queue_max=10))
    call = running.watch()
    await until(lambda: len(running.feed.queues) == 1, "the watcher is in the feed")
    for _ in range(12):  # at once: the loop does not turn in between
        running.feed.put(stream_pb.UsageSummary(vm_id="vm-1"))
    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "summaries behind" in await call.details()


async def test_a_watcher_that_does_not_read_is_cut_off(start: Any) -> None:
    running = await start(stalled_seconds=0.3)
    call = running.watch()
    await until(lambda: len(running.feed.queues) == 1, "the watcher is in the feed")
    # Nobody reads from the call, so HTTP/2's flow control stops the server after some of these.
    for _ in range(900):
        running.feed.put(stream_pb.UsageSummary(vm_id="v" * 60_000))
    await until(lambda: not running.feed.queues, "the watcher is cut off")
    await until(lambda: not running.door._watching, "its handler has ended")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "no summary was read for 0.3 s" in caught.value.details()


async def test_stop_ends_watchers_and_lets_requests_finish(start: Any) -> None:
    running = await start()
    running.intake.gate = asyncio.Event()
    held = asyncio.ensure_future(running.call("SendHeartbeat", b""))
    watcher = running.watch()
    await until(lambda: running.intake.waiting == 1 and len(running.feed.queues) == 1, "both are inside")
    stopping = asyncio.ensure_future(running.door.stop(TIMEOUT))
    assert await watcher.code() is grpc.StatusCode.UNAVAILABLE
    assert await watcher.details() == "billaged is stopping"
    assert not held.done()
    running.intake.gate.set()
    assert await held
    await stopping
    assert len(running.intake.taken) == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port), 1).close()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
async def test_a_port_in_use_is_one_clear_error(start: Any, address: str) -> None:
    running = await start(address=address)
    second = GrpcDoor(RecordingIntake(), FilledFeed(), settings(port=running.port, address=address), open_gate())
    with pytest.raises(StartError) as caught:
        await second.start()
    text = str(caught.value)
    assert f"{address}:{running.port}" in text
    assert "Address already in use" in text and "UNKEY_BILLAGED_PORT" in text
    assert await running.call("SendHeartbeat", b""), "the first goes on"


async def test_an_address_that_is_not_here_is_one_clear_error() -> None:
    door = GrpcDoor(RecordingIntake(), FilledFeed(), settings(address="192.0.2.1"), open_gate())
    with pytest.raises(StartError, match=r"192\.0\.2\.1:0: .*UNKEY_BILLAGED_ADDRESS"):
        await door.start()


async def test_doors_that_share_a_feed_share_its_places() -> None:
    shared = Watchers(FilledFeed(), 1)
    assert Watchers.over(shared, 99) is shared
    first = shared.watch(
        stream_pb.WatchSummariesRequest(), open_gate().admit("WatchSummaries", lambda: PLAINTEXT, "ipv4:127.0.0.1:1")
    )
    waiting = asyncio.ensure_future(anext(first))
    await until(lambda: shared.open_count == 1, "a place is taken")
    with pytest.raises(Overloaded):
        await anext(
            shared.watch(
                stream_pb.WatchSummariesRequest(),
                open_gate().admit("WatchSummaries", lambda: PLAINTEXT, "ipv4:127.0.0.1:1"),
            )
        )
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert shared.open_count == 0


def test_the_table_has_each_kind_once() -> None:
    assert {method.kind for method in METHODS} == {kind for kind in Kind if kind < Kind.TICK}


# --- messages that do not come ---------------------------------------------------------


async def test_a_call_whose_message_does_not_come_is_cut_and_the_others_go_on() -> None:
    intake = RecordingIntake()
    door = GrpcDoor(intake, FilledFeed(), settings(), open_gate(), message_seconds=0.2)
    running = Running(door, intake, FilledFeed(), await door.start())
    try:
        begun: Any = running.channel.stream_unary(f"/{BILLING}/SendHeartbeat", None, None)(timeout=TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await begun
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "the request has not come within 0.2 s"
        assert await running.call("SendHeartbeat", b"\x0a\x06host-1")
        assert door._arrivals._waiting == {}
    finally:
        await running.channel.close(None)
        await door.stop(0)


async def test_a_call_that_ends_without_a_message_is_the_callers_fault(start: Any) -> None:
    running = await start()
    begun: Any = running.channel.stream_unary(f"/{BILLING}/SendHeartbeat", None, None)(timeout=TIMEOUT)
    await begun.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await begun
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message" in str(caught.value.details())
