"""A real daemon with its identity from a SPIFFE agent: rotation under load, a failing agent, callers that pretend."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.experimental.session_cache
import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from daemon_calls import call, until
from daemon_process import ROOT, DaemonProcess, environment, fails_to_start
from fake_workload_api import FakeWorkloadApi, Update
from free_ports import free_port
from grpc_health.v1 import health_pb2, health_pb2_grpc
from spiffe_material import Svid, TrustDomain
from tls_material import Pair

from billaged.wire.billing.v1 import billing_pb2 as pb

CODES = grpc.StatusCode
NAME = "localhost"
HEARTBEAT = pb.SendHeartbeatRequest(instance_id="host-1")
DEADLINE_SECONDS = 20.0
POLICY = """
[[allow]]
identity = ["spiffe://example.org/metald", "spiffe://partner.example/metald"]
roles = ["ingest"]

[[allow]]
identity = "@plaintext"
roles = ["read"]
"""


class Fleet:
    """A trust domain, its agent, and the daemon's settings."""

    def __init__(self, folder: Path, api: FakeWorkloadApi) -> None:
        self.domain = TrustDomain("example.org")
        self.partner = TrustDomain("partner.example")
        self.api = api
        policy = folder / "policy.toml"
        policy.write_text(POLICY)
        self.settings = {
            "TLS_MODE": "spiffe",
            "SPIFFE_SOCKET": str(api.socket_path),
            "POLICY_FILE": str(policy),
            "LOG_FORMAT": "json",
        }
        api.set(self.update())

    def update(self, **parts: Any) -> Update:
        return Update.of(self.domain, self.domain.mint("/billaged", names=(NAME,), **parts), federated=(self.partner,))

    @contextmanager
    def channel(
        self, daemon: DaemonProcess, shown: Svid | Pair | None, *options: tuple[str, Any], roots: bytes | None = None
    ) -> Iterator[grpc.Channel]:
        pair = shown.pair if isinstance(shown, Svid) else shown
        credentials = grpc.ssl_channel_credentials(
            roots or self.domain.bundle_pem, pair.key if pair else None, pair.cert if pair else None
        )
        chosen = [("grpc.ssl_target_name_override", NAME), ("grpc.use_local_subchannel_pool", 1), *options]
        with grpc.secure_channel(daemon.grpc_address, credentials, chosen) as channel:
            yield channel

    def code(self, daemon: DaemonProcess, shown: Svid | Pair | None, *options: tuple[str, Any]) -> grpc.StatusCode:
        """Of one heartbeat over a connection of its own."""
        with self.channel(daemon, shown, *options) as channel:
            return code_of(channel)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with FakeWorkloadApi() as api:
        yield Fleet(tmp_path, api)


def code_of(channel: grpc.Channel) -> grpc.StatusCode:
    try:
        call(channel, "SendHeartbeat", HEARTBEAT)
    except grpc.RpcError as error:
        status: Any = error
        return status.code()
    return CODES.OK


def changes(daemon: DaemonProcess) -> int:
    return int(daemon.stats()["security"]["identity_changes"])


# --- who is who ----------------------------------------------------------------------


def test_workloads_of_both_domains_are_let_in_and_nobody_else(fleet: Fleet, tmp_path: Path) -> None:
    domain, partner = fleet.domain, fleet.partner
    own_signer, partner_signer = domain.authority.current, partner.authority.current
    callers: dict[str, tuple[Svid | Pair | None, grpc.StatusCode]] = {
        "ours": (domain.mint("/metald"), CODES.OK),
        "ours, behind an intermediate": (domain.mint("/metald", intermediates=1), CODES.OK),
        "the partner's": (partner.mint("/metald"), CODES.OK),
        "one without a role": (domain.mint("/other"), CODES.PERMISSION_DENIED),
        "the partner's without a role": (partner.mint("/other"), CODES.PERMISSION_DENIED),
        # What TLS lets in, because its pool of roots is flat.
        "ours, forged by the partner's CA": (partner.mint("spiffe://example.org/metald"), CODES.UNAUTHENTICATED),
        "the partner's, forged by ours": (domain.mint("spiffe://partner.example/metald"), CODES.UNAUTHENTICATED),
        "two names": (domain.mint("/metald", more_uris=("spiffe://example.org/other",)), CODES.UNAUTHENTICATED),
        "no SPIFFE ID": (own_signer.sign("metald", names=("metald",)), CODES.UNAUTHENTICATED),
        "an ID without a path": (partner_signer.sign("x", uris=("spiffe://partner.example",)), CODES.UNAUTHENTICATED),
        "an unknown domain, our CA": (domain.mint("spiffe://unknown.example/metald"), CODES.UNAUTHENTICATED),
        # What TLS itself refuses.
        "an unknown domain": (TrustDomain("unknown.example").mint("/metald"), CODES.UNAVAILABLE),
        "our domain of another world": (TrustDomain("example.org").mint("/metald"), CODES.UNAVAILABLE),
        "expired": (domain.mint("/metald", ttl_seconds=-60), CODES.UNAVAILABLE),
        "not yet": (
            own_signer.sign(
                "m", uris=("spiffe://example.org/metald",), not_before=datetime.now(UTC) + timedelta(hours=1)
            ),
            CODES.UNAVAILABLE,
        ),
        "no certificate": (None, CODES.UNAVAILABLE),
    }
    with DaemonProcess(tmp_path / "var", fleet.settings) as daemon:
        seen = {who: fleet.code(daemon, shown) for who, (shown, _) in callers.items()}
        assert seen == {who: code for who, (_, code) in callers.items()}
        with grpc.insecure_channel(daemon.grpc_address) as channel:
            assert code_of(channel) is CODES.UNAVAILABLE, "never plaintext"
        assert daemon.stop() == 0
        assert daemon.other_output == ""


