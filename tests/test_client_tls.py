"""The sending side's identity, against real servers: it follows files and a SPIFFE agent, and fails nothing by it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import psutil
import pytest
from client_fixtures import (
    BillingServer,
    TlsFolder,
    billaged_process,
    billing_server,
    mutual_tls,
    sample_times,
    wait_until,
)
from fake_workload_api import FakeWorkloadApi, Update
from free_ports import free_port
from google.protobuf.message import Message
from spiffe_material import TrustDomain
from tls_material import Authority

from billaged.client.channel import BillingClient, Target
from billaged.client.failure import NO_IDENTITY, CallFailed
from billaged.client.tls import SpiffeAgent, Tls, TlsFiles
from billaged.identity.caller import CertificateCaller
from billaged.identity.keeper import Keeper
from billaged.identity.material import BadMaterial
from billaged.identity.peer import PeerVerifier
from billaged.identity.server_credentials import server_credentials
from billaged.identity.spiffe import SpiffeSource
from billaged.model.records import Kind
from billaged.wire.billing.v1 import billing_pb2 as pb

SERVER_NAMES = ("billaged",)
REQUEST = pb.NotifyVmStoppedRequest(vm_id="v", stop_time=1).SerializeToString()
CHANGES = 6
OLD = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
def files(tmp_path: Path) -> TlsFolder:
    return TlsFolder(tmp_path / "tls")


@contextmanager
def client(server: BillingServer, tls: Tls | None, timeout_seconds: float = 5.0) -> Iterator[BillingClient]:
    with BillingClient(Target(server.address, tls, timeout_seconds)) as built:
        yield built


def stop(built: BillingClient) -> Message:
    return built.call(Kind.STOPPED, REQUEST)


def failure_of(built: BillingClient) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        stop(built)
    return caught.value


def sockets_to(server: BillingServer) -> int:
    """How many connections this process has to the server."""
    connections = psutil.Process().net_connections("tcp")
    return sum(bool(one.raddr) and one.raddr.port == server.port and one.status == "ESTABLISHED" for one in connections)


class Load:
    """Threads that call as fast as they can until the end; ``failures`` are what they were told."""

    def __init__(self, built: BillingClient, threads: int = 4) -> None:
        self.calls = 0
        self.failures: list[CallFailed] = []
        self._client = built
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                stop(self._client)
            except CallFailed as failure:
                self.failures.append(failure)
            self.calls += 1

    def goes_on(self, calls: int = 20) -> None:
        """Until so many more calls have ended."""
        now = self.calls
        wait_until(lambda: self.calls >= now + calls, "the load goes on")


# --- certificates from files -----------------------------------------------------


def test_files_that_change_under_load_fail_no_call(files: TlsFolder) -> None:
    with billing_server(files.server_credentials) as server, client(server, files.tls) as built:
        with Load(built) as load:
            for shown in range(1, 5):
                wait_until(lambda shown=shown: len(server.leaves) == shown, "the newest certificate is shown")  # type: ignore[misc]
                load.goes_on()
                files.write()
            wait_until(lambda: len(server.leaves) == 5, "the last one, too")
            load.goes_on()
        assert load.failures == []
        assert len(server.taken) == load.calls
        wait_until(lambda: sockets_to(server) == 1, "the old connections are closed")


def test_the_ca_changes_and_the_client_with_it(files: TlsFolder) -> None:
    """The server moves to another CA; the client's bundle has both for a while."""
    old = files.authority
    with client_of(files) as (server, built):
        stop(built)
        server.stop()
        files.authority = Authority()
        server.start(mutual_tls(files.authority.sign("server", names=("billaged.test",)), old.pem))
        assert "is not signed by a CA in" in failure_of(built).hint
        both = files.ca.with_suffix(".next")
        both.write_bytes(old.pem + files.authority.pem)
        both.replace(files.ca)
        wait_until(built.has_news, "the new bundle is found")
        stop(built)


def test_a_call_that_is_under_way_ends_on_the_old_connection(files: TlsFolder) -> None:
    slow = threading.Event()
    server = BillingServer()
    server.judge = lambda request: slow.wait(20) and None if getattr(request, "vm_id", "") == "slow" else None
    server.start(files.server_credentials)
    with client(server, files.tls, 30.0) as built, ThreadPoolExecutor(1) as threads:
        request = pb.NotifyVmStoppedRequest(vm_id="slow", stop_time=1).SerializeToString()
        under_way = threads.submit(built.call, Kind.STOPPED, request)
        wait_until(lambda: server.attempts == 1, "the slow call")
        files.write()
        wait_until(built.has_news, "the new files are found")
        stop(built)
        assert len(server.leaves) == 2
        assert sockets_to(server) == 2
        slow.set()
        assert getattr(under_way.result(20), "success", False)
        wait_until(lambda: sockets_to(server) == 1, "the old connection is closed")
    server.stop()


