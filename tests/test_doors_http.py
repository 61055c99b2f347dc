"""The HTTP server over a real socket: the RPCs as JSON and protobuf, health, stats, and what is sent wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import shutil
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from door_fixtures import SECONDS, FilledFeed, RecordingIntake, batch, open_admission, until
from google.protobuf import json_format

import billaged
from billaged.doors.connect import ConnectDoor
from billaged.doors.methods import METHODS
from billaged.model.errors import InvalidField, NotServing, Overloaded, StartError, WrongOwner
from billaged.model.records import MetricsBatch, VmStarted
from billaged.settings import Grpc, Http
from billaged.web.app import http_app
from billaged.web.protocol import GuardedProtocol
from billaged.web.server import HttpServer
from billaged.wire.billing.v1 import billing_pb2 as pb
from billaged.wire.billing.v1 import usage_stream_pb2 as stream_pb

BILLING = "/billing.v1.BillingService"
LATER = "/billaged.v1.BillingService"
WATCH = "/billing.v1.UsageStreamService/WatchSummaries"
JSON = {"Content-Type": "application/json"}
PROTO = {"Content-Type": "application/proto"}
TIMEOUT = 10.0


class Running:
    """A started server, what stands behind it, and a client to it."""

    connections_max: int | None = None

    def __init__(self, door: ConnectDoor, intake: RecordingIntake, feed: FilledFeed) -> None:
        self.door, self.intake, self.feed = door, intake, feed
        self.state: Any = "ok"
        self.stats: Any = lambda: {"active_vms": 3}
        app = http_app(door, lambda: self.state, lambda: self.stats(), open_admission())
        self.server = HttpServer(app, Http(port=0, address="127.0.0.1"), connections_max=self.connections_max)
        self.port = 0

    async def start(self) -> Running:
        self.port = await self.server.start()
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=TIMEOUT, trust_env=False)
        return self

    async def post(self, method: str, content: Any, headers: dict[str, str] = JSON, service: str = BILLING) -> Any:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return await self.client.post(f"{service}/{method}", content=body, headers=headers)

    async def raw(self, *parts: bytes) -> bytes:
        """What is answered to bytes as they are, until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await asyncio.wait_for(reader.read(), TIMEOUT)
        except ConnectionError:
            return b""
        finally:
            writer.close()


@pytest.fixture
async def start() -> AsyncIterator[Any]:
    started: list[Running] = []

    async def run(feed: FilledFeed | None = None, *, stalled_seconds: float = 30.0, **changes: Any) -> Running:
        intake, feed = RecordingIntake(), feed or FilledFeed()
        door = ConnectDoor(intake, feed, Grpc(**changes), open_admission(), watcher_stalled_seconds=stalled_seconds)
        started.append(Running(door, intake, feed))
        return await started[-1].start()

    yield run
    for running in started:
        await running.client.aclose()
        running.door.stop()
        await running.server.stop(1)
        running.door.close()


def assert_error(answer: httpx.Response, status: int, code: str, *texts: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, Any] = answer.json()
    assert body["code"] == code
    for text in texts:
        assert text in body["message"]
    return body


def enveloped(content: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(content)) + content


def envelopes(content: bytes) -> list[tuple[int, bytes]]:
    found = []
    while content:
        flags, length = struct.unpack(">BI", content[:5])
        found.append((flags, content[5 : 5 + length]))
        content = content[5 + length :]
    return found


METRICS = {
    "vmId": "vm-1",
    "customerId": "customer-1",
    "metrics": [{"timestamp": "2025-11-21T08:00:00.5Z", "cpuTimeNanos": "9007199254740993", "memoryUsageBytes": 5}],
}


@pytest.mark.parametrize("service", [BILLING, LATER])
async def test_json_becomes_a_record_and_its_protobuf_bytes(start: Any, service: str) -> None:
    running = await start()
    answer = await running.post("SendMetricsBatch", METRICS, service=service)
    assert answer.status_code == 200
    assert answer.json() == {"success": True, "message": "processed 1 metrics"}
    [(record, payload, caller)] = running.intake.taken
    assert list(record.samples) == [1_763_712_000_500_000_000, 5, 9007199254740993, 0, 0, 0, 0]
    message = json_format.ParseDict(METRICS, pb.SendMetricsBatchRequest())
    assert (payload, caller) == (message.SerializeToString(), "@plaintext")