def test_an_expired_one_is_out_on_its_open_connection_and_by_resumption(fleet: Fleet, tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "var", fleet.settings) as daemon:
        svid = fleet.domain.mint("/metald", ttl_seconds=3)
        sessions = ("grpc.ssl_session_cache", grpc.experimental.session_cache.ssl_session_cache_lru(4))
        with fleet.channel(daemon, svid, sessions) as channel:
            assert code_of(channel) is CODES.OK
            seen = until(lambda: code if (code := code_of(channel)) is not CODES.OK else None, "its end")
            assert seen is CODES.UNAUTHENTICATED
        # The ticket of that connection brings it back into TLS, which looks at no certificate then.
        assert fleet.code(daemon, svid, sessions) is CODES.UNAUTHENTICATED
        assert fleet.code(daemon, svid) is CODES.UNAVAILABLE, "without the ticket TLS refuses it"
        assert daemon.stats()["security"]["denied"]["unauthenticated"] >= 2


def test_a_domain_that_is_no_longer_federated_is_out_at_once(fleet: Fleet, tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "var", fleet.settings) as daemon:
        with fleet.channel(daemon, fleet.partner.mint("/metald")) as channel:
            assert code_of(channel) is CODES.OK
            fleet.api.push(Update.of(fleet.domain, fleet.domain.mint("/billaged", names=(NAME,))))
            until(lambda: changes(daemon) == 2, "the new bundles")
            assert code_of(channel) is CODES.UNAUTHENTICATED, "on the connection that was open"
        assert fleet.code(daemon, fleet.domain.mint("/metald")) is CODES.OK


# --- rotation ------------------------------------------------------------------------


class Caller(threading.Thread):
    """Sends heartbeats for as long as it is let, with an SVID of the moment; notes what was not OK."""

    def __init__(self, fleet: Fleet, daemon: DaemonProcess, lock: threading.Lock, *, keeps_connection: bool) -> None:
        super().__init__(daemon=True)
        self._fleet, self._daemon, self._lock = fleet, daemon, lock
        self._keeps_connection = keeps_connection
        self.ending = threading.Event()
        self.codes: Counter[grpc.StatusCode] = Counter()
        self.connections = 0

    def run(self) -> None:
        while not self.ending.is_set():
            with self._lock:
                svid, roots = self._fleet.domain.mint("/metald", ttl_seconds=60), self._fleet.domain.bundle_pem
            self.connections += 1
            renew = time.monotonic() + 1.0
            with self._fleet.channel(self._daemon, svid, roots=roots) as channel:
                while not self.ending.is_set():
                    self.codes[code_of(channel)] += 1
                    if not self._keeps_connection or time.monotonic() > renew:
                        break