def test_close_cancels_what_is_under_way_on_an_old_connection(files: TlsFolder) -> None:
    over = threading.Event()
    server = BillingServer()
    server.judge = lambda request: over.wait(20) and None if getattr(request, "vm_id", "") == "slow" else None
    server.start(files.server_credentials)
    built = BillingClient(Target(server.address, files.tls, 3600.0))
    with ThreadPoolExecutor(1) as threads:
        request = pb.NotifyVmStoppedRequest(vm_id="slow", stop_time=1).SerializeToString()
        under_way = threads.submit(built.call, Kind.STOPPED, request)
        wait_until(lambda: server.attempts == 1, "the slow call")
        files.write()
        wait_until(built.has_news, "the new files are found")
        stop(built)
        built.close()
        failure = under_way.exception(10)
        over.set()
    assert isinstance(failure, CallFailed)
    assert failure.code == "CANCELLED"
    assert failure_of(built).code == "CANCELLED"
    server.stop()


@pytest.mark.parametrize("broken", ["cert", "key", "ca"])
def test_a_broken_file_keeps_the_connection_and_is_said_once(
    files: TlsFolder, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    path: Path = getattr(files, broken)

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    with client_of(files) as (server, built):
        stop(built)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        wait_until(lambda: bool(warnings()), "it is said")
        looked_again = time.monotonic() + 2.5
        wait_until(lambda: bool(stop(built)) and time.monotonic() > looked_again, "calls go on")
        (warning,) = warnings()
        assert f"--tls-{broken}" in warning
        files.write()
        wait_until(built.has_news, "the good ones are found")
        stop(built)
        assert len(server.leaves) == 2


@contextmanager
def client_of(files: TlsFolder) -> Iterator[tuple[BillingServer, BillingClient]]:
    with billing_server(files.server_credentials) as server, client(server, files.tls) as built:
        yield server, built


def test_files_that_cannot_be_used_are_said_at_once(files: TlsFolder) -> None:
    files.write(files.authority.sign("client", names=("agent.test",), not_after=OLD))
    with pytest.raises(BadMaterial, match=r"the certificate has expired at .*Renew it"):
        BillingClient(Target("127.0.0.1:1", files.tls))


def test_a_patient_client_waits_for_files_that_can_be_used(files: TlsFolder, caplog: pytest.LogCaptureFixture) -> None:
    files.write(files.authority.sign("client", names=("agent.test",), not_after=OLD))
    with (
        billing_server(files.server_credentials) as server,
        BillingClient(Target(server.address, files.tls, 5.0), is_patient=True) as built,
    ):
        for _ in range(2):
            failure = failure_of(built)
            assert failure.code == NO_IDENTITY
            assert "the certificate has expired at" in failure.details
            assert failure.hint == "Set them right: they are read again every second."
        assert server.attempts == 0
        files.key.unlink()
        looked = len(caplog.records)
        wait_until(lambda: len(caplog.records) > looked, "what is wrong now is said, too")
        assert "--tls-key" in caplog.records[-1].getMessage()
        assert not built.has_news()
        files.write()
        wait_until(built.has_news, "the good ones are found")
        stop(built)
        files.write()
        wait_until(lambda: bool(stop(built)) and len(server.leaves) == 2, "and followed from then on")


def test_a_patient_client_ends_while_it_waits(files: TlsFolder) -> None:
    files.cert.unlink()
    began = time.monotonic()
    BillingClient(Target("127.0.0.1:1", files.tls), is_patient=True).close()
    assert time.monotonic() - began < 5


# --- what helps ------------------------------------------------------------------


def stranger(folder: Path) -> tuple[Path, Path]:
    """A certificate that no server here knows the CA of, and its key."""
    return Authority().sign("x", names=("x.test",)).write(folder, "stranger")


@pytest.mark.parametrize(
    ("tls", "hint"),
    [
        (lambda files: None, "wants TLS: give --spiffe-socket, or --tls-ca"),
        (lambda files: TlsFiles(files.ca, server_name="billaged.test"), "asks for a certificate: give --tls-cert"),
        (lambda files: TlsFiles(files.ca, files.cert, files.key), "The server's certificate is not for 127.0.0.1: "),
        (
            lambda files: TlsFiles(files.ca, files.cert, files.key, "other.test"),
            "The server's certificate is not for other.test: ",
        ),
        (
            lambda files: TlsFiles(None, files.cert, files.key, "billaged.test"),
            "is not signed by a CA that this system trusts (--tls-ca names others)",
        ),
        (
            lambda files: TlsFolder(files.folder / "other").tls,
            "The server's certificate is not signed by a CA in ",
        ),
        (
            lambda files: TlsFiles(files.ca, *stranger(files.folder), "billaged.test"),
            "does not trust the certificate of x.test: is its CA among the server's?",
        ),
    ],
)
def test_a_refusal_by_tls_says_what_may_help(
    files: TlsFolder, tls: Callable[[TlsFolder], Tls | None], hint: str
) -> None:
    with billing_server(files.server_credentials) as server, client(server, tls(files)) as built:
        for _ in range(2):  # within gRPC's own back-off it is the same
            failure = failure_of(built)
            assert failure.code == "UNAVAILABLE"
            assert hint in failure.hint, (failure, failure.hint)


def test_an_expired_server_a_plaintext_one_and_an_http_one_are_told_apart(files: TlsFolder) -> None:
    expired = files.authority.sign("server", names=("billaged.test",), not_after=OLD)
    with billing_server(mutual_tls(expired, files.authority.pem)) as server, client(server, files.tls) as built:
        assert "The server's certificate does not hold at this time" in failure_of(built).hint
    with billing_server() as server, client(server, files.tls) as built:
        assert "What answers there speaks no TLS" in failure_of(built).hint
    web = HTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    try:
        with BillingClient(Target(f"127.0.0.1:{web.server_port}", None, 5.0)) as built:
            assert "speaks no gRPC" in failure_of(built).hint
    finally:
        web.shutdown()
        thread.join()
        web.server_close()
    with BillingClient(Target(f"127.0.0.1:{free_port()}", None, 5.0)) as built:
        assert "Nothing listens there" in failure_of(built).hint


class _Web(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def test_a_certificate_that_has_expired_since_is_named_as_the_reason(files: TlsFolder) -> None:
    not_after = datetime.fromtimestamp(int(time.time()) + 2, UTC)
    files.write(files.authority.sign("client", names=("agent.test",), not_after=not_after))
    with client_of(files) as (server, built):
        stop(built)
        server.stop()
        wait_until(lambda: datetime.now(UTC) > not_after, "it expires")
        server.start(files.server_credentials)
        assert "This client's certificate has expired at " in failure_of(built).hint
        files.write()
        wait_until(built.has_news, "the new one is found")
        stop(built)


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (
            "PERMISSION_DENIED",
            "That server's policy would have to allow this to agent.test, for these ids (or to @anonymous, "
            "if it asks nobody for a certificate).",
        ),
        ("UNAUTHENTICATED", "It does not accept the certificate of agent.test."),
        ("INVALID_ARGUMENT", ""),
        ("UNAVAILABLE", ""),
    ],
)
def test_a_refusal_by_the_policy_names_this_client(files: TlsFolder, code: str, hint: str) -> None:
    with client_of(files) as (server, built):
        server.judge = lambda _: (grpc.StatusCode[code], "no")
        failure = failure_of(built)
        assert (failure.code, failure.details, failure.hint) == (code, "no", hint)


