"""Connections in use by one caller: the counting beside a kernel of our own, the kernel's tables with real ones."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from door_fixtures import until
from hypothesis import given
from hypothesis import strategies as st

from billaged.doors.connections import Connections, open_peers
from billaged.model.errors import Overloaded

SECOND = 10**9


class Kernel:
    """Which peers are connected, what it was asked, and the time."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.asked: list[set[str]] = []
        self.now_ns = 3 * 10**16
        self.answer_takes_ns = 0

    def still_open(self, peers: Collection[str]) -> set[str]:
        self.asked.append(set(peers))
        self.now_ns += self.answer_takes_ns
        return self.open & set(peers)

    def connections(self, per_key_max: int, peers_max: int = 1000) -> Connections:
        return Connections(
            per_key_max, still_open=self.still_open, monotonic_nanos=lambda: self.now_ns, peers_max=peers_max
        )


def peer(number: int) -> str:
    return f"ipv4:10.0.0.1:{10_000 + number}"


def uses(connections: Connections, key: str, number: int) -> bool:
    try:
        connections.used(key, peer(number))
    except Overloaded:
        return False
    return True


def test_up_to_the_limit_nobody_asks_the_kernel() -> None:
    kernel = Kernel()
    connections = kernel.connections(3)
    assert [uses(connections, "a", number) for number in (1, 2, 3, 1, 2, 3)] == [True] * 6
    assert uses(connections, "b", 4)
    assert kernel.asked == []


def test_beyond_the_limit_only_open_ones_count() -> None:
    kernel = Kernel()
    connections = kernel.connections(2)
    kernel.open = {peer(1), peer(2)}
    assert uses(connections, "a", 1)
    assert uses(connections, "a", 2)
    with pytest.raises(Overloaded) as caught:
        connections.used("a", peer(3))
    assert str(caught.value) == (
        "2 other connections are in use, as many as one caller may have (UNKEY_BILLAGED_MAX_CONNECTIONS_PER_IDENTITY)"
    )
    assert caught.value.retry_after_seconds == 1
    # Those within go on, and others are not touched.
    assert uses(connections, "a", 1)
    assert uses(connections, "b", 4)
    kernel.open -= {peer(1)}
    kernel.now_ns += SECOND
    assert uses(connections, "a", 3)
    assert connections.refused == 1


def test_the_kernel_is_asked_twenty_times_a_second_for_all() -> None:
    kernel = Kernel()
    connections = kernel.connections(1)
    kernel.open = {peer(1)}
    assert uses(connections, "greedy", 1)
    assert uses(connections, "honest", 2)
    assert not uses(connections, "greedy", 3)
    assert len(kernel.asked) == 1
    # That look has shown that the honest one's is closed: it need not wait for its own.
    assert uses(connections, "honest", 4)
    # Between two looks there is no way to know.
    kernel.open = set()
    kernel.now_ns += SECOND // 20 - 1
    assert not uses(connections, "greedy", 3)
    connections.prune()
    assert len(kernel.asked) == 1
    kernel.now_ns += 1
    assert uses(connections, "greedy", 3)
    assert len(kernel.asked) == 2


def test_looks_that_take_long_come_more_seldom() -> None:
    kernel = Kernel()
    kernel.answer_takes_ns = SECOND // 10
    connections = kernel.connections(1)
    kernel.open = {peer(1), peer(2)}
    assert uses(connections, "a", 1)
    assert not uses(connections, "a", 2)
    kernel.now_ns += 2 * SECOND - 1
    assert not uses(connections, "a", 2)
    assert len(kernel.asked) == 1
    kernel.now_ns += 1
    assert not uses(connections, "a", 2)
    assert len(kernel.asked) == 2


def test_a_port_used_again_counts_for_the_newer() -> None:
    kernel = Kernel()
    connections = kernel.connections(1)
    kernel.open = {peer(1), peer(2)}
    assert uses(connections, "a", 1)
    assert uses(connections, "b", 1)
    assert uses(connections, "a", 2)
    assert not uses(connections, "b", 3)


def test_prune_forgets_what_is_closed() -> None:
    kernel = Kernel()
    connections = kernel.connections(5)
    for number in range(5):
        assert uses(connections, f"key-{number % 2}", number)
    kernel.open = {peer(3)}
    connections.prune()
    assert connections._key_of == {peer(3): "key-1"}
    assert connections._peers_of == {"key-1": {peer(3)}}
    kernel.open = set()
    kernel.now_ns += SECOND
    connections.prune()
    assert (len(connections._key_of), connections._peers_of) == (0, {})


