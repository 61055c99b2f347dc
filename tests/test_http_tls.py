"""HTTP over TLS: who gets in, who it is, and certificates and CAs that change while requests run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import json
import logging
import os
import resource
import shutil
import socket
import ssl
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from door_fixtures import until
from starlette.responses import JSONResponse
from tls_material import DAY, SERVER, Authority, Pair, RotatingAuthority, lasting

from billaged.doors.http_caller import PEER_EXTENSION, HttpCaller
from billaged.identity.http_tls import ServerTls
from billaged.identity.keeper import Keeper
from billaged.identity.material import BadMaterial, Material, certificates
from billaged.identity.peer import PeerVerifier
from billaged.identity.trust import ANY_DOMAIN, Trust
from billaged.model.errors import StartError, Unauthenticated
from billaged.settings import Http
from billaged.web.protocol import GuardedProtocol
from billaged.web.server import HttpServer

TIMEOUT = 10.0
URI = "spiffe://example.org/metald"
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])
REQUEST = b"GET /who HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """The daemon's loop, and the one of the other tests."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run_test(runner: asyncio.Runner, **fixtures: Any) -> None:
        runner.run(test(**fixtures))

    own = inspect.signature(test)
    runner = inspect.Parameter("runner", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run_test.__signature__ = own.replace(parameters=[runner, *own.parameters.values()])  # type: ignore[attr-defined]
    return run_test


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def metald(authority: Authority) -> Pair:
    return authority.sign("metald", uris=(URI,))


def server_pair(authority: Authority, name: str = "billaged") -> Pair:
    return authority.sign(name, names=("localhost", "127.0.0.1"))


def material(pair: Pair, *trusted: Authority) -> Material:
    """With no ``trusted``, it asks nobody for a certificate."""
    trust = Trust({ANY_DOMAIN: tuple(root.certificate for root in trusted)}) if trusted else None
    return Material(certificates(pair.cert, "it"), pair.cert, pair.key, trust, "test")


def client_context(
    pair: Pair | None, *trusted: Authority, version: ssl.TLSVersion | None = None, folder: Path | None = None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=b"".join(root.pem for root in trusted).decode())
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if pair is not None:
        file = os.memfd_create("client", os.MFD_CLOEXEC)
        with os.fdopen(file, "wb") as stream:
            stream.write(pair.cert + pair.key)
            stream.flush()
            context.load_cert_chain(f"/proc/self/fd/{file}")
    return context


class Running:
    """A server whose application says who calls, and what it was shown."""

    def __init__(self, first: Material, handshake_seconds: float = TIMEOUT) -> None:
        self.keeper = Keeper()
        self.keeper.offer(first)
        self.wall_ns: int | None = None  # the caller's clock, where it is not the real one
        self.shown: dict[str, bytes] | None = None
        self.caller = HttpCaller(
            lambda: None,
            PeerVerifier(self.keeper),
            lambda: time.time_ns() if self.wall_ns is None else self.wall_ns,
        )
        self.server = HttpServer(self.application, Http(port=0, address="127.0.0.1"), self.keeper, handshake_seconds)
        self.port = 0

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        self.shown = scope["extensions"].get(PEER_EXTENSION)
        try:
            answer = JSONResponse("healthy" if scope["path"] == "/health" else self.caller(scope))
        except Unauthenticated as error:
            answer = JSONResponse({"message": str(error)}, 401)
        await answer(scope, receive, send)

    async def start(self) -> Running:
        self.port = await self.server.start()
        return self

    @property
    def open(self) -> int:
        """Connections whose handshake is done."""
        assert self.server._server is not None
        return len(self.server._server.server_state.connections)

    @property
    def handshakes(self) -> int:
        assert self.server._server is not None
        return len(self.server._server.servers[0]._handshakes)

    def client(self, context: ssl.SSLContext, host: str = "localhost") -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"https://{host}:{self.port}", verify=context, timeout=TIMEOUT, trust_env=False
        )

    async def get(self, context: ssl.SSLContext, path: str = "/who", host: str = "localhost") -> Any:
        """The answer on a connection of its own. Raises httpx.TransportError where it does not get in."""
        async with self.client(context, host) as client:
            answer = await client.get(path)
        return answer.json() if answer.status_code == 200 else answer.status_code

    async def refuses(self, context: ssl.SSLContext, path: str = "/health") -> None:
        with pytest.raises(httpx.TransportError):
            await self.get(context, path)


