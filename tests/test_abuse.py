"""Callers who take more than their share, from a daemon as its users have it: the others do not notice."""

from __future__ import annotations

import multiprocessing
import selectors
import socket
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import pytest
from daemon_calls import BILLING, DEADLINE_SECONDS, SECOND, batch, call, retry_delay_seconds, until
from daemon_process import DaemonProcess
from tls_material import Authority, Pair

from billaged.wire.billing.v1 import billing_pb2 as pb

HEARTBEAT = pb.SendHeartbeatRequest(instance_id="host-1")
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
# 127.0.0.1, but no text that is known for a loopback address: so HTTP uses TLS, and stays on this machine.
LOOPBACK_WITH_TLS = "0x7f000001"


def refusal(channel: grpc.Channel, method: str = "SendHeartbeat", request: Any = HEARTBEAT) -> grpc.RpcError | None:
    """RESOURCE_EXHAUSTED where it is too much; None where it passes."""
    try:
        call(channel, method, request)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
        return error
    return None


def passes(channel: grpc.Channel) -> bool:
    return refusal(channel) is None


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS)


class Site:
    """An authority, and a daemon that it and its callers have certificates from."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority()
        (folder / "ca.pem").write_bytes(self.authority.pem)
        cert, key = self.authority.sign("billaged", names=("localhost", "127.0.0.1")).write(folder, "server")
        (folder / "policy.toml").write_text('[[allow]]\nidentity = "spiffe://example.org/*"\nroles = ["ingest"]\n')
        self.settings = {
            "TLS_MODE": "file",
            "TLS_CERT_FILE": str(cert),
            "TLS_KEY_FILE": str(key),
            "TLS_CA_FILE": str(folder / "ca.pem"),
            "POLICY_FILE": str(folder / "policy.toml"),
        }

    def caller(self, name: str) -> Pair:
        return self.authority.sign(name, uris=(f"spiffe://example.org/{name}",))

    def channel(self, daemon: DaemonProcess, caller: Pair) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(self.authority.pem, caller.key, caller.cert)
        return grpc.secure_channel(daemon.grpc_address, credentials, [OWN_CONNECTION])


# --- connections --------------------------------------------------------------------


def test_connections_beyond_the_limit_are_closed_and_those_within_go_on(tmp_path: Path) -> None:
    settings = {"MAX_CONNECTIONS": "8", "HANDSHAKE_TIMEOUT": "10m"}
    with DaemonProcess(tmp_path / "var", settings) as daemon, daemon.channel() as good, ExitStack() as stack:
        assert passes(good)
        idle = [stack.enter_context(connect(daemon.grpc_address)) for _ in range(30)]
        until(lambda: sum(map(is_open, idle)) <= 7, "the end of those beyond the limit")
        open_now = [one for one in idle if is_open(one)]
        assert len(open_now) == 7
        assert passes(good)
        with daemon.channel() as late:
            with pytest.raises(grpc.RpcError) as caught:
                call(late, "SendHeartbeat", HEARTBEAT)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        for one in open_now:
            one.close()
        with daemon.channel() as late:
            call_when_ready(late)
        assert passes(good)


def is_open(connection: socket.socket) -> bool:
    """Whether the daemon has not closed it; what it has sent is read."""
    connection.setblocking(False)
    try:
        while data := connection.recv(65_536):
            del data
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    return False


def call_when_ready(channel: grpc.Channel) -> None:
    send = channel.unary_unary(f"/{BILLING}/SendHeartbeat", pb.SendHeartbeatRequest.SerializeToString)
    send(HEARTBEAT, timeout=DEADLINE_SECONDS, wait_for_ready=True)


def test_one_identity_has_so_many_connections_and_others_have_theirs(tmp_path: Path) -> None:
    site = Site(tmp_path)
    settings = site.settings | {"MAX_CONNECTIONS_PER_IDENTITY": "2"}
    greedy, other = site.caller("greedy"), site.caller("other")
    with DaemonProcess(tmp_path / "var", settings) as daemon, ExitStack() as stack:
        first, second, third = (stack.enter_context(site.channel(daemon, greedy)) for _ in range(3))
        assert [passes(first), passes(second)] == [True, True]
        error = refusal(third)
        assert error is not None
        assert "UNKEY_BILLAGED_MAX_CONNECTIONS_PER_IDENTITY" in error.details()
        assert retry_delay_seconds(error) == 1
        with site.channel(daemon, other) as channel:
            assert passes(channel)
        assert [passes(first), passes(second)] == [True, True]
        first.close()
        until(lambda: passes(third), "a place for the third connection")
        assert daemon.stop() == 0
        assert daemon.other_output == ""


def test_without_tls_a_remote_address_has_so_many_connections(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "var", {"MAX_CONNECTIONS_PER_IDENTITY": "2"}) as daemon, ExitStack() as stack:
        first, second, third = (stack.enter_context(daemon.channel()) for _ in range(3))
        assert [passes(channel) for channel in (first, second, third)] == [True, True, False]
        assert daemon.stats()["security"]["connections_refused"] == 1
        second.close()
        until(lambda: passes(third), "a place for the third connection")


def test_who_says_nothing_is_cut_off(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for number, settings in enumerate(({}, site.settings)):
        began = time.monotonic()
        with DaemonProcess(tmp_path / f"var-{number}", settings | {"HANDSHAKE_TIMEOUT": "500ms"}) as daemon:
            silent = connect(daemon.grpc_address)
            while silent.recv(65_536):
                pass
            silent.close()
        assert time.monotonic() - began < DEADLINE_SECONDS


# --- the age of connections ---------------------------------------------------------

GOAWAY = 7
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        assert more, "closed without a word"
        data += more
    return data


def farewell(address: str) -> bytes:
    """What the daemon says in its GOAWAY to a connection on which nothing is asked."""
    with connect(address) as connection:
        connection.sendall(PREFACE)
        while True:
            head = read_exactly(connection, 9)
            body = read_exactly(connection, int.from_bytes(head[:3], "big"))
            if head[3] == GOAWAY:
                return body[8:]


def test_an_old_connection_is_asked_to_go_and_no_request_fails_for_it(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "var", {"CONNECTION_MAX_AGE": "200ms"}) as daemon, daemon.channel() as channel:
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append, try_to_connect=True)
        assert farewell(daemon.grpc_address) == b"max_age"

        def used_up() -> bool:
            assert passes(channel)
            return states.count(grpc.ChannelConnectivity.READY) >= 10

        until(used_up, "ten connections one after the other")
        channel.unsubscribe(states.append)
        assert daemon.stop() == 0
        assert daemon.other_output == ""


def test_what_runs_on_an_old_connection_goes_on(tmp_path: Path) -> None:
    settings = {"CONNECTION_MAX_AGE": "200ms", "AGGREGATION_INTERVAL": "1s"}
    with DaemonProcess(tmp_path / "var", settings) as daemon, daemon.channel() as channel:
        watch = channel.unary_stream("/billing.v1.UsageStreamService/WatchSummaries")
        summaries = watch(b"", timeout=DEADLINE_SECONDS)
        summaries.initial_metadata()
        for _ in range(3):
            assert farewell(daemon.grpc_address) == b"max_age"
        assert passes(channel)
        call(channel, "SendMetricsBatch", batch("vm-1", time.time_ns() - 2 * SECOND, time.time_ns() - SECOND))
        assert next(summaries)
        summaries.cancel()


def was_closed(states: list[grpc.ChannelConnectivity], count: int) -> bool:
    """Whether the channel has had so many connections, and has none now."""
    ready = grpc.ChannelConnectivity.READY
    return states.count(ready) == count and states[-1] is grpc.ChannelConnectivity.IDLE


def test_an_idle_connection_is_closed_and_the_next_request_makes_another(tmp_path: Path) -> None:
    """A request that crosses with the closing may fail, as gRPC has it: so who sends seldom is seen to be closed."""
    with DaemonProcess(tmp_path / "var", {"CONNECTION_MAX_IDLE": "200ms"}) as daemon, daemon.channel() as channel:
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append, try_to_connect=True)
        for count in range(1, 6):
            until(lambda count=count: was_closed(states, count), f"the end of connection {count}")
            assert passes(channel)
        assert farewell(daemon.grpc_address) == b"connection idle"
        channel.unsubscribe(states.append)
        assert daemon.stop() == 0
        assert daemon.other_output == ""


# --- what a request may hold, and how many may come ----------------------------------


def test_metadata_beyond_the_limit_is_always_refused_and_others_pass(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "var", {"MAX_METADATA_BYTES": "8KiB"}) as daemon, daemon.channel() as channel:
        send = channel.unary_unary(f"/{BILLING}/SendHeartbeat", pb.SendHeartbeatRequest.SerializeToString)

        def code(metadata_bytes: int) -> grpc.StatusCode:
            _, answer = send.with_call(HEARTBEAT, timeout=DEADLINE_SECONDS, metadata=[("x-much", "x" * metadata_bytes)])
            return answer.code()

        for _ in range(10):
            assert code(6 * 1024) is grpc.StatusCode.OK
            with pytest.raises(grpc.RpcError) as caught:
                code(9 * 1024)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert passes(channel)


def test_requests_beyond_the_rate_hear_when_to_come_again_over_both_doors(tmp_path: Path) -> None:
    settings = {"REQUESTS_PER_SECOND": "1"}
    with DaemonProcess(tmp_path / "var", settings) as daemon, daemon.channel() as channel:
        error = until(lambda: refusal(channel), "the end of the burst")
        assert error.details() == "too many requests: the limit is 1 a second (UNKEY_BILLAGED_REQUESTS_PER_SECOND)"
        assert 0 < (retry_delay_seconds(error) or 0) <= 1
        # The same address over HTTP has no more: a bucket of its own would give five.
        answers = [daemon.post("SendHeartbeat", {"instanceId": "host-1"}) for _ in range(5)]
        assert {"code": "resource_exhausted"}.items() <= answers[-1].json().items()
        assert answers[-1].status_code == 429
        assert daemon.get("/health").json()["status"] == "ok"
        until(lambda: passes(channel), "the next request's time")
        # Statistics are a request too.
        answer = until(lambda: (stats := daemon.get("/stats")).is_success and stats, "the one after that")
        assert answer.json()["security"]["throttled"] >= 3


def test_each_identity_has_its_own_rate(tmp_path: Path) -> None:
    site = Site(tmp_path)
    settings = site.settings | {"REQUESTS_PER_SECOND": "1"}
    with DaemonProcess(tmp_path / "var", settings) as daemon, ExitStack() as stack:
        greedy, again, other = (
            stack.enter_context(site.channel(daemon, site.caller(name))) for name in ("greedy", "greedy", "other")
        )
        until(lambda: not passes(greedy), "the end of the burst")
        # Another certificate of the same name brings nothing: not the five of a bucket of its own.
        assert not all(passes(again) for _ in range(5))
        assert [passes(other) for _ in range(5)] == [True] * 5


def test_samples_beyond_the_rate_are_refused_and_not_billed(tmp_path: Path) -> None:
    start_ns = time.time_ns() - 3600 * SECOND
    with DaemonProcess(tmp_path / "var", {"SAMPLES_PER_SECOND": "100"}) as daemon, daemon.channel() as channel:
        much = batch("vm-1", *(start_ns + number * SECOND // 10 for number in range(3000)))
        assert call(channel, "SendMetricsBatch", much)
        error = refusal(channel, "SendMetricsBatch", batch("vm-2", start_ns))
        assert error is not None
        assert error.details() == "too many samples: the limit is 100 a second (UNKEY_BILLAGED_SAMPLES_PER_SECOND)"
        # 2,500 are owed.
        assert 20 < (retry_delay_seconds(error) or 0) <= 25
        assert passes(channel)
        assert daemon.stop() == 0
        assert dict(daemon.ledger()["tallies"])["samples"] == 3000


# --- idle and slow connections by the hundred ------------------------------------------

IDLE, SLOW, CONNECTS = 500, 100, 10
# The attack lasts longer than a handshake may (10 s): all of it is cut off once, and comes again.
ROUND_SECONDS, CALM_ROUNDS, ATTACKED_ROUNDS = 2.5, 3, 5
# A neighbour on the machine can double a p99 for a while; what the attack does, it does in each.
ATTACKS_MAX = 3


class Target(NamedTuple):
    """A port of the daemon, and what a client says first there."""

    port: int
    greeting: bytes


class Attack:
    """Connections that say nothing, and some that say a byte a second; whoever is cut off comes again."""

    def __init__(self, targets: list[Target]) -> None:
        self._targets = targets
        self._selector = selectors.DefaultSelector()
        self._slow: dict[socket.socket, Iterator[int]] = {}  # with the bytes that are left to say

    def begin(self) -> None:
        for target in self._targets:
            for number in range(IDLE + SLOW):
                self._connect(target, slow=number < SLOW)

    def hold(self, seconds: float) -> None:
        """Keep all of them for a while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                connection: Any = key.fileobj
                try:
                    ended = not connection.recv(65_536)
                except OSError:
                    ended = True
                if ended:
                    self._again(connection)

    def say_one_byte(self) -> None:
        for connection, left in tuple(self._slow.items()):
            try:
                connection.send(bytes((next(left),)))
            except (OSError, StopIteration):
                self._again(connection)

    def end(self) -> None:
        for key in tuple(self._selector.get_map().values()):
            self._close(key.fileobj)

    def _connect(self, target: Target, *, slow: bool) -> None:
        connection = socket.create_connection(("127.0.0.1", target.port), timeout=DEADLINE_SECONDS)
        self._selector.register(connection, selectors.EVENT_READ, target)
        if slow:
            self._slow[connection] = iter(target.greeting)

    def _again(self, connection: Any) -> None:
        target, slow = self._selector.get_key(connection).data, connection in self._slow
        self._close(connection)
        self._connect(target, slow=slow)

    def _close(self, connection: Any) -> None:
        self._selector.unregister(connection)
        self._slow.pop(connection, None)
        connection.close()