def test_zero_is_no_limit_and_keeps_nothing() -> None:
    kernel = Kernel()
    connections = kernel.connections(0)
    assert all(uses(connections, "a", number) for number in range(1000))
    connections.prune()
    assert (kernel.asked, len(connections._key_of)) == ([], 0)


def test_memory_is_bounded_and_nobody_is_refused_for_it() -> None:
    kernel = Kernel()
    connections = kernel.connections(2, peers_max=100)
    kernel.open = {peer(number) for number in range(5000)}
    assert all(uses(connections, f"key-{number}", number) for number in range(5000))
    assert len(connections._key_of) == len(connections._peers_of) == 100
    assert len(kernel.asked) == 1


moves = st.one_of(
    st.tuples(st.just("use"), st.sampled_from("abc"), st.integers(0, 9)),
    st.tuples(st.just("close"), st.just(""), st.integers(0, 9)),
    st.tuples(st.just("prune"), st.just(""), st.just(0)),
)


@given(st.integers(1, 4), st.lists(moves, max_size=100))
def test_with_time_for_a_look_it_refuses_exactly_what_is_too_much(per_key_max: int, steps: list[Any]) -> None:
    kernel = Kernel()
    connections = kernel.connections(per_key_max)
    owner: dict[int, str] = {}  # by open peer: whose it is, of those that were let in
    for step, key, number in steps:
        kernel.now_ns += SECOND
        if step == "prune":
            connections.prune()
        elif step == "close":
            kernel.open.discard(peer(number))
            owner.pop(number, None)
        else:
            kernel.open.add(peer(number))
            others = sum(owner[other] == key for other in owner if other != number)
            passes = owner.get(number) == key or others < per_key_max
            owner.pop(number, None)
            assert uses(connections, key, number) == passes
            if passes:
                owner[number] = key


# --- the kernel's tables ------------------------------------------------------------


@contextmanager
def listening(family: socket.AddressFamily, address: str, *, dual: bool = False) -> Iterator[socket.socket]:
    with socket.socket(family) as server:
        if dual:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((address, 0))
        server.listen(1024)
        yield server


@pytest.mark.parametrize(
    ("family", "address", "dual", "kind"),
    [
        (socket.AF_INET, "127.0.0.1", False, "ipv4:127.0.0.1"),
        (socket.AF_INET6, "::1", False, "ipv6:%5B::1%5D"),
        (socket.AF_INET6, "::", True, "ipv4:127.0.0.1"),
        (socket.AF_INET6, "::", True, "ipv6:%5B::ffff:127.0.0.1%5D"),
    ],
)
def test_the_tables_tell_open_from_closed(family: socket.AddressFamily, address: str, dual: bool, kind: str) -> None:
    with listening(family, address, dual=dual) as server, listening(socket.AF_INET, "127.0.0.1") as other:
        port = server.getsockname()[1]
        still_open = open_peers(port)
        with ExitStack() as stack:
            target = "127.0.0.1" if dual or family is socket.AF_INET else address
            clients = [socket.create_connection((target, port)) for _ in range(20)]
            elsewhere = stack.enter_context(socket.create_connection(other.getsockname()))
            for client in clients:
                stack.enter_context(client)
                stack.enter_context(server.accept()[0])
            ports = [client.getsockname()[1] for client in clients]
            peers = {f"{kind}:{number}" for number in ports}
            strangers = {
                f"{kind}:{elsewhere.getsockname()[1]}",
                "unix:",
                "unix:/run/x",
                "",
                "ipv4:nonsense",
                "ipv6:%5B",
            }
            assert still_open(peers | strangers) == peers
            assert still_open(()) == set()
            # One whose client has gone is not open, though the server has not closed its end yet.
            for client in clients[:5]:
                client.close()
            assert still_open(peers) == {f"{kind}:{number}" for number in ports[5:]}
        assert still_open(peers) == set()


def test_a_zone_in_a_peer_is_no_part_of_its_address(tmp_path: Path) -> None:
    """A link-local peer as gRPC names it, and as proc(5) does (a machine with such an address is not at hand)."""
    row = "   0: {}:1F91 {}:04D2 01 00000000:00000000 00:00000000 00000000     0        0 1\n"
    link_local = "000080FE000000000000000001000000"
    (tmp_path / "tcp").touch()
    (tmp_path / "tcp6").write_text(row.format(link_local, link_local))
    peer = "ipv6:%5Bfe80::1%252%5D:1234"
    assert open_peers(0x1F91, tmp_path)([peer, "ipv6:%5Bfe80::2%252%5D:1234"]) == {peer}


