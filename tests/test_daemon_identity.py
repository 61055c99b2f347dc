"""A real daemon with mutual TLS from files and a policy: who may do what, and what happens when that changes."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import pytest
from daemon_calls import SECOND, batch, call, until
from daemon_process import DaemonProcess
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tls_material import Authority, Pair, RotatingAuthority

from billaged.intake.sqlite import FILE_NAME, SqliteJournal
from billaged.wire.billing.v1 import billing_pb2 as pb
from billaged.wire.billing.v1 import usage_stream_pb2 as stream_pb

CODES = grpc.StatusCode
WATCH = "/billing.v1.UsageStreamService/WatchSummaries"
DEADLINE_SECONDS = 20.0

HEARTBEAT = pb.SendHeartbeatRequest(instance_id="host-1")

POLICY = """
[[allow]]
identity = "spiffe://example.org/metald/*"
roles = ["ingest"]

[[allow]]
identity = "spiffe://example.org/acme"
roles = ["ingest", "read"]
customers = ["acme"]

[[allow]]
identity = "spiffe://example.org/fleet"
roles = ["ingest"]
vms = ["fleet-*"]
instances = ["host-*"]

[[allow]]
identity = "reader.example.org"
roles = ["read"]

[[allow]]
identity = "spiffe://example.org/operator"
roles = ["admin"]
"""

IDENTITIES: dict[str, dict[str, Any]] = {
    "metald": {"uris": ("spiffe://example.org/metald/host-1",)},
    "acme": {"uris": ("spiffe://example.org/acme",)},
    "fleet": {"uris": ("spiffe://example.org/fleet",)},
    "reader": {"names": ("reader.example.org",)},
    "operator": {"uris": ("spiffe://example.org/operator",)},
    "unlisted": {"uris": ("spiffe://example.org/metald/host-1/admin",)},
    "two names": {"uris": ("spiffe://example.org/operator", "spiffe://example.org/metald/host-1")},
}


class Tls:
    """A daemon's files, and what its clients need."""

    def __init__(self, folder: Path, policy: str | None = POLICY, authority: Authority | None = None) -> None:
        self.folder = folder
        self.authority = authority or Authority()
        self.cert, self.key = self.authority.sign("billaged", names=("localhost", "127.0.0.1")).write(folder, "server")
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self.authority.pem)
        self.policy = folder / "policy.toml"
        self.settings = {
            "TLS_MODE": "file",
            "TLS_CERT_FILE": str(self.cert),
            "TLS_KEY_FILE": str(self.key),
            "TLS_CA_FILE": str(self.ca),
            "TLS_RELOAD_INTERVAL": "100ms",
        }
        if policy is not None:
            self.policy.write_text(policy)
            self.settings["POLICY_FILE"] = str(self.policy)

    @contextmanager
    def channel(self, daemon: DaemonProcess, pair: Pair | None, roots: bytes | None = None) -> Iterator[grpc.Channel]:
        credentials = grpc.ssl_channel_credentials(
            roots or self.authority.pem, pair.key if pair else None, pair.cert if pair else None
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(daemon.grpc_address, credentials, options) as channel:
            yield channel


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def daemon(tls: Tls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """VM acme-1 belongs to acme, fleet-1 to globex, both running."""
    settings = {**tls.settings, "AGGREGATION_INTERVAL": "1s", "SUMMARY_LOG": "off"}
    with DaemonProcess(tmp_path_factory.mktemp("daemon") / "var", settings) as process:
        with tls.channel(process, tls.authority.sign("operator", **IDENTITIES["operator"])) as channel:
            for vm_id, customer_id in (("acme-1", "acme"), ("fleet-1", "globex")):
                started = pb.NotifyVmStartedRequest(vm_id=vm_id, customer_id=customer_id, start_time=time.time_ns())
                call(channel, "NotifyVmStarted", started)
        with tls.channel(process, tls.authority.sign("acme", **IDENTITIES["acme"])) as channel:
            # Whose VM it is can only be told once its start is folded: so this waits for it.
            stopped = pb.NotifyVmStoppedRequest(vm_id="fleet-1", stop_time=time.time_ns())
            assert code_of(channel, "NotifyVmStopped", stopped) is CODES.PERMISSION_DENIED
        yield process


@pytest.fixture(scope="module")
def pairs(tls: Tls) -> Mapping[str, Pair]:
    return {who: tls.authority.sign(who, **names) for who, names in IDENTITIES.items()}


class Case(NamedTuple):
    """What is asked, and the only ones who may."""

    what: str
    method: str
    request: Message
    allowed: set[str]


def _cases() -> list[Case]:
    def metrics(vm_id: str, customer_id: str) -> Message:
        return batch(vm_id, time.time_ns() - SECOND, customer_id=customer_id)

    def started(vm_id: str, customer_id: str) -> Message:
        return pb.NotifyVmStartedRequest(vm_id=vm_id, customer_id=customer_id, start_time=time.time_ns() - SECOND)

    def stopped(vm_id: str) -> Message:
        # Before its start: contradicted, recorded, and the session goes on for the next one who asks.
        return pb.NotifyVmStoppedRequest(vm_id=vm_id, stop_time=time.time_ns() - 3_600 * SECOND)

    def gap(vm_id: str) -> Message:
        now = time.time_ns()
        return pb.NotifyPossibleGapRequest(vm_id=vm_id, last_sent=now - 2 * SECOND, resume_time=now - SECOND)

    def heartbeat(instance_id: str, *vm_ids: str) -> Message:
        return pb.SendHeartbeatRequest(instance_id=instance_id, active_vms=vm_ids)

    everywhere = {"metald", "operator"}
    return [
        Case("metrics of acme", "SendMetricsBatch", metrics("acme-1", "acme"), everywhere | {"acme"}),
        Case("metrics of globex", "SendMetricsBatch", metrics("fleet-1", "globex"), everywhere | {"fleet"}),
        Case("metrics of a new VM of acme", "SendMetricsBatch", metrics("acme-2", "acme"), everywhere | {"acme"}),
        Case("metrics, both at once", "SendMetricsBatch", metrics("fleet-2", "acme"), everywhere | {"acme", "fleet"}),
        Case(
            "an empty batch of acme",
            "SendMetricsBatch",
            pb.SendMetricsBatchRequest(vm_id="a", customer_id="acme"),
            everywhere | {"acme"},
        ),
        Case("a start for acme", "NotifyVmStarted", started("acme-3", "acme"), everywhere | {"acme"}),
        Case("a start for initech", "NotifyVmStarted", started("vm-9", "initech"), everywhere),
        Case("a stop of acme's", "NotifyVmStopped", stopped("acme-1"), everywhere | {"acme"}),
        Case("a stop of globex's", "NotifyVmStopped", stopped("fleet-1"), everywhere | {"fleet"}),
        Case("a stop of nobody's", "NotifyVmStopped", stopped("unheard-of"), everywhere),
        Case("a gap of acme's", "NotifyPossibleGap", gap("acme-1"), everywhere | {"acme"}),
        Case("a gap of globex's", "NotifyPossibleGap", gap("fleet-1"), everywhere | {"fleet"}),
        Case("a heartbeat with acme's", "SendHeartbeat", heartbeat("host-1", "acme-1"), everywhere | {"acme"}),
        Case("a heartbeat with the fleet's", "SendHeartbeat", heartbeat("host-1", "fleet-1"), everywhere | {"fleet"}),
        Case("a heartbeat with both", "SendHeartbeat", heartbeat("host-1", "fleet-1", "acme-1"), everywhere),
        Case("another instance's heartbeat", "SendHeartbeat", heartbeat("router-1", "fleet-1"), everywhere),
        Case("an empty heartbeat", "SendHeartbeat", heartbeat("host-1"), everywhere | {"acme", "fleet"}),
    ]


def code_of(channel: grpc.Channel, method: str, request: Message) -> grpc.StatusCode:
    try:
        call(channel, method, request)
    except grpc.RpcError as error:
        status: Any = error
        if status.code() in (CODES.PERMISSION_DENIED, CODES.UNAUTHENTICATED):
            # Neither who may, nor whose it is.
            for word in ("acme", "globex", "rule", "policy", "grant"):
                assert word not in status.details()
        return status.code()
    return CODES.OK


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.what)
def test_the_whole_matrix(daemon: DaemonProcess, tls: Tls, pairs: Mapping[str, Pair], case: Case) -> None:
    """Every identity asks it; those who may are answered, all others denied."""
    seen = {}
    for who, pair in pairs.items():
        with tls.channel(daemon, pair) as channel:
            seen[who] = code_of(channel, case.method, case.request)
    expected = {who: CODES.OK if who in case.allowed else CODES.PERMISSION_DENIED for who in pairs}
    expected["two names"] = CODES.UNAUTHENTICATED
    assert seen == expected


@pytest.mark.parametrize(
    ("filters", "allowed"),
    [
        ({}, {"acme", "reader", "operator"}),
        ({"customer_ids": ["acme"]}, {"acme", "reader", "operator"}),
        ({"customer_ids": ["globex"]}, {"reader", "operator"}),
        ({"customer_ids": ["acme", "globex"]}, {"reader", "operator"}),
    ],
    ids=["all", "acme", "globex", "both"],
)
def test_who_may_watch(
    daemon: DaemonProcess, tls: Tls, pairs: Mapping[str, Pair], filters: dict[str, Any], allowed: set[str]
) -> None:
    seen = {}
    for who, pair in pairs.items():
        with tls.channel(daemon, pair) as channel:
            rpc: Any = channel.unary_stream(WATCH, None, stream_pb.UsageSummary.FromString)
            # Who is let in hears nothing of an end, until its own patience does.
            with pytest.raises(grpc.RpcError) as caught:
                list(rpc(stream_pb.WatchSummariesRequest(**filters).SerializeToString(), timeout=1.0))
            status: Any = caught.value
            seen[who] = status.code()
    expected = {who: CODES.DEADLINE_EXCEEDED if who in allowed else CODES.PERMISSION_DENIED for who in pairs}
    expected["two names"] = CODES.UNAUTHENTICATED
    assert seen == expected


def test_a_watcher_of_one_customer_sees_no_other(daemon: DaemonProcess, tls: Tls, pairs: Mapping[str, Pair]) -> None:
    with tls.channel(daemon, pairs["acme"]) as limited, tls.channel(daemon, pairs["operator"]) as free:
        rpcs: list[Any] = [
            channel.unary_stream(WATCH, None, stream_pb.UsageSummary.FromString) for channel in (limited, free)
        ]
        watches = [rpc(b"", timeout=DEADLINE_SECONDS) for rpc in rpcs]
        for watch in watches:
            watch.initial_metadata()
        now = time.time_ns()
        for vm_id, customer_id in (("fleet-1", "globex"), ("acme-1", "acme")):
            call(free, "SendMetricsBatch", batch(vm_id, now - SECOND // 2, now - SECOND // 4, customer_id=customer_id))
        seen_by_all: set[str] = set()
        while seen_by_all < {"acme", "globex"}:
            seen_by_all.add(next(watches[1]).customer_id)
        assert next(watches[0]).customer_id == "acme"
        for watch in watches:
            watch.cancel()


def test_health_is_open_to_all_with_a_certificate_and_reflection_to_those_with_a_role(
    daemon: DaemonProcess, tls: Tls, pairs: Mapping[str, Pair]
) -> None:
    reflected = {}
    for who, pair in pairs.items():
        with tls.channel(daemon, pair) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS
            )
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            try:
                [answer] = stub.ServerReflectionInfo(iter([request]), timeout=DEADLINE_SECONDS)
                reflected[who] = CODES.OK if answer.list_services_response.service else None
            except grpc.RpcError as error:
                status: Any = error
                reflected[who] = status.code()
    expected = dict.fromkeys(IDENTITIES, CODES.OK) | {
        "unlisted": CODES.PERMISSION_DENIED,
        "two names": CODES.UNAUTHENTICATED,
    }
    assert reflected == expected


def test_no_certificate_no_connection(daemon: DaemonProcess, tls: Tls) -> None:
    expired = tls.authority.sign("metald", not_after=datetime.now(UTC) - timedelta(days=1), **IDENTITIES["metald"])
    for pair in (None, Authority().sign("metald", **IDENTITIES["metald"]), expired):
        with tls.channel(daemon, pair) as channel:
            assert code_of(channel, "SendHeartbeat", pb.SendHeartbeatRequest(instance_id="host-1")) is CODES.UNAVAILABLE
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        assert code_of(channel, "SendHeartbeat", pb.SendHeartbeatRequest(instance_id="host-1")) is CODES.UNAVAILABLE


def test_http_on_loopback_is_nobody_in_particular(daemon: DaemonProcess) -> None:
    """Plaintext beside mTLS: the policy has not a word for @plaintext, so it may ask for health only."""
    assert daemon.get("/health").status_code == 200
    assert daemon.get("/stats").status_code == 403
    answer = daemon.post("SendHeartbeat", {"instanceId": "host-1"})
    assert (answer.status_code, answer.json()) == (403, {"code": "permission_denied", "message": "not allowed"})


def test_a_denial_is_one_line_of_the_audit_log(daemon: DaemonProcess, tls: Tls, pairs: Mapping[str, Pair]) -> None:
    with tls.channel(daemon, pairs["acme"]) as channel:
        code_of(channel, "NotifyVmStarted", pb.NotifyVmStartedRequest(vm_id="stolen-1", customer_id="initech"))
    line = daemon.wait_for(
        lambda line: line["logger"] == "billaged.audit" and "stolen-1" in str(line.get("reason")), "a denial"
    )
    assert line["message"] == "request denied"
    assert (line["outcome"], line["identity"]) == ("forbidden", "spiffe://example.org/acme")
    assert line["method"] == "NotifyVmStarted"
    assert "initech" in line["reason"]
    assert line["remote"].startswith("ipv4:127.0.0.1:")
    with tls.channel(daemon, pairs["two names"]) as channel:
        code_of(channel, "SendHeartbeat", HEARTBEAT)
    ambiguous = daemon.wait_for(lambda line: line.get("outcome") == "unauthenticated", "the one with two names")
    assert "2 URI names" in ambiguous["reason"]


# --- what changes while it runs ----------------------------------------------------


def test_the_journal_keeps_who_sent_each_row_and_no_row_of_who_may_not(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    with DaemonProcess(tmp_path / "var", tls.settings) as daemon:
        for who in ("metald", "operator", "unlisted", "reader"):
            with tls.channel(daemon, tls.authority.sign(who, **IDENTITIES[who])) as channel:
                code_of(channel, "SendHeartbeat", HEARTBEAT)
        assert daemon.stop() == 0
    journal = SqliteJournal(tmp_path / "var" / FILE_NAME)
    try:
        callers = [row.caller for rows in journal.read(0) for row in rows if row.caller]
    finally:
        journal.close()
    assert callers == ["spiffe://example.org/metald/host-1", "spiffe://example.org/operator"]


def test_without_a_policy_all_is_denied_and_the_log_has_one_to_begin_with(tmp_path: Path) -> None:
    tls = Tls(tmp_path, policy=None)
    with DaemonProcess(tmp_path / "var", tls.settings) as daemon:
        line = daemon.wait_for(lambda line: "[[allow]]" in line["message"], "a policy to begin with")
        assert "UNKEY_BILLAGED_POLICY_FILE" in line["message"]
        with tls.channel(daemon, tls.authority.sign("operator", **IDENTITIES["operator"])) as channel:
            assert code_of(channel, "SendHeartbeat", HEARTBEAT) is CODES.PERMISSION_DENIED
        assert daemon.get("/stats").status_code == 403
        assert daemon.get("/health").status_code == 200


def test_sighup_reads_the_policy_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    tls = Tls(tmp_path, policy="allow = []\n")
    with DaemonProcess(tmp_path / "var", tls.settings) as daemon:
        with tls.channel(daemon, tls.authority.sign("metald", **IDENTITIES["metald"])) as channel:
            assert code_of(channel, "SendHeartbeat", HEARTBEAT) is CODES.PERMISSION_DENIED
            tls.policy.write_text(POLICY)
            daemon.send_signal(signal.SIGHUP)
            daemon.wait_for(lambda line: line["message"] == "policy in use", "the new policy")
            assert code_of(channel, "SendHeartbeat", HEARTBEAT) is CODES.OK, "on the same connection"
            tls.policy.write_text(POLICY.replace("roles", "rolls"))
            daemon.send_signal(signal.SIGHUP)
            line = daemon.wait_for(lambda line: "stays as it was" in line["message"], "the refusal")
            assert line["level"] == "error" and "rolls" in line["message"]
            assert code_of(channel, "SendHeartbeat", HEARTBEAT) is CODES.OK
        assert daemon.stop() == 0


def test_a_watcher_whose_role_is_taken_away_is_shown_nothing_more(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    settings = {**tls.settings, "AGGREGATION_INTERVAL": "1s"}
    with DaemonProcess(tmp_path / "var", settings) as daemon:
        operator, reader = (tls.authority.sign(who, **IDENTITIES[who]) for who in ("operator", "reader"))
        with tls.channel(daemon, operator) as sending, tls.channel(daemon, reader) as watching:
            rpc: Any = watching.unary_stream(WATCH, None, stream_pb.UsageSummary.FromString)
            watch = rpc(b"", timeout=DEADLINE_SECONDS)
            watch.initial_metadata()
            now = time.time_ns()
            call(sending, "SendMetricsBatch", batch("vm-1", now - 2 * SECOND, now - SECOND))
            assert next(watch).vm_id == "vm-1"
            tls.policy.write_text(POLICY.replace("reader.example.org", "nobody.example.org"))
            daemon.send_signal(signal.SIGHUP)
            daemon.wait_for(lambda line: line["message"] == "policy in use", "the new policy")
            call(sending, "SendMetricsBatch", batch("vm-1", time.time_ns()))
            with pytest.raises(grpc.RpcError) as caught:
                for _ in watch:
                    pass
            status: Any = caught.value
            assert status.code() is CODES.PERMISSION_DENIED


def test_a_client_that_expires_on_an_open_connection_is_let_in_no_more(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    with DaemonProcess(tmp_path / "var", tls.settings) as daemon:
        ends = datetime.now(UTC) + timedelta(seconds=4)
        pair = tls.authority.sign("metald", not_after=ends, **IDENTITIES["metald"])
        with tls.channel(daemon, pair) as channel:
            assert code_of(channel, "SendHeartbeat", HEARTBEAT) is CODES.OK
            code = until(
                lambda: code if (code := code_of(channel, "SendHeartbeat", HEARTBEAT)) is not CODES.OK else None,
                "a refusal",
            )
            assert code is CODES.UNAUTHENTICATED
            assert datetime.now(UTC) >= ends - timedelta(seconds=1)
        line = daemon.wait_for(lambda line: line.get("outcome") == "unauthenticated", "the audit line")
        assert "has expired" in line["reason"]


def test_new_certificates_and_cas_come_in_without_a_failed_call(tmp_path: Path) -> None:
    """Clients with certificates of the old and of the new CA, while the files change five times."""
    turning = RotatingAuthority()
    tls = Tls(tmp_path, authority=turning.current)
    with DaemonProcess(tmp_path / "var", tls.settings) as daemon:
        changes = 1
        failures: list[str] = []
        calls = 0
        for _ in range(5):
            old = turning.current.sign("metald", **IDENTITIES["metald"])
            turning.rotate()
            new = turning.current.sign("metald", **IDENTITIES["metald"])
            server = turning.current.sign("billaged", names=("localhost", "127.0.0.1"))
            for path, content in ((tls.key, server.key), (tls.cert, server.cert), (tls.ca, turning.pem)):
                fresh = path.with_suffix(".new")
                fresh.write_bytes(content)
                fresh.replace(path)
            changes += 1
            deadline = time.monotonic() + DEADLINE_SECONDS
            # Each with a connection of its own, all the while.
            while time.monotonic() < deadline:
                for pair in (old,) if _changes(daemon) < changes else (old, new):
                    with tls.channel(daemon, pair, turning.pem) as channel:
                        code = code_of(channel, "SendHeartbeat", HEARTBEAT)
                        calls += 1
                        if code is not CODES.OK:
                            failures.append(f"{code} after {calls} calls, {changes} changes")
                if _changes(daemon) >= changes:
                    break
            turning.retire()
        assert failures == []
        assert calls >= 10
        # What the last file took out is out, at the next change of the CA file.
        first = turning.current.sign("metald", **IDENTITIES["metald"])
        turning.rotate()
        turning.retire()
        tls.ca.write_bytes(turning.pem)
        with tls.channel(daemon, first, turning.pem + tls.authority.pem) as channel:
            until(lambda: code_of(channel, "SendHeartbeat", HEARTBEAT) is not CODES.OK, "the old CA's client is out")
        assert daemon.stop() == 0


def _changes(daemon: DaemonProcess) -> int:
    """How often an identity came into use, as the log has it."""
    return sum(line["message"] in ("identity in use", "identity renewed") for line in daemon.log)


def test_files_that_go_bad_are_said_and_change_nothing(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    with DaemonProcess(tmp_path / "var", tls.settings) as daemon:
        tls.cert.write_bytes(tls.cert.read_bytes()[:100])
        daemon.wait_for(lambda line: "UNKEY_BILLAGED_TLS_CERT_FILE" in line["message"], "a warning")
        with tls.channel(daemon, tls.authority.sign("metald", **IDENTITIES["metald"])) as channel:
            assert code_of(channel, "SendHeartbeat", HEARTBEAT) is CODES.OK
        assert daemon.stop() == 0


def test_the_daemons_own_certificate_ends_and_nothing_is_served_any_more(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    ends = datetime.now(UTC) + timedelta(seconds=8)
    server = tls.authority.sign("billaged", names=("localhost", "127.0.0.1"), not_after=ends)
    server.write(tmp_path, "server")
    with DaemonProcess(tmp_path / "var", tls.settings) as daemon:
        daemon.wait_for(lambda line: "has not been renewed" in line["message"], "a warning before the end")
        with tls.channel(daemon, tls.authority.sign("metald", **IDENTITIES["metald"])) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert code_of(channel, "SendHeartbeat", HEARTBEAT) is CODES.OK
            until(lambda: code_of(channel, "SendHeartbeat", HEARTBEAT) is CODES.UNAVAILABLE, "the end")
            until(
                lambda: (
                    health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                ),
                "health says so",
            )
            answer = until(lambda: (it := daemon.get("/health")).status_code == 503 and it, "over HTTP too")
            assert answer.json()["status"] == "expired"
            # A renewal brings it back, on the very same connection.
            tls.authority.sign("billaged", names=("localhost", "127.0.0.1")).write(tmp_path, "server")
            until(lambda: code_of(channel, "SendHeartbeat", HEARTBEAT) is CODES.OK, "the renewal")
        assert daemon.stop() == 0


def test_a_bearer_token_over_loopback(tmp_path: Path) -> None:
    secret = "correct-horse-battery-staple"
    token = tmp_path / "token"
    token.write_text(secret + "\n")
    policy = POLICY + '\n[[allow]]\nidentity = "@token"\nroles = ["read"]\n'
    tls = Tls(tmp_path, policy=policy)
    with DaemonProcess(tmp_path / "var", {**tls.settings, "HTTP_TOKEN_FILE": str(token)}) as daemon:

        def stats(**headers: str) -> httpx.Response:
            return httpx.get(daemon.http_url + "/stats", headers=headers, timeout=DEADLINE_SECONDS)

        assert daemon.get("/health").status_code == 200
        assert stats().status_code == 401
        assert stats().headers["WWW-Authenticate"] == "Bearer"
        assert stats(Authorization=f"Bearer {secret}x").status_code == 401
        answer = stats(Authorization=f"Bearer {secret}")
        assert answer.status_code == 200
        assert answer.json()["security"]["denied"]["unauthenticated"] >= 3
        headers = {"Authorization": f"Bearer {secret}"}
        url = f"{daemon.http_url}/billing.v1.BillingService/SendHeartbeat"
        assert httpx.post(url, json={"instanceId": "host-1"}, headers=headers).status_code == 403, "it may read only"
        token.write_text("another-token-of-some-length")
        daemon.send_signal(signal.SIGHUP)
        until(lambda: stats(Authorization=f"Bearer {secret}").status_code == 401, "the new token")
        assert daemon.stop() == 0
        assert secret not in str(daemon.log) + daemon.other_output


# --- places that are held --------------------------------------------------------------


class Unsaid:
    """Calls that have begun and whose message does not come."""

    def __init__(self, channel: grpc.Channel, count: int, method: str = "SendHeartbeat") -> None:
        self._end = threading.Event()
        rpc: Any = channel.stream_unary(f"/billing.v1.BillingService/{method}", None, None)
        self.calls = [rpc.future(self._nothing(), timeout=60) for _ in range(count)]

    def _nothing(self) -> Iterator[bytes]:
        self._end.wait(60)
        yield from ()

    def codes(self) -> list[grpc.StatusCode | None]:
        """Of those that were answered all the same; None of the others."""
        return [begun.code() if begun.done() else None for begun in self.calls]

    def close(self) -> None:
        for waiting in self.calls:
            waiting.cancel()
        self._end.set()


def test_who_may_not_come_in_is_told_before_the_message_is_waited_for(
    daemon: DaemonProcess, tls: Tls, pairs: Mapping[str, Pair]
) -> None:
    with tls.channel(daemon, pairs["unlisted"]) as channel:
        unsaid = Unsaid(channel, 200)
        try:
            until(lambda: None not in unsaid.codes(), "each is answered")
            assert set(unsaid.codes()) == {CODES.PERMISSION_DENIED}
        finally:
            unsaid.close()


def test_one_identity_holds_only_so_many_places(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    with DaemonProcess(tmp_path / "var", {**tls.settings, "MAX_RPCS_PER_IDENTITY": "8"}) as daemon:
        metald, operator = (tls.authority.sign(who, **IDENTITIES[who]) for who in ("metald", "operator"))
        with tls.channel(daemon, metald) as greedy, tls.channel(daemon, operator) as other:
            unsaid = Unsaid(greedy, 20)
            try:
                until(lambda: unsaid.codes().count(CODES.RESOURCE_EXHAUSTED) == 12, "those beyond the limit")
                assert code_of(greedy, "SendHeartbeat", HEARTBEAT) is CODES.RESOURCE_EXHAUSTED
                assert code_of(other, "SendHeartbeat", HEARTBEAT) is CODES.OK
            finally:
                unsaid.close()
            until(lambda: code_of(greedy, "SendHeartbeat", HEARTBEAT) is CODES.OK, "the places are free again")
        assert daemon.stop() == 0


def test_a_watcher_that_is_shown_nothing_goes_too_once_it_may_not_watch(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    with DaemonProcess(tmp_path / "var", {**tls.settings, "WATCHERS_MAX_PER_IDENTITY": "2"}) as daemon:
        with tls.channel(daemon, tls.authority.sign("reader", **IDENTITIES["reader"])) as channel:
            rpc: Any = channel.unary_stream(WATCH, None, stream_pb.UsageSummary.FromString)
            watches = [rpc(b"", timeout=DEADLINE_SECONDS) for _ in range(2)]
            for watch in watches:
                watch.initial_metadata()
            with pytest.raises(grpc.RpcError) as caught:
                list(rpc(b"", timeout=DEADLINE_SECONDS))
            status: Any = caught.value
            assert status.code() is CODES.RESOURCE_EXHAUSTED
            tls.policy.write_text(POLICY.replace("reader.example.org", "nobody.example.org"))
            daemon.send_signal(signal.SIGHUP)
            assert [watch.code() for watch in watches] == [CODES.PERMISSION_DENIED] * 2
        assert daemon.stop() == 0


# --- beyond loopback, and how low TLS may go -------------------------------------------


def test_http_beyond_loopback_asks_for_the_same_as_grpc(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    token = "correct-horse-battery-staple"
    settings = {**tls.settings, "HTTP_ADDRESS": "0.0.0.0", "HTTP_TOKEN": token}
    with DaemonProcess(tmp_path / "var", settings) as daemon:
        port = daemon.http_url.rpartition(":")[2]
        url = f"https://localhost:{port}"

        def context(who: str | None) -> ssl.SSLContext:
            made = ssl.create_default_context(cadata=tls.authority.pem.decode())
            if who is not None:
                made.load_cert_chain(*tls.authority.sign(who, **IDENTITIES[who]).write(tmp_path, f"http-{len(who)}"))
            return made

        def post(who: str | None, vm_id: str = "vm-1", customer_id: str = "acme", **headers: str) -> int:
            body = {"vmId": vm_id, "customerId": customer_id, "startTime": str(time.time_ns())}
            rpc = f"{url}/billing.v1.BillingService/NotifyVmStarted"
            return httpx.post(rpc, json=body, headers=headers, verify=context(who)).status_code

        with httpx.Client(verify=context(None)) as client:
            assert client.get(f"{url}/health").status_code == 200
            assert client.get(f"{url}/stats").status_code == 403
        seen = {who: post(who) for who in ("metald", "acme", "reader", "unlisted", "two names", None)}
        assert seen == {"metald": 200, "acme": 200, "reader": 403, "unlisted": 403, "two names": 401, None: 403}
        assert post("acme", customer_id="globex") == 403
        assert post(None, Authorization=f"Bearer {token}") == 403, "@token is not in the policy"
        assert post(None, Authorization="Bearer wrong") == 401
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://localhost:{port}/health")
        assert daemon.stop() == 0


@pytest.mark.parametrize("door", ["gRPC", "HTTP"])
def test_tls_before_1_2_is_refused_and_1_3_is_taken(tmp_path: Path, door: str) -> None:
    tls = Tls(tmp_path)
    pair = tls.authority.sign("metald", **IDENTITIES["metald"]).write(tmp_path, "client")
    with DaemonProcess(tmp_path / "var", {**tls.settings, "HTTP_ADDRESS": "0.0.0.0"}) as daemon:
        address = daemon.grpc_address if door == "gRPC" else daemon.http_url
        place = ("127.0.0.1", int(address.rpartition(":")[2]))

        def version(lowest: ssl.TLSVersion, highest: ssl.TLSVersion) -> str | None:
            context = ssl.create_default_context(cadata=tls.authority.pem.decode())
            context.load_cert_chain(*pair)
            context.set_alpn_protocols(["h2" if door == "gRPC" else "http/1.1"])
            # What a client that old would offer: this library does not by itself.
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version, context.maximum_version = lowest, highest
            with (
                socket.create_connection(place, 10) as raw,
                context.wrap_socket(raw, server_hostname="localhost") as wrapped,
            ):
                return wrapped.version()

        with pytest.raises((ssl.SSLError, ConnectionError)):
            version(ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)
        assert version(ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert version(ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
