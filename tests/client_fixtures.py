"""What the client's tests share: a real gRPC server that can be told to fail, and a clock that is told the time."""

from __future__ import annotations

import datetime
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
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from billaged.client.backoff import Backoff
from billaged.client.channel import BillingClient, Target
from billaged.client.courier import Courier
from billaged.client.methods import METHODS, SERVICE
from billaged.client.readings import Reading, metrics_record
from billaged.client.spool import Spool
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
        self.judge: Judge = lambda _: None
        self.retry_delay_seconds: int | None = None
        self.port = 0
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def usage(self) -> list[Message]:
        """What was taken, without heartbeats."""
        return [message for message in self.taken if not isinstance(message, pb.SendHeartbeatRequest)]

    def start(self, credentials: grpc.ServerCredentials | None = None) -> None:
        """On a free port, and after a stop on the same one again."""
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
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
            if (refusal := self.judge(request)) is not None:
                self._refuse(context, *refusal)
            self.taken.append(request)
            if isinstance(request, pb.SendMetricsBatchRequest):
                return pb.SendMetricsBatchResponse(success=True, message=f"processed {len(request.metrics)} metrics")
            return response(success=True)

        return answer

    def _refuse(self, context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> None:
        if self.retry_delay_seconds is None:
            context.abort(code, details)
        status = status_pb2.Status(code=code.value[0], message=details)
        delay = duration_pb2.Duration(seconds=self.retry_delay_seconds)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        context.abort_with_status(rpc_status.to_status(status))


@contextmanager
def billing_server() -> Iterator[BillingServer]:
    server = BillingServer()
    server.start()
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


def mutual_tls(files: dict[str, Path]) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(files["server.key"].read_bytes(), files["server.pem"].read_bytes())],
        root_certificates=files["ca.pem"].read_bytes(),
        require_client_auth=True,
    )


def make_certificates(directory: Path) -> dict[str, Path]:
    """A CA, and a server's and a client's certificate from it, as PEM files."""
    now = datetime.datetime.now(datetime.UTC)
    files: dict[str, Path] = {}
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    for name, dns in (("ca", None), ("server", "billaged.test"), ("client", "agent.test")):
        key = ca_key if dns is None else ec.generate_private_key(ec.SECP256R1())
        subject = ca_name if dns is None else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=dns is None, path_length=None), critical=True)
        )
        if dns is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(dns)]), critical=False)
        certificate = builder.sign(ca_key, hashes.SHA256())
        files[f"{name}.pem"] = directory / f"{name}.pem"
        files[f"{name}.pem"].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[f"{name}.key"] = directory / f"{name}.key"
        files[f"{name}.key"].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    return files


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
        self.spool.close()


@contextmanager
def delivery_rig(directory: Path) -> Iterator[Rig]:
    with billing_server() as server:
        rig = Rig(server, directory)
        try:
            yield rig
        finally:
            rig.close()