async def test_names_as_in_the_proto_file_are_taken_too(start: Any) -> None:
    running = await start()
    answer = await running.post("NotifyVmStarted", {"vm_id": "vm-1", "customer_id": "c", "start_time": "7"})
    assert answer.json() == {"success": True}
    assert running.intake.taken[0][0] == VmStarted("vm-1", "c", 7)


@pytest.mark.parametrize("service", [BILLING, LATER])
async def test_protobuf_is_journaled_as_it_came(start: Any, service: str) -> None:
    running = await start()
    for method in METHODS:
        payload = (batch(1) if method.name == "SendMetricsBatch" else method.request()).SerializeToString()
        payload += b"\xf2\x3f\x03new"
        answer = await running.post(method.name, payload, PROTO, service)
        assert answer.headers["content-type"] == "application/proto"
        assert method.response.FromString(answer.content).success
        assert running.intake.taken[-1][1] == payload


async def test_grpc_web_works(start: Any) -> None:
    running = await start()
    body = enveloped(batch(0, 1).SerializeToString())
    answer = await running.post("SendMetricsBatch", body, {"Content-Type": "application/grpc-web+proto"})
    (_, message), (flags, trailers) = envelopes(answer.content)
    assert pb.SendMetricsBatchResponse.FromString(message).message == "processed 2 metrics"
    assert flags == 0x80 and b"grpc-status: 0" in trailers
    running.intake.error = WrongOwner("vm-1")
    answer = await running.post("SendMetricsBatch", body, {"Content-Type": "application/grpc-web+proto"})
    assert answer.headers.get("grpc-status", "") == "9" or b"grpc-status: 9" in answer.content


async def test_an_empty_batch_is_answered_and_zeros_are_printed(start: Any) -> None:
    running = await start()
    answer = await running.post("SendMetricsBatch", {"vmId": "vm-1"})
    assert answer.json() == {"success": False, "message": "no metrics provided"}
    assert running.intake.taken == []


@pytest.mark.parametrize(
    ("error", "status", "code", "detail"),
    [
        (InvalidField("vm_id", "must not be empty"), 400, "invalid_argument", "google.rpc.BadRequest"),
        (WrongOwner("vm-1"), 400, "failed_precondition", None),
        (Overloaded("the queue is full", 2.5), 429, "resource_exhausted", "google.rpc.RetryInfo"),
        (NotServing("replaying"), 503, "unavailable", "google.rpc.RetryInfo"),
    ],
)
async def test_each_error_has_its_status(
    start: Any, error: Exception, status: int, code: str, detail: str | None
) -> None:
    running = await start()
    running.intake.error = error
    body = assert_error(await running.post("SendMetricsBatch", METRICS), status, code, str(error))
    assert [entry["type"] for entry in body.get("details", [])] == ([detail] if detail else [])


async def test_a_bug_is_logged_and_told_by_its_reference_only(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    running = await start()
    running.intake.error = ZeroDivisionError("secret inner thing")
    with caplog.at_level(logging.ERROR):
        answer = await running.post("SendHeartbeat", {})
    body = assert_error(answer, 500, "internal", "reference")
    assert "secret" not in answer.text
    [line] = caplog.records
    assert body["message"].split()[-1] in line.getMessage() and line.exc_info


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (
            '{"vmId": "a", "metrics": [{"timestamp": "2025-11-21T08:00:00Z", "cpuTimeNano": 1}]}',
            "metrics[0].cpuTimeNano",
        ),
        ('{"vmIdd": "a"}', "vmIdd"),
        ('{"metrics": [{}, {"cpuTimeNanos": "1.5"}]}', "metrics[1].cpuTimeNanos"),
        ('{"metrics": [{"cpuTimeNanos": true}]}', "metrics[0].cpuTimeNanos"),
        ('{"metrics": [{"cpuTimeNanos": 9223372036854775808}]}', "metrics.cpuTimeNanos"),
        ('{"metrics": [{"timestamp": "yesterday"}]}', "metrics[0].timestamp"),
        ('{"metrics": [{"cpuTimeNanos": 1}]}', "metrics[0].timestamp"),
        ('{"vmId": 7}', "vmId"),
        ('{"vmId": "\\ud800"}', "vmId"),
        ('{"vmId": "v", "metrics": "\\ud800"}', "metrics"),
    ],
)
async def test_a_wrong_field_is_named(start: Any, text: str, field: str) -> None:
    running = await start()
    answer = await running.post("SendMetricsBatch", text.encode())
    assert_error(answer, 400, "invalid_argument", f"{field}: ")
    assert running.intake.taken == []


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[]", b"null", b"7", b'{"vmId": "a"', b"\xff\xfe"),
        *(b'{"vmId": "a", "vmId": "b"}', b'{"metrics": 7}'),
        pytest.param(b"[" * 100_000, id="deep-arrays"),
        pytest.param(b'{"metrics":[' * 100_000, id="deep-objects"),
        pytest.param(b'{"metrics": [{"cpuTimeNanos": ' + b"1" * 5_000 + b"}]}", id="long-number"),
    ],
)
async def test_what_is_no_json_of_its_type_is_the_callers_fault(start: Any, text: bytes) -> None:
    running = await start()
    answer = await running.post("SendMetricsBatch", text)
    assert_error(answer, 400, "invalid_argument")
    assert len(answer.content) < 3_000
    assert running.intake.taken == []


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\x0a\x7fshort", b"\x0b" * 70_000])
async def test_malformed_protobuf_is_the_callers_fault(start: Any, payload: bytes) -> None:
    running = await start()
    answer = await running.post("SendHeartbeat", payload, PROTO)
    assert_error(answer, 400, "invalid_argument", "not a valid protobuf message")