@pytest.mark.slow
def test_rotation_every_second_fails_no_call(fleet: Fleet, tmp_path: Path) -> None:
    """For 20 s: the daemon's SVID each second, the CA every two with its overlap, and clients that do their part."""
    domain = fleet.domain
    lock = threading.Lock()  # a CA is not rotated while somebody mints
    with DaemonProcess(tmp_path / "var", fleet.settings) as daemon:
        callers = [Caller(fleet, daemon, lock, keeps_connection=number % 2 == 0) for number in range(4)]
        for caller in callers:
            caller.start()
        pace = threading.Event()
        steps = itertools.cycle((domain.prepare, domain.activate, None, domain.retire))
        for second in range(20):
            # Trusted a second before it signs, and a second after it last did: as SPIRE does it.
            step = next(steps)
            with lock:
                if step is not None:
                    step()
                update = fleet.update(ttl_seconds=30)
            fleet.api.push(update)
            until(lambda second=second: changes(daemon) >= second + 2, f"rotation {second}")  # type: ignore[misc]
            pace.wait(1.0)
        for caller in callers:
            caller.ending.set()
        for caller in callers:
            caller.join(DEADLINE_SECONDS)
        codes = sum((caller.codes for caller in callers), Counter[grpc.StatusCode]())
        connections = sum(caller.connections for caller in callers)
        assert codes == {CODES.OK: codes.total()}
        assert connections >= 200, f"only {connections} connections, {codes.total()} calls"
        assert daemon.stop() == 0
        assert not [line for line in daemon.log if line["level"] == "error"]


# --- an agent that fails -------------------------------------------------------------


def test_an_agent_that_goes_away_and_comes_back(fleet: Fleet, tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "var", fleet.settings) as daemon:
        fleet.api.go_away()
        line = daemon.wait_for(lambda line: "SPIFFE agent" in line["message"], "that it is gone")
        assert "stays in use" in line["message"]
        assert fleet.code(daemon, fleet.domain.mint("/metald")) is CODES.OK, "goes on with what it has"
        fleet.api.set(fleet.update())
        fleet.api.come_back()
        until(lambda: changes(daemon) == 2, "the identity of the agent that came back")
        assert daemon.stats()["security"]["identity_problem"] is None
        assert fleet.code(daemon, fleet.domain.mint("/metald")) is CODES.OK


BAD = {
    "garbage": lambda fleet: fleet.update().with_garbage(),
    "no SVIDs": lambda fleet: fleet.update().without_svids(),
    "another's key": lambda fleet: fleet.update().with_anothers_key(),
    "expired": lambda fleet: fleet.update(ttl_seconds=-5),
    "signed by nobody we trust": lambda fleet: fleet.update().with_first(bundle=TrustDomain("example.org").bundle_der),
}


def test_a_bad_update_changes_nothing_and_the_next_good_one_is_used(fleet: Fleet, tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "var", fleet.settings) as daemon:
        for count, (what, bad) in enumerate(BAD.items(), start=1):
            refusals = daemon.stats()["security"]["identity_refusals"]
            fleet.api.push(bad(fleet))
            until(
                lambda refusals=refusals: daemon.stats()["security"]["identity_refusals"] > refusals,  # type: ignore[misc]
                f"{what}: refused",
            )
            assert changes(daemon) == count, what
            assert fleet.code(daemon, fleet.domain.mint("/metald")) is CODES.OK, what
            fleet.api.push(fleet.update())
            until(lambda count=count: changes(daemon) == count + 1, f"after {what}: the good one")  # type: ignore[misc]
        assert fleet.code(daemon, fleet.domain.mint("/metald")) is CODES.OK
        assert daemon.stop() == 0
        assert daemon.other_output == ""


def unreadable_for_tls(domain: TrustDomain) -> bytes:
    """A CA that says it is of X.509's first version and has extensions: one library reads it, gRPC's does not."""
    [root] = [root.certificate.public_bytes(Encoding.DER) for root in domain.authority.roots]
    version_3, version_1 = bytes.fromhex("a003020102"), bytes.fromhex("a003020100")
    assert root.count(version_3) == 1
    return root.replace(version_3, version_1)


@pytest.mark.parametrize("how", ["empty", "garbage", "unreadable for TLS", "our own is empty"])
def test_a_partners_broken_bundle_does_not_stop_our_renewal(fleet: Fleet, tmp_path: Path, how: str) -> None:
    """Who federates with us chooses what is in its bundle; our own certificate is renewed all the same."""
    bundle = {
        "empty": b"",
        "garbage": b"this is no certificate",
        "unreadable for TLS": unreadable_for_tls(fleet.partner),
    }
    started = datetime.now(UTC)
    fleet.api.set(fleet.update(ttl_seconds=8))
    with DaemonProcess(tmp_path / "var", fleet.settings) as daemon:
        for count in (2, 3):
            good = fleet.update(ttl_seconds=60)
            if how in bundle:
                bad = replace(good, federated={"spiffe://broken.example": bundle[how]})
            else:
                bad = good.with_first(bundle=b"")
            fleet.api.push(bad)
            until(lambda count=count: changes(daemon) >= count, "our certificate is renewed")  # type: ignore[misc]
        status = daemon.stats()["security"]
        assert status["identity_problem"] is not None, "and it is said"
        assert status["certificate_expires_in_seconds"] > 30
        # A new connection is shown the new certificate: the first has ended by then.
        until(lambda: datetime.now(UTC) > started + timedelta(seconds=9), "the end of the first one")
        assert fleet.code(daemon, fleet.domain.mint("/metald")) is CODES.OK
        fleet.api.push(fleet.update())
        until(lambda: daemon.stats()["security"]["identity_problem"] is None, "a good update")
        assert fleet.code(daemon, fleet.partner.mint("/metald")) is CODES.OK