# --- a SPIFFE agent --------------------------------------------------------------


class Mesh:
    """A server that follows one SPIFFE agent and proves each caller, a client's agent, and the trust domain of both."""

    def __init__(self) -> None:
        self.ttl_seconds = 60.0
        self.domain = TrustDomain("example.org")
        self.federated: tuple[TrustDomain, ...] = ()
        self.clients_api = FakeWorkloadApi(self.clients_update())
        self._servers_api = FakeWorkloadApi(self._servers_update())
        self._keeper = Keeper()
        self._source = SpiffeSource(self._servers_api.socket_path, self._keeper)
        self.server = BillingServer()
        self.server.caller = CertificateCaller(PeerVerifier(self._keeper), time.time_ns)

    def __enter__(self) -> Mesh:
        self._source.start()
        assert self._keeper.ready.wait(20)
        self.start_server()
        return self

    def start_server(self) -> None:
        self.server.start(server_credentials(self._keeper))

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self._source.stop()
        self._servers_api.close()
        self.clients_api.close()

    @property
    def tls(self) -> SpiffeAgent:
        return SpiffeAgent(self.clients_api.socket_path)

    def clients_update(self) -> Update:
        return Update.of(
            self.domain, self.domain.mint("/agent", ttl_seconds=self.ttl_seconds), federated=self.federated
        )

    def _servers_update(self) -> Update:
        svid = self.domain.mint("/billaged", names=SERVER_NAMES, ttl_seconds=self.ttl_seconds)
        return Update.of(self.domain, svid, federated=self.federated)

    def push(self) -> None:
        """New SVIDs for both sides, and what else has changed."""
        self._servers_api.push(self._servers_update())
        self.clients_api.push(self.clients_update())

    def renew(self, built: BillingClient) -> None:
        """The same, until both use it."""
        changes, shown = self._keeper.status().changes, len(self.server.leaves)
        self.push()
        wait_until(lambda: self._keeper.status().changes > changes, "the server has its new SVID")
        wait_until(lambda: bool(stop(built)) and len(self.server.leaves) > shown, "the client shows its new SVID")


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh() as built:
        yield built