async def test_a_large_batch_is_taken_and_does_not_hold_up_others(start: Any) -> None:
    running = await start()
    text = json_format.MessageToJson(batch(*range(20_000)), indent=None).encode()
    assert 2**20 < len(text) < 2**22
    large = asyncio.ensure_future(running.post("SendMetricsBatch", text))
    while not large.done():
        assert (await running.post("SendHeartbeat", {"instanceId": "host-1"})).status_code == 200
    assert large.result().json()["message"] == "processed 20000 metrics"
    kinds = [type(record) for record, _, _ in running.intake.taken]
    assert kinds.index(MetricsBatch) > 0, "a heartbeat sent later was answered first"


async def test_over_the_limit_is_refused_before_and_after_unpacking(start: Any) -> None:
    running = await start(max_message_bytes=65_536)
    plain = b'{"instanceId": "' + b"a" * 70_000 + b'"}'
    assert_error(await running.post("SendHeartbeat", plain), 429, "resource_exhausted", "65536")
    bomb = gzip.compress(b" " * 50_000_000, mtime=0)
    assert len(bomb) < 65_536
    answer = await running.post("SendHeartbeat", bomb, JSON | {"Content-Encoding": "gzip"})
    assert_error(answer, 429, "resource_exhausted", "65536")
    small = gzip.compress(b'{"instanceId": "host-1"}', mtime=0)
    assert (await running.post("SendHeartbeat", small, JSON | {"Content-Encoding": "gzip"})).status_code == 200
    assert len(running.intake.taken) == 1


async def test_a_body_without_end_is_cut_at_the_limit(start: Any) -> None:
    running = await start(max_message_bytes=65_536)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 65_536

    answer = await running.client.post(f"{BILLING}/SendHeartbeat", content=endless(), headers=JSON)
    assert_error(answer, 429, "resource_exhausted")


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("gzip", b"not gzip"), ("gzip", gzip.compress(b"{}", mtime=0)[:-4]), ("br", b"{}"), ("zip", b"{}")],
)
async def test_a_wrong_encoding_is_the_callers_fault(start: Any, encoding: str, body: bytes) -> None:
    running = await start()
    answer = await running.post("SendHeartbeat", body, JSON | {"Content-Encoding": encoding})
    assert answer.status_code == (400 if encoding == "gzip" else 501)
    assert answer.json()["code"] == ("invalid_argument" if encoding == "gzip" else "unimplemented")


async def test_what_is_no_rpc_is_answered_in_json(start: Any) -> None:
    running = await start()
    client = running.client
    assert_error(await client.get("/"), 404, "not_found", "nothing at /")
    assert_error(await client.get("/metrics"), 404, "not_found")
    assert_error(await client.post(f"{BILLING}/SendBill"), 404, "unimplemented", "SendBill")
    assert_error(await client.post(BILLING), 404, "not_found")
    answer = await client.get(f"{BILLING}/SendHeartbeat")
    assert_error(answer, 405, "unimplemented", "POST")
    assert answer.headers["allow"] == "POST"
    assert_error(await client.post("/health"), 405, "unimplemented")
    for content_type in ("text/plain", "application/grpc", "application/connect+json", ""):
        answer = await running.post("SendHeartbeat", b"{}", {"Content-Type": content_type})
        assert_error(answer, 415, "invalid_argument", "application/json")
    answer = await running.post("SendHeartbeat", b"{}", {**JSON, "X-Name": b"\xff"})  # type: ignore[dict-item]
    assert_error(answer, 400, "invalid_argument", "header")
    assert running.intake.taken == []