def attack_when_told(orders: Connection, targets: list[Target]) -> None:
    """A process of its own: begins at one order, ends at the next, until there are no more; answers each."""
    while orders.recv():
        attack = Attack(targets)
        attack.begin()
        orders.send("begun")
        while not orders.poll():
            attack.say_one_byte()
            attack.hold(1.0)
        orders.recv()
        attack.end()
        orders.send("ended")


@contextmanager
def attacker(targets: list[Target]) -> Iterator[Callable[[], None]]:
    """Gives what switches the attack on, and off again."""
    context = multiprocessing.get_context("spawn")
    orders, theirs = context.Pipe()
    process = context.Process(target=attack_when_told, args=(theirs, targets), daemon=True)
    process.start()

    def switch() -> None:
        orders.send(True)
        assert orders.poll(DEADLINE_SECONDS)
        orders.recv()

    try:
        yield switch
    finally:
        process.kill()
        process.join()


def client_hello() -> bytes:
    """The first bytes of a TLS client."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


class GoodClient:
    """Sends a request as soon as the last is answered, over gRPC and HTTPS in turn; its times are milliseconds."""

    def __init__(self, site: Site, daemon: DaemonProcess, folder: Path) -> None:
        caller = site.caller("good")
        cert, key = caller.write(folder, "good")
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.load_cert_chain(cert, key)
        self._url = f"https://127.0.0.1:{daemon.http_url.rpartition(':')[2]}/{BILLING}/SendHeartbeat"
        self._context = context
        self._new_channel = lambda: site.channel(daemon, caller)
        self.channel = self._new_channel()
        self.http = httpx.Client(verify=context, timeout=DEADLINE_SECONDS)

    def times(self) -> dict[str, float]:
        grpc_ms, http_ms = [], []
        deadline = time.monotonic() + ROUND_SECONDS
        while time.monotonic() < deadline:
            grpc_ms.append(elapsed_ms(lambda: call(self.channel, "SendHeartbeat", HEARTBEAT)))
            http_ms.append(elapsed_ms(lambda: self._post(self.http)))
        return {
            "gRPC p99": percentile_99(grpc_ms),
            "HTTPS p99": percentile_99(http_ms),
            "gRPC connect": statistics.median(elapsed_ms(self._connect_grpc) for _ in range(CONNECTS)),
            "HTTPS connect": statistics.median(elapsed_ms(self._connect_http) for _ in range(CONNECTS)),
        }

    def close(self) -> None:
        self.channel.close()
        self.http.close()

    def _post(self, client: httpx.Client) -> None:
        client.post(self._url, json={"instanceId": "host-1"}).raise_for_status()

    def _connect_grpc(self) -> None:
        with self._new_channel() as channel:
            call(channel, "SendHeartbeat", HEARTBEAT)

    def _connect_http(self) -> None:
        with httpx.Client(verify=self._context, timeout=DEADLINE_SECONDS) as client:
            self._post(client)


def elapsed_ms(work: Callable[[], object]) -> float:
    began_ns = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began_ns) / 1e6


def percentile_99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def open_files(daemon: DaemonProcess) -> int:
    """Of the daemon, connections among them."""
    return sum(1 for _ in Path(f"/proc/{daemon.pid}/fd").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_idle_and_slow_connections_by_the_hundred_do_not_slow_a_good_client(tmp_path: Path) -> None:
    """500 that say nothing and 100 slow handshakes on each port; calm before and after, on the same machine."""
    site = Site(tmp_path)
    settings = site.settings | {"HTTP_ADDRESS": LOOPBACK_WITH_TLS, "STORE": "memory"}
    calm: list[dict[str, float]] = []
    attacked: list[dict[str, float]] = []
    with DaemonProcess(tmp_path / "var", settings) as daemon:
        ports = [int(place.rpartition(":")[2]) for place in (daemon.grpc_address, daemon.http_url)]
        good = GoodClient(site, daemon, tmp_path)
        with attacker([Target(port, client_hello()) for port in ports]) as switch:
            for attack in range(ATTACKS_MAX):
                calm += [good.times() for _ in range(CALM_ROUNDS)]
                switch()
                until(lambda: open_files(daemon) > 2 * (IDLE + SLOW), "all of the attack")
                attacked += [good.times() for _ in range(ATTACKED_ROUNDS)]
                until(lambda: open_files(daemon) > 2 * (IDLE + SLOW), "all of it again")
                switch()
                until(lambda: open_files(daemon) < IDLE, "the end of the attack")
                calm += [good.times() for _ in range(CALM_ROUNDS)]
                ratios = slower(calm, attacked)
                print(f"after {attack + 1} attacks: {ratios}, usual {calm}, attacked {attacked}")
                if max(ratios.values()) < 2:
                    break
        good.close()
        assert max(ratios.values()) < 2, ratios
        assert daemon.stop() == 0
        assert not [line for line in daemon.log if line["level"] == "error"]


def slower(usual: list[dict[str, float]], then: list[dict[str, float]]) -> dict[str, float]:
    """How many times as long each took then, of all rounds so far."""
    return {
        what: statistics.median(one[what] for one in then) / statistics.median(one[what] for one in usual)
        for what in usual[0]
    }
