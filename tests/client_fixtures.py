"""What the client's tests share: a real gRPC server that can be told to fail, and a clock that is told the time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from tls_material import Authority, Pair

from billaged.client.backoff import Backoff
from billaged.client.channel import BillingClient, Target
from billaged.client.courier import Courier
from billaged.client.methods import METHODS, SERVICE
from billaged.client.readings import Reading, metrics_record
from billaged.client.spool import Spool
from billaged.client.tls import TlsFiles
from billaged.identity.caller import Caller
from billaged.model.errors import Unauthenticated
from billaged.model.time import NANOS
from billaged.wire.billing.v1 import billing_pb2 as pb

SECOND = NANOS
NOW_NS = 1_795_255_200 * NANOS
DEADLINE_SECONDS = 20.0


class ToldClock:
    """Both clocks stand still until told to go on."""

    def __init__(self) -> None:
        self.wall_ns = NOW_NS
        self.monotonic_ns = 0

    def wall_nanos(self) -> int:
        return self.wall_ns

    def monotonic_nanos(self) -> int:
        return self.monotonic_ns

    def advance(self, seconds: float) -> None:
        self.wall_ns += int(seconds * NANOS)
        self.monotonic_ns += int(seconds * NANOS)


Judge = Callable[[Message], tuple[grpc.StatusCode, str] | None]


class BillingServer:
    """The five RPCs on a loopback port. ``judge`` may refuse a request; what it takes is in ``taken``, in order."""

    def __init__(self) -> None:
        self.taken: list[Message] = []
        self.attempts = 0
        self.leaves: set[bytes] = set()  # the certificates that callers have shown, PEM
        self.caller: Caller | None = None  # proves who calls, with each call, as the daemon does
        self._proving = threading.Lock()
        self.judge: Judge = lambda _: None
        self.retry_delay_seconds: int | None = None
        self.trailing: tuple[tuple[str, bytes], ...] = ()  # metadata of a refusal
        self.port = 0
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def usage(self) -> list[Message]:
        """What was taken, without heartbeats."""
        return [message for message in self.taken if not isinstance(message, pb.SendHeartbeatRequest)]

    def start(
        self, credentials: grpc.ServerCredentials | None = None, options: tuple[tuple[str, Any], ...] = ()
    ) -> None:
        """On a free port, and after a stop on the same one again."""
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0), *options])
        handlers = {
            method.name: grpc.unary_unary_rpc_method_handler(
                self._answer(method.response), method.request.FromString, method.response.SerializeToString
            )
            for method in METHODS.values()
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        where = f"127.0.0.1:{self.port}"
        self.port = (
            self._server.add_secure_port(where, credentials) if credentials else self._server.add_insecure_port(where)
        )
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def _answer(self, response: type[Message]) -> Callable[[Any, grpc.ServicerContext], Message]:
        def answer(request: Message, context: grpc.ServicerContext) -> Message:
            self.attempts += 1
            self.leaves.update(context.auth_context().get("x509_pem_cert", ()))
            self._prove(context)
            if (refusal := self.judge(request)) is not None:
                self._refuse(context, *refusal)
            self.taken.append(request)
            if isinstance(request, pb.SendMetricsBatchRequest):
                return pb.SendMetricsBatchResponse(success=True, message=f"processed {len(request.metrics)} metrics")
            return response(success=True)

        return answer

    def _prove(self, context: grpc.ServicerContext) -> None:
        if self.caller is None:
            return
        try:
            with self._proving:
                self.caller(context)
        except Unauthenticated as error:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))

    def _refuse(self, context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> None:
        if self.retry_delay_seconds is None:
            context.set_trailing_metadata(self.trailing)
            context.abort(code, details)
        status = status_pb2.Status(code=code.value[0], message=details)
        delay = duration_pb2.Duration(seconds=self.retry_delay_seconds)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        context.abort_with_status(rpc_status.to_status(status))


@contextmanager
def billing_server(credentials: grpc.ServerCredentials | None = None) -> Iterator[BillingServer]:
    server = BillingServer()
    server.start(credentials)
    try:
        yield server
    finally:
        server.stop()


def reading(time_ns: int, cpu_time_ns: int = 0) -> Reading:
    return Reading(time_ns, 2**20, cpu_time_ns, 1, 2, 3, 4)


def sample_times(messages: list[Message], vm_id: str) -> list[int]:
    """The times of a VM's samples in the order in which they were taken, ns."""
    return [
        metrics.timestamp.seconds * NANOS + metrics.timestamp.nanos
        for message in messages
        if isinstance(message, pb.SendMetricsBatchRequest) and message.vm_id == vm_id
        for metrics in message.metrics
    ]