async def test_health_says_what_the_daemon_is_doing(start: Any) -> None:
    running = await start()
    answer = await running.client.get("/health")
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("uptime_seconds") >= 0
    assert body == {"status": "ok", "service": "billaged", "version": billaged.__version__}
    for running.state in ("starting", "stopping"):
        answer = await running.client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, running.state)


async def test_stats_shows_what_it_is_given(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    running = await start()
    assert (await running.client.get("/stats")).json() == {"active_vms": 3}
    running.stats = lambda: 1 // 0
    assert_error(await running.client.get("/stats"), 500, "internal", "reference")
    assert [line.name for line in caplog.records] == ["billaged.doors"]


async def test_summaries_stream_as_json(start: Any) -> None:
    running = await start()
    body = enveloped(b'{"customerIds": ["customer-1"]}')
    headers = {"Content-Type": "application/connect+json"}
    call = asyncio.ensure_future(running.client.post(WATCH, content=body, headers=headers))
    await until(lambda: len(running.feed.queues) == 1, "the watcher is in the feed")
    assert running.feed.filters == [(["customer-1"], [])]
    running.feed.put(stream_pb.UsageSummary(vm_id="vm-1", window_start_nanos=SECONDS * 10**9))
    running.feed.put(stream_pb.UsageSummary(vm_id="vm-2", final=True))
    running.feed.end()
    *messages, (flags, end) = envelopes((await call).content)
    summaries = [json.loads(message) for _, message in messages]
    assert [summary["vmId"] for summary in summaries] == ["vm-1", "vm-2"]
    assert summaries[0]["windowStartNanos"] == str(SECONDS * 10**9)
    assert summaries[0]["final"] is False, "zeros are printed"
    assert (flags, json.loads(end)) == (2, {})


async def watch_end(running: Running, body: bytes = b"{}") -> dict[str, Any]:
    """The error in the end of a stream."""
    headers = {"Content-Type": "application/connect+json"}
    answer = await running.client.post(WATCH, content=enveloped(body), headers=headers)
    flags, end = envelopes(answer.content)[-1]
    assert flags == 2
    error: dict[str, Any] = json.loads(end)["error"]
    return error


async def test_a_stream_tells_its_errors_at_its_end(start: Any) -> None:
    running = await start(FilledFeed(queue_max=10), watchers_max=1)
    unknown = await watch_end(running, b'{"customerId": "c"}')
    assert unknown["code"] == "invalid_argument" and "customerId: " in unknown["message"]
    first = asyncio.ensure_future(watch_end(running))
    await until(lambda: len(running.feed.queues) == 1, "the first watcher is in the feed")
    assert (await watch_end(running))["code"] == "resource_exhausted", "only one place"
    for _ in range(12):
        running.feed.put(stream_pb.UsageSummary())
    behind = await first
    assert behind["code"] == "resource_exhausted" and "behind" in behind["message"]


async def test_a_watcher_that_goes_away_is_released(start: Any) -> None:
    running = await start()
    call = asyncio.ensure_future(watch_end(running))
    await until(lambda: len(running.feed.queues) == 1, "the watcher is in the feed")
    call.cancel()
    await until(lambda: not running.feed.queues, "the watcher has left the feed")


async def test_a_watcher_that_does_not_read_is_cut_off(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    running = await start(stalled_seconds=0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)
    body = enveloped(b"{}")
    head = f"POST {WATCH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await until(lambda: len(running.feed.queues) == 1, "the watcher is in the feed")
    # The reader stops at its small limit; the rest fills the kernel's buffers, then the server's.
    for _ in range(900):
        running.feed.put(stream_pb.UsageSummary(vm_id="v" * 60_000))
    await until(lambda: not running.feed.queues, "the watcher is cut off")
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(2**30), TIMEOUT)
    writer.close()
    assert [line.name for line in caplog.records if line.levelno >= logging.WARNING] == ["billaged.doors"]


async def test_stop_lets_requests_finish_and_ends_watchers(start: Any) -> None:
    running = await start()
    running.intake.gate = asyncio.Event()
    held = asyncio.ensure_future(running.post("SendHeartbeat", {}))
    watcher = asyncio.ensure_future(watch_end(running))
    await until(lambda: running.intake.waiting == 1 and len(running.feed.queues) == 1, "both are inside")
    running.door.stop()
    stopping = asyncio.ensure_future(running.server.stop(TIMEOUT))
    error = await watcher
    assert (error["code"], error["message"]) == ("unavailable", "billaged is stopping")
    assert running.door._watching == set()
    assert not held.done()
    running.intake.gate.set()
    assert (await held).json() == {"success": True}
    await stopping
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port), 1).close()