def test_svids_and_cas_that_change_under_load_fail_no_call(mesh: Mesh) -> None:
    """An SVID a second, a CA every two, as long as the old CA is trusted until nobody shows it."""
    # Shorter than the test: what is old is no good any more.
    mesh.ttl_seconds = 3.0
    with client(mesh.server, mesh.tls) as built:
        built.wait_for_identity()
        mesh.renew(built)
        with Load(built) as load:
            for number in range(CHANGES):
                until = time.monotonic() + 1.0
                if number % 2:
                    mesh.domain.activate()
                else:
                    mesh.domain.retire()
                    mesh.domain.prepare()
                mesh.renew(built)
                wait_until(lambda until=until: time.monotonic() > until, "one change a second")  # type: ignore[misc]
            load.goes_on()
        print(f"{load.calls} calls, {len(mesh.server.leaves)} certificates shown")
        assert load.failures == []
        # At least: on a crowded machine a short-lived one is renewed once more in between.
        assert len(mesh.server.leaves) >= CHANGES + 1
        wait_until(lambda: sockets_to(mesh.server) == 1, "the old connections are closed")


def test_the_spiffe_agent_goes_away_and_comes_back(mesh: Mesh) -> None:
    with client(mesh.server, mesh.tls) as built:
        built.wait_for_identity()
        mesh.clients_api.go_away()
        with Load(built) as load:
            load.goes_on(200)
        assert load.failures == []
        mesh.clients_api.set(mesh.clients_update())
        mesh.clients_api.come_back()
        wait_until(built.has_news, "the agent is found again")
        stop(built)
        assert len(mesh.server.leaves) == 2


def test_without_an_agent_there_is_no_call_and_no_plaintext(tmp_path: Path) -> None:
    socket = tmp_path / "agent.sock"
    domain = TrustDomain()
    with billing_server() as server, client(server, SpiffeAgent(socket), 0.5) as built:
        began = time.monotonic()
        with pytest.raises(CallFailed) as caught:
            built.wait_for_identity()
        assert 0.5 <= time.monotonic() - began < 5
        assert (caught.value.code, caught.value.details) == (
            NO_IDENTITY,
            f"SPIFFE agent at {socket}: there is no such socket",
        )
        assert "Is the SPIFFE agent running, and does it have an entry" in caught.value.hint
        assert failure_of(built).code == NO_IDENTITY
        assert server.attempts == 0
        with FakeWorkloadApi(Update.of(domain), socket):
            wait_until(built.has_news, "the agent is found")
            assert failure_of(built).code == "UNAVAILABLE", "a server without TLS gets nothing"
        assert server.attempts == 0


def test_a_silent_agent_is_waited_for_as_long_as_the_timeout(mesh: Mesh) -> None:
    mesh.clients_api.hang()
    with client(mesh.server, mesh.tls, 0.5) as built:
        with pytest.raises(CallFailed, match=r"NO_IDENTITY: the SPIFFE agent has not answered yet"):
            built.wait_for_identity()
        mesh.clients_api.push(mesh.clients_update())
        wait_until(built.has_news, "the answer")
        built.wait_for_identity()
        stop(built)