def test_without_tables_nobody_is_refused_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However fast they come: time stands still here."""
    connections = Connections(2, still_open=open_peers(1, tmp_path), monotonic_nanos=lambda: 0, peers_max=50)
    with caplog.at_level(logging.WARNING, "billaged.doors"):
        assert all(uses(connections, "a", number) for number in range(50))
        assert all(uses(connections, f"key-{number}", number) for number in range(200))
        connections.prune()
    assert len(caplog.messages) == 1
    assert "UNKEY_BILLAGED_MAX_CONNECTIONS_PER_IDENTITY does nothing" in caplog.text


def test_a_machine_without_ipv6_has_one_table(tmp_path: Path) -> None:
    row = "   0: 0100007F:1F91 0100007F:04D2 01 00000000:00000000 00:00000000 00000000     0        0 1\n"
    (tmp_path / "tcp").write_text(row)
    assert open_peers(0x1F91, tmp_path)(["ipv4:127.0.0.1:1234", "ipv4:127.0.0.1:1235"]) == {"ipv4:127.0.0.1:1234"}


# --- a real gRPC server -------------------------------------------------------------


class Server:
    """A server whose one RPC counts the connection that it came over, for the key in its request."""

    def __init__(self, per_key_max: int) -> None:
        self.kernel = Kernel()
        self.per_key_max = per_key_max
        self.peers: list[str] = []
        self.port = 0

    async def handle(self, payload: bytes, context: Any) -> bytes:
        self.peers.append(context.peer())
        try:
            self.connections.used(payload.decode(), context.peer())
        except Overloaded as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        return b""

    @asynccontextmanager
    async def running(self, place: str) -> AsyncIterator[Server]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handler = grpc.unary_unary_rpc_method_handler(self.handle)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Use": handler}),))
        self.port = server.add_insecure_port(place)
        self.still_open = open_peers(self.port)
        self.connections = Connections(
            self.per_key_max, still_open=self.still_open, monotonic_nanos=lambda: self.kernel.now_ns
        )
        await server.start()
        try:
            yield self
        finally:
            await server.stop(0)

    def channel(self, address: str) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"{address}:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)])


async def use(channel: grpc.aio.Channel, key: str) -> bool:
    rpc: Any = channel.unary_unary("/test/Use", None, None)
    try:
        await rpc(key.encode(), timeout=10)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
        return False
    return True


@pytest.mark.parametrize(
    ("place", "address", "named"),
    [
        ("127.0.0.1:0", "127.0.0.1", "ipv4:127.0.0.1:"),
        ("[::1]:0", "[::1]", "ipv6:%5B::1%5D:"),
        ("0.0.0.0:0", "127.0.0.1", "ipv4:127.0.0.1:"),
        ("[::]:0", "127.0.0.1", "ipv4:127.0.0.1:"),
        ("[::]:0", "[::1]", "ipv6:%5B::1%5D:"),
    ],
)
async def test_grpc_names_peers_as_the_tables_are_read(place: str, address: str, named: str) -> None:
    async with Server(2).running(place) as server:
        first, second, third = channels = [server.channel(address) for _ in range(3)]
        assert [await use(channel, "a") for channel in channels] == [True, True, False]
        assert all(peer.startswith(named) for peer in server.peers)
        assert len(set(server.peers)) == 3
        assert server.still_open(server.peers) == set(server.peers)
        # Whose connection is refused may still be somebody else.
        assert await use(third, "b")
        assert await use(second, "a")
        gone = server.peers[0]
        await first.close()
        await until(lambda: gone not in server.still_open([gone]), "the end of the connection")
        server.kernel.now_ns += SECOND
        assert await use(third, "a")
        fourth = server.channel(address)
        assert not await use(fourth, "a")
        for channel in (second, third, fourth):
            await channel.close()


async def test_a_client_that_reconnects_all_the_time_is_never_refused_for_its_past() -> None:
    async with Server(3).running("127.0.0.1:0") as server:
        for _ in range(30):
            channel = server.channel("127.0.0.1")
            assert await use(channel, "a")
            peer = server.peers[-1]
            await channel.close()
            await until(lambda peer=peer: not server.still_open([peer]), "the end of the connection")
            server.kernel.now_ns += SECOND
        assert server.connections.refused == 0
        assert len(server.connections._key_of) <= 3