async def test_stop_does_not_wait_for_ever(start: Any) -> None:
    running = await start()
    running.intake.gate = asyncio.Event()
    held = asyncio.ensure_future(running.post("SendHeartbeat", {}))
    await until(lambda: running.intake.waiting == 1, "the request is inside")
    await asyncio.wait_for(running.server.stop(0), TIMEOUT)
    answer = await asyncio.gather(held, return_exceptions=True)
    assert isinstance(answer[0], httpx.TransportError) or answer[0].status_code >= 499
    assert running.intake.taken == []


async def test_no_watcher_begins_once_it_is_stopping(start: Any) -> None:
    running = await start()
    running.door.stop()
    assert (await watch_end(running))["code"] == "unavailable"


async def test_too_many_requests_are_told_and_health_is_not_among_them(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("billaged.web.server.REQUESTS_MAX", 2)
    running = await start()
    running.intake.gate = asyncio.Event()
    held = [asyncio.ensure_future(running.post("SendHeartbeat", {})) for _ in range(2)]
    await until(lambda: running.intake.waiting == 2, "two requests in the intake")
    answer = await running.post("SendHeartbeat", {})
    assert_error(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    assert (await running.client.get("/health")).status_code == 200
    running.intake.gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*held)] == [200, 200]


async def test_connections_over_the_limit_are_closed(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Running, "connections_max", 2)
    running = await start()
    held = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(2)]
    assert await running.raw(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    for _, writer in held:
        writer.close()
    await until(lambda: not running.server._server.server_state.connections, "the places are free")
    assert (await running.client.get("/health")).status_code == 200


async def test_a_port_in_use_is_one_clear_error(start: Any) -> None:
    running = await start()
    second = HttpServer(lambda *_: None, Http(port=running.port, address="127.0.0.1"))
    with pytest.raises(StartError) as caught:
        await second.start()
    text = str(caught.value)
    assert f"127.0.0.1:{running.port}" in text
    assert "Address already in use" in text and "UNKEY_BILLAGED_HTTP_PORT" in text
    assert (await running.client.get("/health")).status_code == 200, "the first goes on"


@pytest.mark.parametrize(
    "parts",
    [
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: ", *[b"a" * 65_536] * 20),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n", *[b"X-Many: " + b"a" * 1_000 + b"\r\n"] * 1_000),
        (b"GET /" + b"a" * 100_000, *[b"a" * 65_536] * 20),
    ],
    ids=["long-value", "many-fields", "long-path"],
)
async def test_headers_without_end_are_cut(start: Any, parts: tuple[bytes, ...]) -> None:
    running = await start()
    answer = await running.raw(*parts)
    assert answer == b"" or b" 431 " in answer
    assert (await running.client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "text", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET \xff HTTP/1.1\r\n\r\n"]
)
async def test_what_is_no_http_is_refused(start: Any, text: bytes) -> None:
    running = await start()
    head, _, body = (await running.raw(text)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["code"] == "invalid_argument"


@pytest.mark.parametrize("text", [b"", b"GET /health HTT", b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"])
async def test_a_request_that_does_not_come_is_cut(start: Any, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "request_seconds", 0.2)
    running = await start()
    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(text)
    await until(lambda: len(running.server._server.server_state.connections) == 1, "the connection is there")
    await until(lambda: not running.server._server.server_state.connections, "the connection is cut")
    writer.close()


async def test_a_kept_connection_takes_many_requests(start: Any) -> None:
    running = await start()
    for _ in range(200):
        # More in all than the limit on one request's headers.
        assert (await running.client.get("/health", headers={"X-Pad": "a" * 1_000})).status_code == 200
    assert len(running.server._server.server_state.connections) == 1


async def test_curl_works_as_documented(start: Any) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    running = await start()
    process = await asyncio.create_subprocess_exec(
        *(curl, "-sS", "-X", "POST", f"http://127.0.0.1:{running.port}{BILLING}/SendMetricsBatch"),
        *("-H", "Content-Type: application/json", "-d", json.dumps(METRICS)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
    assert json.loads(output) == {"success": True, "message": "processed 1 metrics"}