@pytest.fixture
def serve(runner: asyncio.Runner) -> Iterator[Any]:
    started: list[Running] = []

    async def run(first: Material, handshake_seconds: float = TIMEOUT) -> Running:
        started.append(Running(first, handshake_seconds))
        return await started[-1].start()

    yield run
    for running in started:
        runner.run(running.server.stop(1))


@pytest.fixture
def running(runner: asyncio.Runner, serve: Any, authority: Authority) -> Running:
    """A server with a certificate of the authority, which callers may have one of too."""
    started: Running = runner.run(serve(material(server_pair(authority), authority)))
    return started


# --- who gets in, and who it is ---------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"], ids=["with-sni", "without-sni"])
@on_both_loops
async def test_a_certificate_names_its_caller(
    running: Running, authority: Authority, metald: Pair, version: ssl.TLSVersion, host: str
) -> None:
    assert await running.get(client_context(metald, authority, version=version), host=host) == URI
    # What else OpenSSL's clients send: the root, where they trust it too.
    assert running.shown == {"leaf": metald.cert, "chain": authority.pem}


@VERSIONS
@on_both_loops
async def test_without_a_certificate_it_is_anonymous_and_health_is_open(
    running: Running, authority: Authority, version: ssl.TLSVersion
) -> None:
    nobody = client_context(None, authority, version=version)
    assert await running.get(nobody) == "@anonymous"
    assert running.shown is None
    assert await running.get(nobody, "/health") == "healthy"


@VERSIONS
@on_both_loops
async def test_an_intermediate_is_shown_and_followed(
    running: Running, authority: Authority, version: ssl.TLSVersion
) -> None:
    pair = authority.intermediate().sign("metald", uris=(URI,))
    assert await running.get(client_context(pair, authority, version=version)) == URI
    assert running.shown is not None
    assert running.shown["leaf"] + running.shown["chain"] == pair.cert
    assert running.shown["leaf"].count(b"BEGIN") == running.shown["chain"].count(b"BEGIN") == 1


@on_both_loops
async def test_an_intermediate_may_be_what_is_trusted(serve: Any, authority: Authority) -> None:
    """As gRPC and our own verification have it."""
    below = authority.intermediate()
    running = await serve(material(server_pair(authority), below))
    assert await running.get(client_context(below.sign("metald", uris=(URI,)), authority)) == URI


@VERSIONS
@pytest.mark.parametrize("what", ["another-authority", "expired", "not-for-clients", "chain-missing"])
@on_both_loops
async def test_a_certificate_that_does_not_hold_ends_the_handshake(
    running: Running, authority: Authority, version: ssl.TLSVersion, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even health: whoever shows a certificate means something by it."""
    pair = {
        "another-authority": lambda: Authority("another authority").sign("metald", uris=(URI,)),
        "expired": lambda: authority.sign("metald", uris=(URI,), not_after=lasting(0) - DAY),
        "not-for-clients": lambda: authority.sign("metald", uris=(URI,), usages=(SERVER,)),
        "chain-missing": lambda: _without_chain(authority.intermediate().sign("metald", uris=(URI,))),
    }[what]()
    context = client_context(pair, authority, version=version)
    for _ in range(3):
        await running.refuses(context)
    assert running.shown is None
    [line] = [record for record in caplog.records if record.name == "billaged.web"]
    assert "the client's certificate does not hold" in line.getMessage()
    assert getattr(line, "remote", "") == "127.0.0.1"


def _without_chain(pair: Pair) -> Pair:
    return Pair(pair.leaf.public_bytes(Encoding.PEM), pair.key)


@on_both_loops
async def test_who_has_no_trust_asks_for_no_certificate(serve: Any, authority: Authority, metald: Pair) -> None:
    running = await serve(material(server_pair(authority)))
    assert await running.get(client_context(metald, authority)) == "@anonymous"
    # The asking begins with the first trust, as everything else that is new.
    running.keeper.offer(material(server_pair(authority), authority))
    assert await running.get(client_context(metald, authority)) == URI
    running.keeper.offer(material(server_pair(authority)))
    assert await running.get(client_context(metald, authority)) == "@anonymous"


@on_both_loops
async def test_old_protocols_and_plaintext_do_not_get_in(
    running: Running, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    old = client_context(None, authority)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    await running.refuses(old)
    weak = client_context(None, authority, version=TLS_1_2)
    weak.set_ciphers("AES128-SHA256:AES128-GCM-SHA256:ECDHE-ECDSA-AES128-SHA256")
    await running.refuses(weak)
    _, reader, writer = await connected(running, None)
    writer.write(REQUEST)
    assert b"HTTP/1.1" not in await rest_of(reader)
    writer.close()
    assert await running.get(client_context(None, authority)) == "@anonymous"
    assert "unsupported protocol" in caplog.text


@on_both_loops
async def test_it_speaks_http_1_1_only(running: Running, authority: Authority) -> None:
    context = client_context(None, authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    connection, _, writer = await connected(running, context)
    assert connection is not None and connection.selected_alpn_protocol() == "http/1.1"
    assert connection.version() == "TLSv1.3"
    writer.close()


async def connected(
    running: Running, context: ssl.SSLContext | None
) -> tuple[ssl.SSLObject | None, asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of its own; without a context, one that has not begun its handshake."""
    place = ("127.0.0.1", running.port)
    if context is None:
        reader, writer = await asyncio.open_connection(*place)
    else:
        reader, writer = await asyncio.open_connection(*place, ssl=context, server_hostname="localhost")
    return writer.get_extra_info("ssl_object"), reader, writer


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, Any]:
    """One request on a connection that is kept."""
    writer.write(REQUEST)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT)
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), TIMEOUT)
    except ConnectionError:
        return b""