def seconds_of(messages: list[Message], vm_id: str) -> list[int]:
    return [(ns - NOW_NS) // SECOND for ns in sample_times(messages, vm_id)]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until it holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {DEADLINE_SECONDS} s: {what}")
        pause.wait(0.01)


def billaged_process(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """The real command in a process of its own, its stderr in ``log``."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "billaged", *arguments],
            stdout=subprocess.PIPE,
            stderr=file,
            env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
        )


def mutual_tls(server: Pair, clients: bytes) -> grpc.ServerCredentials:
    """Of a server that shows this, and takes clients whose certificate one of these CAs signed."""
    return grpc.ssl_server_credentials([(server.key, server.cert)], clients, require_client_auth=True)


class TlsFolder:
    """An authority, and what a client of one server needs of it, as files. ``options`` name them on a command line."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.ca, self.cert, self.key = (folder / name for name in ("ca.pem", "client.pem", "client.key"))
        self.authority = Authority()
        self.server = self.authority.sign("server", names=("billaged.test",))
        self.write()

    def write(self, pair: Pair | None = None) -> None:
        """A certificate of the authority (or another one) for the client, each file replaced at once."""
        pair = pair or self.authority.sign("client", names=("agent.test",))
        for path, pem in ((self.ca, self.authority.pem), (self.key, pair.key), (self.cert, pair.cert)):
            fresh = path.with_suffix(".next")
            fresh.write_bytes(pem)
            fresh.replace(path)

    @property
    def server_credentials(self) -> grpc.ServerCredentials:
        return mutual_tls(self.server, self.authority.pem)

    @property
    def tls(self) -> TlsFiles:
        return TlsFiles(self.ca, self.cert, self.key, "billaged.test")

    @property
    def trust_options(self) -> list[str]:
        return ["--tls-ca", str(self.ca), "--tls-server-name", "billaged.test"]

    @property
    def options(self) -> list[str]:
        return [*self.trust_options, "--tls-cert", str(self.cert), "--tls-key", str(self.key)]


class Rig:
    """A spool and a courier that talks to a real server, on a clock that is told the time."""

    def __init__(self, server: BillingServer, directory: Path) -> None:
        self.server = server
        self.clock = ToldClock()
        self.spool = Spool(directory, 2**24)
        self.client = BillingClient(Target(server.address, None, 5.0))
        self.active: tuple[str, ...] = ("a",)
        self.courier = Courier(
            self.client, self.spool, "here", lambda: self.active, self.clock, Backoff(chance=lambda: 0.0)
        )

    def put(self, vm_id: str, *seconds: int, customer_id: str = "c") -> None:
        self.spool.append([metrics_record(vm_id, customer_id, reading(NOW_NS + s * SECOND, s)) for s in seconds])

    def deliver_all(self) -> None:
        """Until nothing is left, waiting as long as the courier asks for on the told clock."""
        for _ in range(200):
            seconds = self.courier.deliver()
            if not self.courier.is_away() and seconds:
                return
            self.clock.advance(seconds)
        raise AssertionError("never done")

    def close(self) -> None:
        self.client.close()
        self.courier.close()
        self.spool.close()


@contextmanager
def delivery_rig(directory: Path) -> Iterator[Rig]:
    with billing_server() as server:
        rig = Rig(server, directory)
        try:
            yield rig
        finally:
            rig.close()