def test_the_end_of_an_svid_that_nobody_renews(fleet: Fleet, tmp_path: Path) -> None:
    fleet.api.set(fleet.update(ttl_seconds=6))
    with DaemonProcess(tmp_path / "var", fleet.settings) as daemon:
        fleet.api.go_away()
        daemon.wait_for(lambda line: "has not been renewed" in line["message"], "a warning before the end")
        with fleet.channel(daemon, fleet.domain.mint("/metald")) as channel:
            until(lambda: code_of(channel) is CODES.UNAVAILABLE, "the end")
            line = daemon.wait_for(lambda line: line["level"] == "error", "an error")
            assert "has expired" in line["message"]
            until(lambda: daemon.get("/health").status_code == 503, "health")
            fleet.api.set(fleet.update())
            fleet.api.come_back()
            until(lambda: code_of(channel) is CODES.OK, "the identity is back, on the open connection")
            health = health_pb2_grpc.HealthStub(channel)
            until(
                lambda: health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING,
                "and health",
            )


# --- the start -----------------------------------------------------------------------


def test_a_start_waits_for_the_agent_and_health_says_so(fleet: Fleet, tmp_path: Path) -> None:
    fleet.api.go_away()
    port = free_port()
    seen: list[tuple[int, str]] = []

    def come_back() -> None:
        url = f"http://127.0.0.1:{port}/health"

        def asked() -> bool:
            try:
                answer = httpx.get(url, timeout=1)
            except httpx.TransportError:
                return False
            seen.append((answer.status_code, answer.json()["status"]))
            return True

        until(asked, "health while waiting")
        fleet.api.come_back()

    helper = threading.Thread(target=come_back)
    helper.start()
    with DaemonProcess(tmp_path / "var", {**fleet.settings, "HTTP_PORT": str(port)}) as daemon:
        helper.join(DEADLINE_SECONDS)
        assert seen == [(503, "starting")]
        daemon.wait_for(lambda line: line["message"] == "waiting for an identity", "that it waits")
        assert daemon.get("/health").status_code == 200
        assert fleet.code(daemon, fleet.domain.mint("/metald")) is CODES.OK


@pytest.mark.parametrize("how", ["away", "deaf", "no entry"])
def test_a_start_gives_up_in_the_end(fleet: Fleet, tmp_path: Path, how: str) -> None:
    if how == "no entry":
        fleet.api.refuse()
    elif how == "away":
        fleet.api.go_away()
    else:
        fleet.api.go_deaf()
    ended = fails_to_start(tmp_path / "var", **fleet.settings, SPIFFE_WAIT="1s")
    # Not 2, with which the service manager would never try again.
    assert ended.exit_code == 1
    assert "no identity within 1s" in ended.stderr
    assert "serving" not in ended.stdout and "Traceback" not in ended.stdout + ended.stderr
    if how == "no entry":
        assert "PERMISSION_DENIED" in ended.stderr


def begin(fleet: Fleet, tmp_path: Path) -> subprocess.Popen[str]:
    """A daemon that is not waited for."""
    return subprocess.Popen(
        [sys.executable, "-m", "billaged", "serve"],
        env=environment(tmp_path / "var", fleet.settings),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_stop_while_waiting_is_a_stop(fleet: Fleet, tmp_path: Path) -> None:
    fleet.api.go_away()
    process = begin(fleet, tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if "waiting for an identity" in line:
            break
    began = time.monotonic()
    process.terminate()
    output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, output + errors
    assert errors == ""
    assert time.monotonic() - began < 5
    assert (tmp_path / "var").exists()


def test_a_sighup_while_starting_ends_nothing(fleet: Fleet, tmp_path: Path) -> None:
    fleet.api.go_away()
    process = begin(fleet, tmp_path)
    try:
        assert process.stdout is not None
        # Its first line comes before it listens to signals.
        process.stdout.readline()
        for _ in range(20):
            process.send_signal(signal.SIGHUP)
        fleet.api.come_back()
        assert any('"serving"' in line for line in process.stdout)
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