# --- rotation ----------------------------------------------------------------------


@on_both_loops
async def test_certificates_and_authorities_change_under_load(serve: Any) -> None:
    """New connections and kept ones, both versions: with CAs that overlap, not one fails."""
    rotating = RotatingAuthority()
    running = await serve(material(server_pair(rotating.current), *rotating.roots))
    contexts: dict[str, Callable[[], ssl.SSLContext]] = {
        version.name: lambda version=version: client_context(  # type: ignore[misc]
            rotating.current.sign("metald", uris=(URI,)), *rotating.roots, version=version
        )
        for version in (TLS_1_2, TLS_1_3)
    }
    done, rotations = asyncio.Event(), 0
    answers: list[Any] = []
    seen: set[int] = set()

    async def new_connections(make: Callable[[], ssl.SSLContext]) -> None:
        while not done.is_set():
            connection, reader, writer = await connected(running, make())
            assert connection is not None
            shown = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
            seen.add(shown.serial_number)
            answers.append(await asked(reader, writer))
            writer.close()

    async def kept_connection(make: Callable[[], ssl.SSLContext]) -> None:
        while not done.is_set():
            _, reader, writer = await connected(running, make())
            # Twenty requests, over at most one change of CAs: what it shows is trusted all the while.
            for _ in range(20):
                answers.append(await asked(reader, writer))
            writer.close()

    clients = [
        asyncio.create_task(work(make)) for make in contexts.values() for work in (new_connections, kept_connection)
    ]
    try:
        for turn in range(30):
            before = len(answers)
            if turn % 3 == 0:
                rotating.prepare()
            elif turn % 3 == 1:
                rotating.activate()
            elif turn % 6 == 5:
                # The oldest goes once nobody uses it: two changes later.
                while len(rotating.roots) > 2:
                    del rotating._roots[0]
                    rotating._signing -= 1
            # As a keeper's source does it, on a thread of its own.
            await asyncio.to_thread(running.keeper.offer, material(server_pair(rotating.current), *rotating.roots))
            rotations += 1
            await until(lambda before=before: len(answers) >= before + 40 or any(c.done() for c in clients), "requests")  # type: ignore[misc]
    finally:
        done.set()
    await asyncio.gather(*clients)
    assert set(answers) == {(200, URI)}
    assert rotations == 30 and len(seen) >= 25
    print(f"{len(answers)} requests, {rotations} rotations, {len(seen)} certificates seen")


