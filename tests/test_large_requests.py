"""The largest requests, and nothing in them: a real daemon refuses them, holds little, and holds up nobody."""

from __future__ import annotations

import json
import re
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import pytest
from daemon_calls import BILLING, DEADLINE_SECONDS, SECOND, batch, call
from daemon_process import DaemonProcess

from billaged.wire.billing.v1 import billing_pb2 as pb
from billaged.wire.billing.v1 import usage_stream_pb2 as stream_pb

MIB = 2**20
# A little below what gRPC lets pass.
LARGEST = 4 * MIB - 1024
CLIENTS = 16
RISE_MAX = 300 * MIB
OTHERS_WAIT_SECONDS = 2.0
STREAM = "billing.v1.UsageStreamService"
NAMES = b"\x0a\x01v\x12\x01c"
METRICS, VMS = b"metrics: holds more than", b"active_vms: holds more than"


def to_the_brim(part: bytes) -> bytes:
    return part * (LARGEST // len(part))


def length_delimited(number: int, content: bytes) -> bytes:
    length, prefix = len(content), bytearray([number << 3 | 2])
    while length > 127:
        prefix.append(length & 127 | 128)
        length >>= 7
    return bytes(prefix) + bytes([length]) + content


class Bad(NamedTuple):
    """``told`` begins what is answered; the method's service is the billing service, but for WatchSummaries."""

    method: str
    body: bytes
    told: bytes


OF_PROTOBUF = {
    "empty metrics": Bad("SendMetricsBatch", NAMES + to_the_brim(b"\x1a\x00"), METRICS),
    "empty metrics, long tags": Bad("SendMetricsBatch", NAMES + to_the_brim(b"\x9a\x80\x00\x00"), METRICS),
    "empty timestamps": Bad("SendMetricsBatch", NAMES + to_the_brim(b"\x1a\x02\x0a\x00"), METRICS),
    "as many as may come": Bad("SendMetricsBatch", NAMES + b"\x1a\x02\x0a\x00" * 100_000, b"metrics[0].timestamp: "),
    "one sample of many timestamps": Bad(
        "SendMetricsBatch", NAMES + length_delimited(3, to_the_brim(b"\x0a\x00")), b"metrics[0].timestamp: "
    ),
    "unknown fields": Bad("NotifyVmStopped", to_the_brim(b"\x0a\x01v\x70\x01"), b"stop_time: "),
    "empty vms": Bad("SendHeartbeat", b"\x0a\x01h" + to_the_brim(b"\x12\x00"), VMS),
    "empty vms that may come": Bad("SendHeartbeat", b"\x0a\x01h" + b"\x12\x00" * 100_000, b"active_vms[0]: "),
    "one long name": Bad("NotifyVmStarted", length_delimited(1, to_the_brim(b"v")), b"vm_id: "),
    "no message": Bad("SendMetricsBatch", to_the_brim(b"\x1a\x7f"), b"the request is not a valid protobuf message"),
    "watched customers": Bad("WatchSummaries", to_the_brim(b"\x0a\x01c"), b"customer_ids: holds more than"),
    "watched vms": Bad("WatchSummaries", to_the_brim(b"\x12\x00"), b"vm_ids: holds more than"),
    "a long watched name": Bad("WatchSummaries", length_delimited(1, to_the_brim(b"c")), b"the request is larger"),
    "a bad watched name": Bad("WatchSummaries", b"\x0a\x01c\x0a\x01 ", b"customer_ids[1]: "),
}


def in_list(start: bytes, part: bytes, end: bytes = b"]}") -> bytes:
    return start + to_the_brim(part)[: -len(start + end) // len(part) * len(part)].rstrip(b",") + end


OF_JSON = {
    "empty metrics": Bad("SendMetricsBatch", in_list(b'{"vmId":"v","metrics":[', b"{},"), METRICS),
    "arrays for objects": Bad("SendMetricsBatch", in_list(b'{"vmId":"v","metrics":[', b"[],"), METRICS),
    "as many as may come": Bad(
        "SendMetricsBatch", b'{"metrics":[' + b"{}," * 99_999 + b"{}]}", b"metrics[0].timestamp: is missing"
    ),
    "empty vms": Bad("SendHeartbeat", in_list(b'{"instanceId":"h","activeVms":[', b'"",'), VMS),
    "many values": Bad("NotifyVmStopped", in_list(b'{"vmId":[', b"-9,"), b"the request holds more values"),
    "deep objects": Bad("NotifyVmStopped", to_the_brim(b'{"a":'), b"the request holds more values"),
    "one large object": Bad(
        "SendMetricsBatch",
        b"{" + b",".join(b'"%x":0' % number for number in range(400_000)) + b"}",
        b"the request holds more values",
    ),
    "objects of wrong fields": Bad(
        "SendMetricsBatch",
        in_list(b'{"metrics":[', b'{"a":-9,"b":-9,"c":-9,"d":9e9,"e":-9,"f":-9,"g":9},'),
        b"metrics[0].a: is not a field",
    ),
    "many texts": Bad(
        "SendMetricsBatch", b'{"a":[' + b"{}," * 99_000 + b'"abc",' * 590_000 + b"{}]}", b"a: is not a field"
    ),
    "a long text": Bad("SendHeartbeat", b'{"instanceId":"' + to_the_brim(b"h") + b'"}', b"instanceId: must not be"),
    "a long name": Bad("SendHeartbeat", b'{"' + to_the_brim(b"h") + b'":1}', b"hhhhhhhh"),
    "a long number": Bad("NotifyVmStopped", b'{"stopTime":' + to_the_brim(b"1") + b"}", b"the request is not valid"),
    "watched vms": Bad("WatchSummaries", in_list(b'{"vmIds":[', b'"",'), b"customer_ids or vm_ids: holds more than"),
    "a few too many": Bad(
        "WatchSummaries", b'{"vmIds":[' + b'"v",' * 1_000 + b'"v"]}', b"vm_ids: holds more than the 1000"
    ),
}


class Watched(NamedTuple):
    """A daemon, and what it held before anybody sent anything large."""

    daemon: DaemonProcess
    before_bytes: int

    def memory_bytes(self, field: str) -> int:
        return memory_bytes(self.daemon, field)


def memory_bytes(daemon: DaemonProcess, field: str) -> int:
    """VmRSS: what it holds now. VmHWM: the most that it ever held."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One daemon for all of them: what one of them left behind would add up.

    Its limits are as they are, but for the samples of one caller: here all callers are one address.
    """
    settings = {"SAMPLES_PER_SECOND": "0"}
    with DaemonProcess(tmp_path_factory.mktemp("daemon") / "var", settings) as daemon:
        assert daemon.call("SendHeartbeat", pb.SendHeartbeatRequest(instance_id="host-1"))
        assert daemon.post("SendHeartbeat", {"instanceId": "host-1"}).status_code == 200
        yield Watched(daemon, memory_bytes(daemon, "VmRSS"))
        assert daemon.stop() == 0
        assert not [line for line in daemon.log if line["level"] == "error"]
        assert daemon.other_output == ""


class Bystander:
    """Somebody else, who calls all the time. A context manager."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self._daemon = daemon
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self.waited_seconds: list[float] = []
        self.failed: list[grpc.RpcError] = []

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._enough.set()
        self._thread.join()

    def _call(self) -> None:
        request = pb.SendHeartbeatRequest(instance_id="bystander")
        with self._daemon.channel() as channel:
            while not self._enough.wait(0.01):
                begun = time.monotonic()
                try:
                    call(channel, "SendHeartbeat", request)
                except grpc.RpcError as error:
                    self.failed.append(error)
                self.waited_seconds.append(time.monotonic() - begun)


def over_grpc(daemon: DaemonProcess, bad: Bad) -> bytes:
    """What one client is told, on a connection of its own."""
    with daemon.channel() as channel:
        try:
            if bad.method == "WatchSummaries":
                watch = channel.unary_stream(f"/{STREAM}/{bad.method}", None, stream_pb.UsageSummary.FromString)
                list(watch(bad.body, timeout=DEADLINE_SECONDS))
            else:
                call(channel, bad.method, bad.body)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                return str(error.details()).encode()
            return str(error).encode()
    return b"taken"


def over_http(daemon: DaemonProcess, bad: Bad) -> bytes:
    if bad.method != "WatchSummaries":
        answer = post(daemon, f"{BILLING}/{bad.method}", bad.body, "application/json")
        error = answer.json()
    else:
        body = struct.pack(">BI", 0, len(bad.body)) + bad.body
        answer = post(daemon, f"{STREAM}/{bad.method}", body, "application/connect+json")
        error = json.loads(answer.content[5:])["error"]
    return error["message"].encode() if error.get("code") == "invalid_argument" else answer.content


def post(daemon: DaemonProcess, path: str, body: bytes, content_type: str) -> httpx.Response:
    headers = {"content-type": content_type}
    return httpx.post(f"{daemon.http_url}/{path}", content=body, headers=headers, timeout=DEADLINE_SECONDS)


def check(watched: Watched, bad: Bad, door: str) -> None:
    send = over_grpc if door == "grpc" else over_http
    with Bystander(watched.daemon) as bystander, ThreadPoolExecutor(CLIENTS) as clients:
        told = list(clients.map(lambda _: send(watched.daemon, bad), range(CLIENTS)))
    assert [text for text in told if not text.startswith(bad.told)] == []
    assert bystander.failed == []
    assert max(bystander.waited_seconds) < OTHERS_WAIT_SECONDS
    risen = watched.memory_bytes("VmHWM") - watched.before_bytes
    assert risen < RISE_MAX, f"{risen / MIB:.0f} MiB more"


@pytest.mark.parametrize("name", OF_PROTOBUF)
def test_protobuf_is_refused_and_costs_little(watched: Watched, name: str) -> None:
    check(watched, OF_PROTOBUF[name], "grpc")


@pytest.mark.parametrize("name", OF_JSON)
def test_json_is_refused_and_costs_little(watched: Watched, name: str) -> None:
    check(watched, OF_JSON[name], "http")


def test_the_largest_batch_is_taken_between_them(watched: Watched) -> None:
    start_ns = time.time_ns() - 86_400 * SECOND
    request = batch("vm-largest", start_ns)
    sample = pb.VMMetrics(timestamp=request.metrics[0].timestamp, memory_usage_bytes=MIB)
    request.metrics.extend([sample] * 99_999)
    too_many = pb.SendMetricsBatchRequest(vm_id="vm-largest", metrics=[*request.metrics, sample]).SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        watched.daemon.call("SendMetricsBatch", too_many)
    assert caught.value.details() == "metrics: holds more than the 100000 that may come at once"
    answer = watched.daemon.call("SendMetricsBatch", request)
    assert isinstance(answer, pb.SendMetricsBatchResponse)
    assert answer.message == "processed 100000 metrics"