def test_a_server_of_another_trust_domain_is_refused(mesh: Mesh) -> None:
    """Also where that domain is federated, and its CA signs a name of ours: one pool for all would take it."""
    other = TrustDomain("partner.example")
    mesh.federated = (other,)
    mesh.clients_api.push(mesh.clients_update())
    for spiffe_id in ("/billaged", "spiffe://example.org/billaged"):
        svid = other.mint(spiffe_id, names=SERVER_NAMES)
        with (
            billing_server(mutual_tls(svid.pair, mesh.domain.bundle_pem)) as server,
            client(server, mesh.tls) as built,
        ):
            built.wait_for_identity()
            failure = failure_of(built)
            assert failure.code == "UNAVAILABLE"
            assert "not signed by the CAs of the trust domain example.org" in failure.hint
            assert server.attempts == 0
    with (
        billing_server(mutual_tls(other.mint(names=SERVER_NAMES).pair, mesh.domain.bundle_pem)) as server,
        client(server, SpiffeAgent(mesh.clients_api.socket_path, trust_domain="partner.example")) as built,
    ):
        built.wait_for_identity()
        stop(built)


def test_trust_that_is_withdrawn_ends_the_open_connection(mesh: Mesh) -> None:
    other = TrustDomain("partner.example")
    mesh.federated = (other,)
    mesh.clients_api.push(mesh.clients_update())
    tls = SpiffeAgent(mesh.clients_api.socket_path, trust_domain="partner.example")
    credentials = mutual_tls(other.mint(names=SERVER_NAMES).pair, mesh.domain.bundle_pem)
    with billing_server(credentials) as server, client(server, tls, 0.5) as built:
        built.wait_for_identity()
        stop(built)
        mesh.federated = ()
        mesh.clients_api.push(mesh.clients_update())
        wait_until(built.has_news, "the bundle without it")
        failure = failure_of(built)
        assert failure.code == NO_IDENTITY
        assert failure.details == "the SPIFFE agent has no bundle of the trust domain partner.example"
        assert "--spiffe-trust-domain" in failure.hint
        assert not built.has_news(), "asked again, it is the same"
        wait_until(lambda: sockets_to(server) == 0, "the connection is closed")
        with pytest.raises(CallFailed, match=NO_IDENTITY):
            built.wait_for_identity()


def test_a_server_by_another_name_is_refused(mesh: Mesh) -> None:
    tls = SpiffeAgent(mesh.clients_api.socket_path, server_name="other")
    with client(mesh.server, tls) as built:
        built.wait_for_identity()
        assert "The server's certificate is not for other: " in failure_of(built).hint


# --- the commands ----------------------------------------------------------------

VM = "host-under-test"