@VERSIONS
@on_both_loops
async def test_an_authority_that_is_taken_out_does_not_pass_any_more(
    running: Running, authority: Authority, metald: Pair, version: ssl.TLSVersion
) -> None:
    """Neither on a new connection, nor on one that is open, nor by a session from before."""
    context = client_context(metald, authority, version=version)
    connection, reader, writer = await connected(running, context)
    assert connection is not None
    assert await asked(reader, writer) == (200, URI)
    session = connection.session
    successor = Authority("the next authority")
    running.keeper.offer(material(server_pair(authority), successor))
    # The connection is still there; who it is has not held since.
    status, body = await asked(reader, writer)
    assert (status, "does not hold" in body["message"]) == (401, True)
    writer.close()
    await running.refuses(context)
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        await asyncio.to_thread(_resume, running.port, context, session)
    assert await running.get(client_context(successor.sign("m", uris=(URI,)), authority, version=version)) == URI


def _resume(port: int, context: ssl.SSLContext, session: Any) -> tuple[bool | None, Any]:
    """Whether a session from before was taken up again, and the new one."""
    with (
        socket.create_connection(("127.0.0.1", port), TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as connection,
    ):
        connection.sendall(REQUEST)
        if not connection.recv(1):
            raise EOFError
        return connection.session_reused, connection.session


@VERSIONS
@on_both_loops
async def test_sessions_are_never_resumed(
    running: Running, authority: Authority, metald: Pair, version: ssl.TLSVersion
) -> None:
    context = client_context(metald, authority, version=version)
    session = None
    for _ in range(3):
        reused, session = await asyncio.to_thread(_resume, running.port, context, session)
        assert not reused


@on_both_loops
async def test_a_certificate_that_ends_on_an_open_connection_does_not_hold_any_more(
    running: Running, authority: Authority
) -> None:
    until_when = lasting(3600)
    pair = authority.sign("metald", uris=(URI,), not_after=until_when)
    _, reader, writer = await connected(running, client_context(pair, authority))
    assert await asked(reader, writer) == (200, URI)
    running.wall_ns = int(until_when.timestamp()) * 10**9
    status, body = await asked(reader, writer)
    assert status == 401 and "expired" in body["message"]
    writer.close()


@on_both_loops
async def test_open_connections_go_on_over_a_change(running: Running, authority: Authority, metald: Pair) -> None:
    _, reader, writer = await connected(running, client_context(metald, authority))
    for _ in range(5):
        assert await asked(reader, writer) == (200, URI)
        running.keeper.offer(material(server_pair(authority), authority))
    writer.close()


@on_both_loops
async def test_what_is_replaced_leaves_memory_with_its_last_connection(
    running: Running, authority: Authority, metald: Pair
) -> None:
    tls = running.server._server._tls  # type: ignore[union-attr]
    assert tls is not None
    old = [weakref.ref(tls._shared)]
    begun = weakref.ref(tls.context())
    assert begun() is None, "a context of one connection is in no cycle"
    _, reader, writer = await connected(running, client_context(metald, authority))
    assert await asked(reader, writer) == (200, URI)
    for _ in range(20):
        running.keeper.offer(material(server_pair(authority), authority))
        old.append(weakref.ref(tls._shared))
        assert await running.get(client_context(metald, authority)) == URI
    *gone, newest = old
    writer.close()
    await until(lambda: running.open == 0, "the connections are closed")
    del reader, writer

    def alive() -> int:
        gc.collect()
        return sum(reference() is not None for reference in gone)

    await until(lambda: alive() == 0, "the contexts from before are gone")
    assert newest() is tls._shared


def descriptors() -> list[int]:
    """The open ones of this process, that of the look among them."""
    return sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir())


@on_both_loops
async def test_a_renewal_leaves_no_file_behind(
    running: Running, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor needs one: there may be no place to write to."""
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    before = descriptors()
    for _ in range(5):
        running.keeper.offer(material(server_pair(authority), authority))
    assert descriptors() == before
    assert await running.get(client_context(None, authority)) == "@anonymous"


def weak_material() -> Material:
    """A pair that holds together, but whose key OpenSSL finds too small."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    name, now = x509.Name([]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, now - DAY, now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Material((certificate,), certificate.public_bytes(Encoding.PEM), pem, None, "weak")


@on_both_loops
async def test_what_tls_does_not_take_is_never_in_use(
    running: Running, authority: Authority, metald: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    assert running.keeper.offer(weak_material())
    assert await running.get(client_context(metald, authority)) == 401, "TLS has not changed, but nobody is trusted"
    [line] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "too small" in line.getMessage() and "goes on" in line.getMessage()
    running.keeper.offer(material(server_pair(authority), authority))
    assert await running.get(client_context(metald, authority)) == URI
    weak = Keeper()
    weak.offer(weak_material())
    with pytest.raises(BadMaterial, match="too small"):
        ServerTls(weak)
    with pytest.raises(BadMaterial, match="too small"):
        await HttpServer(running.application, Http(port=0), weak).start()


def test_it_needs_material_to_begin_with() -> None:
    with pytest.raises(ValueError, match="no material"):
        ServerTls(Keeper())


# --- who takes too long, and who is too many ----------------------------------------


def client_hello(context: ssl.SSLContext) -> bytes:
    """How a handshake begins."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("how", ["silent", "slow", "half"])
@on_both_loops
async def test_a_handshake_that_does_not_end_is_cut(
    serve: Any, authority: Authority, metald: Pair, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    running = await serve(material(server_pair(authority), authority), 0.4)
    hello = client_hello(client_context(None, authority))
    begun = time.monotonic()
    _, reader, writer = await connected(running, None)
    ending = asyncio.create_task(rest_of(reader))
    if how == "half":
        writer.write(hello)
    await until(lambda: running.handshakes == 1, "it counts")
    for number in range(len(hello)):
        if how == "slow" and not ending.done():
            writer.write(hello[number : number + 1])
        await asyncio.wait([ending], timeout=0.02)
        if ending.done():
            break
    await ending
    assert 0.3 < time.monotonic() - begun < 5
    writer.close()
    await until(lambda: running.handshakes == 0, "its place is free")
    assert await running.get(client_context(metald, authority)) == URI
    assert "longer than 0.4 seconds" in caplog.text


@on_both_loops
async def test_who_only_shakes_hands_keeps_nobody_out(
    running: Running, authority: Authority, metald: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All places full of handshakes: the oldest goes, and a good client gets in."""
    monkeypatch.setattr(running.server._server, "_connections_max", 4)
    idle = [await connected(running, None) for _ in range(20)]
    await until(lambda: running.handshakes == 4, "four of them stay")
    ends = [asyncio.create_task(rest_of(reader)) for _, reader, _ in idle]
    await until(lambda: sum(end.done() for end in ends) == 16, "sixteen are dropped")
    assert not any(end.done() for end in ends[16:]), "the newest stay"
    for _ in range(6):
        assert await running.get(client_context(metald, authority)) == URI
    assert running.handshakes <= 4
    for _, _, writer in idle:
        writer.close()
    await asyncio.gather(*ends)
    await until(lambda: running.handshakes == 0, "all have gone")


@on_both_loops
async def test_open_connections_are_not_dropped_for_new_ones(
    running: Running, authority: Authority, metald: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.server._server, "_connections_max", 3)
    context = client_context(metald, authority)
    held = [await connected(running, context) for _ in range(3)]
    for _, reader, writer in held:
        assert await asked(reader, writer) == (200, URI)
    await running.refuses(context)
    for _, reader, writer in held:
        assert await asked(reader, writer) == (200, URI)
        writer.close()
    await until(lambda: running.open == 0, "the places are free")
    assert await running.get(context) == URI


@on_both_loops
async def test_a_connection_counts_once(
    running: Running, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is there a moment in which an open one could be dropped as a handshake."""
    counts: list[tuple[int, int]] = []
    make = GuardedProtocol.connection_made

    def counted(protocol: GuardedProtocol, transport: asyncio.Transport) -> None:
        counts.append((running.handshakes, running.open))
        make(protocol, transport)
        counts.append((running.handshakes, running.open))

    monkeypatch.setattr(GuardedProtocol, "connection_made", counted)
    assert await running.get(client_context(None, authority)) == "@anonymous"
    assert counts == [(1, 0), (0, 1)]


@on_both_loops
async def test_without_descriptors_it_waits_and_goes_on(
    running: Running, authority: Authority, metald: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    context = client_context(metald, authority)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = socket.socket()
    used = descriptors()
    holes = [os.dup(0) for _ in range(max(used) - len(used) + 3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max([*used, *holes]) + 1, hard))
    try:
        waiting.connect(("127.0.0.1", running.port))
        await until(lambda: "takes no connections for a moment" in caplog.text, "it says so")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for hole in holes:
            os.close(hole)
    assert await running.get(context) == URI
    await until(lambda: running.handshakes == 1, "who has waited is accepted too")
    waiting.close()


@on_both_loops
async def test_a_request_that_does_not_come_is_cut_over_tls_too(
    running: Running, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuardedProtocol, "request_seconds", 0.2)
    _, reader, writer = await connected(running, client_context(None, authority))
    assert await rest_of(reader) == b""
    writer.close()
    await until(lambda: running.open == 0, "the connection is cut")


# --- beginning and end ---------------------------------------------------------------


@on_both_loops
async def test_listening_comes_before_serving(authority: Authority) -> None:
    keeper = Keeper()
    server = HttpServer(lambda *_: None, Http(port=0, address="127.0.0.1"), keeper)
    port = server.listen()
    assert port == server.listen()
    with pytest.raises(StartError, match="Address already in use"):
        HttpServer(lambda *_: None, Http(port=port, address="127.0.0.1")).listen()
    with pytest.raises(ValueError, match="no material"):
        await server.start()
    keeper.offer(material(server_pair(authority), authority))
    assert await server.start() == port
    await server.stop(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1).close()


@on_both_loops
async def test_who_has_only_listened_stops_too() -> None:
    server = HttpServer(lambda *_: None, Http(port=0, address="127.0.0.1"))
    port = server.listen()
    await server.stop(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1).close()


@on_both_loops
async def test_a_stop_waits_for_nobody_who_has_asked_for_nothing(
    running: Running, authority: Authority, metald: Pair
) -> None:
    idle = [await connected(running, None) for _ in range(3)]
    _, reader, writer = await connected(running, client_context(metald, authority))
    assert await asked(reader, writer) == (200, URI)
    await until(lambda: running.handshakes == 3, "they are in their handshake")
    begun = time.monotonic()
    await running.server.stop(5)
    assert time.monotonic() - begun < 4
    assert running.handshakes == running.open == 0
    assert [await rest_of(reader) for _, reader, _ in idle] == [b""] * 3
    for _, _, opened in [*idle, (None, reader, writer)]:
        opened.close()


# --- the programs that operators use ---------------------------------------------------


async def run(*command: str, given: bytes = b"") -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(given), TIMEOUT)
    return process.returncode or 0, output.decode(errors="replace")


@pytest.fixture
def files(tmp_path: Path, authority: Authority, metald: Pair) -> dict[str, str]:
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    cert, key = metald.write(tmp_path, "metald")
    return {"ca": str(tmp_path / "ca.pem"), "cert": str(cert), "key": str(key)}


@on_both_loops
async def test_openssl_finds_it_as_it_should_be(running: Running, files: dict[str, str]) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    program: str = openssl

    async def client(*options: str, given: bytes = b"") -> str:
        place = ("-connect", f"127.0.0.1:{running.port}", "-CAfile", files["ca"])
        return (
            await run(program, "s_client", *place, "-cert", files["cert"], "-key", files["key"], *options, given=given)
        )[1]

    for version in ("-tls1_2", "-tls1_3"):
        for server_name in (("-noservername",), ("-servername", "localhost")):
            # -ign_eof: it stays until the server has answered and closed.
            asking = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            said = await client(version, "-alpn", "h2,http/1.1", "-ign_eof", *server_name, given=asking)
            assert "Verify return code: 0 (ok)" in said
            assert "ALPN protocol: http/1.1" in said
            assert f'"{URI}"' in said
            assert "New Session Ticket" not in said and "TLS session ticket" not in said
    refused = await client("-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in refused or "no protocols available" in refused
    # A line with an R asks for renegotiation, which would cost the server a handshake each.
    assert "no renegotiation" in (await client("-tls1_2", given=b"R\n")).lower()


@on_both_loops
async def test_curl_gets_in(running: Running, files: dict[str, str]) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    identity = ("--cert", files["cert"], "--key", files["key"])
    for shown, said in ((identity, URI), ((), "@anonymous")):
        code, output = await run(curl, "-sS", "--cacert", files["ca"], *shown, f"https://localhost:{running.port}/who")
        assert (code, json.loads(output)) == (0, said)