@contextmanager
def agent(address: str, socket: Path, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    common = ["--interval", "50ms", "--vm-id", VM, "--address", address, "--spool-dir", str(folder / "spool")]
    process = billaged_process(
        ["agent", *common, "--spiffe-socket", str(socket), *arguments],
        folder / "agent.log",
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def spooled_bytes(folder: Path) -> int:
    """Also what waits apart."""
    return sum(path.stat().st_size for path in (folder / "spool").rglob("*.spool"))


def test_an_agent_meters_into_its_spool_until_it_has_an_identity_and_the_right_server(
    mesh: Mesh, tmp_path: Path
) -> None:
    log = tmp_path / "agent.log"
    mesh.clients_api.go_away()
    stranger = BillingServer()
    stranger.start(mutual_tls(TrustDomain("other.example").mint(names=SERVER_NAMES).pair, mesh.domain.bundle_pem))
    with agent(stranger.address, mesh.clients_api.socket_path, tmp_path, "--timeout", "2s") as process:
        wait_until(lambda: spooled_bytes(tmp_path) > 1_000, "samples on disk")
        wait_until(lambda: "NO_IDENTITY" in log.read_text(), "it says why")
        mesh.clients_api.come_back()
        wait_until(lambda: "trust domain example.org" in log.read_text(), "it tells the stranger apart")
        now = spooled_bytes(tmp_path)
        wait_until(lambda: spooled_bytes(tmp_path) > now + 300, "it meters meanwhile")
        assert stranger.attempts == 0
        # The right server takes the stranger's place.
        stranger.stop()
        mesh.server.stop()
        mesh.server.port = stranger.port
        mesh.start_server()
        wait_until(lambda: len(sample_times(mesh.server.taken, VM)) > 20, "what waited arrives")
        until = time.monotonic() + 3
        while time.monotonic() < until:
            mesh.push()
            before = len(mesh.server.taken)
            wait_until(lambda before=before: len(mesh.server.taken) > before + 5, "samples arrive")  # type: ignore[misc]
        refused_after = "usage waits" in log.read_text().partition(" is back; ")[2]
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
        assert time.monotonic() - asked < 2
    text = log.read_text()
    assert not refused_after, text
    assert "Traceback" not in text
    assert text.count("there is no such socket") == 2, "once by each who needs it"
    times = sample_times(mesh.server.taken, VM)
    assert times == sorted(set(times))
    assert spooled_bytes(tmp_path) == 0
    assert len(mesh.server.leaves) > 3


@pytest.mark.parametrize("broken", ["expired", "missing", "garbage"])
def test_an_agent_meters_into_its_spool_while_its_tls_files_cannot_be_used(
    files: TlsFolder, tmp_path: Path, broken: str
) -> None:
    log = tmp_path / "agent.log"
    if broken == "expired":
        files.write(files.authority.sign("client", names=("agent.test",), not_after=OLD))
    elif broken == "missing":
        files.cert.unlink()
    else:
        files.key.write_text("no key")
    with billing_server(files.server_credentials) as server:
        common = ["agent", "--vm-id", VM, "--address", server.address, "--spool-dir", str(tmp_path / "spool")]
        once = billaged_process([*common, *files.options, "--once"], tmp_path / "once.log")
        once.communicate(timeout=20)
        assert once.returncode == 2
        assert (tmp_path / "once.log").read_text().startswith("billaged: error: ")
        assert not (tmp_path / "spool").exists()
        process = billaged_process([*common, *files.options, "--interval", "50ms"], log)
        try:
            wait_until(lambda: spooled_bytes(tmp_path) > 1_000, "samples on disk")
            wait_until(lambda: "NO_IDENTITY" in log.read_text(), "it says why")
            assert server.attempts == 0
            files.write()
            wait_until(lambda: len(sample_times(server.taken, VM)) > 20, "what waited arrives")
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0, log.read_text()
        finally:
            process.kill()
            process.communicate()
    times = sample_times(server.taken, VM)
    assert times == sorted(set(times))
    assert spooled_bytes(tmp_path) == 0
    assert "Traceback" not in log.read_text()


def test_usage_that_is_not_allowed_waits_until_it_is(mesh: Mesh, tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    mesh.server.judge = lambda _: (grpc.StatusCode.PERMISSION_DENIED, "not allowed")
    with agent(mesh.server.address, mesh.clients_api.socket_path, tmp_path) as process:
        # While they are moved to where they wait, they are there twice.
        wait_until(lambda: spooled_bytes(tmp_path) > 3_000, "samples on disk")
        wait_until(lambda: "would have to allow this to spiffe://example.org/agent" in log.read_text(), "it is said")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, log.read_text()
    assert spooled_bytes(tmp_path) > 1_000
    assert not (tmp_path / "spool/refused.jsonl").exists()
    with agent(mesh.server.address, mesh.clients_api.socket_path, tmp_path, "--once") as process:
        assert process.wait(20) == 1, "it waits: that is not taken"
    mesh.server.judge = lambda _: None
    with agent(mesh.server.address, mesh.clients_api.socket_path, tmp_path, "--once") as process:
        assert process.wait(20) == 0, log.read_text()
    assert len(sample_times(mesh.server.taken, VM)) > 5
    assert spooled_bytes(tmp_path) == 0


def test_the_commands_that_end_wait_for_an_identity_and_say_what_to_do(mesh: Mesh, tmp_path: Path) -> None:
    socket = mesh.clients_api.socket_path
    mesh.clients_api.go_away()
    command = [sys.executable, "-m", "billaged", "send", "stopped", "--vm-id", "v", "--timeout", "500ms"]
    environment = {**os.environ, "BILLAGED_ADDRESS": mesh.server.address, "BILLAGED_SPIFFE_SOCKET": f"unix://{socket}"}
    sent = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert sent.returncode == 1
    assert sent.stderr.splitlines() == [
        f"billaged: warning: SPIFFE agent at {socket}: there is no such socket.",
        f"billaged: error: NO_IDENTITY: SPIFFE agent at {socket}: there is no such socket",
        "billaged: error: Is the SPIFFE agent running, and does it have an entry for this process?",
    ]
    with agent(mesh.server.address, socket, tmp_path, "--once", "--timeout", "500ms") as process:
        assert process.wait(20) == 1
    assert "the sample waits in" in (tmp_path / "agent.log").read_text()
    assert spooled_bytes(tmp_path) > 0
    # An agent that comes while they wait is in time.
    waiting = subprocess.Popen(
        [*command, "--timeout", "20s"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    mesh.clients_api.come_back()
    output, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, errors
    assert json.loads(output)["success"] is True
