"""The material of the tests themselves: certificates that hold, and an agent that SPIFFE's own library reads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from client_fixtures import wait_until
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.verification import ClientVerifier, PolicyBuilder, Store, VerificationError
from fake_workload_api import GARBAGE, STREAMS_MAX, FakeWorkloadApi, Refusal, Update
from spiffe import WorkloadApiClient, X509Source
from spiffe._proto import workload_pb2, workload_pb2_grpc
from spiffe.spiffe_id.spiffe_id import TrustDomain as SpiffeTrustDomain
from spiffe.workloadapi.errors import FetchX509SvidError, X509SourceError
from spiffe_material import Svid, TrustDomain
from tls_material import CLIENT, SERVER, Authority, Pair, RotatingAuthority, pem_of

TIMEOUT_SECONDS = 20.0
HEADER = (("workload.spiffe.io", "true"),)


@pytest.fixture
def domain() -> TrustDomain:
    return TrustDomain("example.org")


@pytest.fixture
def api(domain: TrustDomain) -> Iterator[FakeWorkloadApi]:
    with FakeWorkloadApi(Update.of(domain)) as running:
        yield running


@pytest.fixture
def source(api: FakeWorkloadApi) -> Iterator[X509Source]:
    with X509Source(socket_path=api.address, timeout_in_seconds=TIMEOUT_SECONDS) as opened:
        yield opened


def verifier(bundle_pem: bytes) -> ClientVerifier:
    """As strict as the library is if nobody says otherwise."""
    roots = x509.load_pem_x509_certificates(bundle_pem)
    return PolicyBuilder().store(Store(roots)).build_client_verifier()


def holds(pair: Pair, bundle_pem: bytes) -> bool:
    try:
        verifier(bundle_pem).verify(pair.leaf, pair.certificates[1:])
    except VerificationError:
        return False
    return True


def serial(source: X509Source) -> int:
    return int(source.get_x509_context().default_svid.leaf.serial_number)


# --- certificates ----------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_what_an_authority_signs_passes_the_strict_verifier(depth: int) -> None:
    root = signer = Authority()
    for _ in range(depth):
        signer = signer.intermediate()
    pair = signer.sign("it", uris=("spiffe://example.org/it",), names=("it.example.org", "127.0.0.1"))
    assert len(pair.certificates) == 1 + depth
    subjects = verifier(root.pem).verify(pair.leaf, pair.certificates[1:]).subjects
    assert subjects is not None
    assert [str(subject.value) for subject in subjects] == ["spiffe://example.org/it", "it.example.org", "127.0.0.1"]
    assert not holds(pair, Authority().pem), "another CA of the same name"
    if depth:
        assert not holds(Pair(pem_of([pair.leaf]), pair.key), root.pem), "its chain is gone"


def test_usages_and_times_are_kept_to() -> None:
    root = Authority()
    assert holds(root.sign("it", names=("it.example.org",), usages=(CLIENT,)), root.pem)
    assert not holds(root.sign("it", names=("it.example.org",), usages=(SERVER,)), root.pem)
    now = datetime.now(UTC)
    assert not holds(root.sign("it", names=("a.example.org",), not_after=now - timedelta(seconds=2)), root.pem)
    gone = root.intermediate(not_after=now - timedelta(seconds=2))
    assert not holds(gone.sign("it", names=("it.example.org",)), root.pem)


def test_an_authority_rotates_with_overlap() -> None:
    authority = RotatingAuthority()
    before, old = authority.pem, authority.current.sign("a", names=("a.b",))
    authority.prepare()
    prepared = authority.pem
    assert prepared.startswith(before) and prepared != before
    still_old = authority.current.sign("a", names=("a.b",))
    assert holds(still_old, before), "who has not learnt the new CA yet can still verify"
    authority.activate()
    new = authority.current.sign("a", names=("a.b",))
    assert not holds(new, before)
    assert holds(old, prepared) and holds(new, prepared)
    authority.retire()
    assert prepared.endswith(authority.pem) and len(authority.roots) == 1
    assert holds(new, authority.pem) and not holds(old, authority.pem)


@pytest.mark.parametrize("intermediates", [0, 1])
def test_an_svid_is_what_the_standard_says(domain: TrustDomain, intermediates: int) -> None:
    svid = domain.mint("/metald/host-1", names=("metald.example.org",), intermediates=intermediates)
    assert svid.spiffe_id == "spiffe://example.org/metald/host-1"
    assert holds(svid.pair, domain.bundle_pem)
    extensions = svid.leaf.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature
    assert not usage.value.key_cert_sign and not usage.value.crl_sign
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {SERVER, CLIENT}
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [svid.spiffe_id]
    assert names.get_values_for_type(x509.DNSName) == ["metald.example.org"]


@pytest.mark.parametrize("ttl_seconds", [0.1, 1, 5.5])
def test_an_svid_lives_as_long_as_asked_and_less_than_two_seconds_longer(
    domain: TrustDomain, ttl_seconds: float
) -> None:
    earliest = datetime.now(UTC) + timedelta(seconds=ttl_seconds)
    not_after = domain.mint(ttl_seconds=ttl_seconds).leaf.not_valid_after_utc
    assert earliest <= not_after < datetime.now(UTC) + timedelta(seconds=ttl_seconds + 1)


def test_svids_can_be_forged_ambiguous_or_expired(domain: TrustDomain) -> None:
    other = TrustDomain("partner.example")
    forged = other.mint("spiffe://example.org/metald")
    assert holds(forged.pair, other.bundle_pem) and holds(forged.pair, domain.bundle_pem + other.bundle_pem)
    assert not holds(forged.pair, domain.bundle_pem)
    names = domain.mint("/a", more_uris=("spiffe://example.org/b",)).leaf.extensions
    assert len(names.get_extension_for_class(x509.SubjectAlternativeName).value) == 2
    assert not holds(domain.mint(ttl_seconds=0).pair, domain.bundle_pem)
    assert not holds(domain.mint(ttl_seconds=-3600).pair, domain.bundle_pem)


# --- read by the library ---------------------------------------------------------


@pytest.mark.parametrize("intermediates", [0, 1])
def test_the_library_reads_svid_bundle_and_federated_bundles(domain: TrustDomain, intermediates: int) -> None:
    domain.rotate()
    partner = TrustDomain("partner.example")
    svid = domain.mint("/billaged", names=("billaged.example.org",), intermediates=intermediates)
    with (
        FakeWorkloadApi(Update.of(domain, svid, federated=(partner,))) as api,
        X509Source(socket_path=api.address, timeout_in_seconds=TIMEOUT_SECONDS) as source,
    ):
        context = source.get_x509_context()
        assert str(context.default_svid.spiffe_id) == "spiffe://example.org/billaged"
        assert context.default_svid.cert_chain == svid.pair.certificates
        spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        public = context.default_svid.private_key.public_key().public_bytes(*spki)
        assert public == svid.leaf.public_key().public_bytes(*spki)
        for trusted, count in ((domain, 2), (partner, 1)):
            bundle = context.x509_bundle_set.get_bundle_for_trust_domain(SpiffeTrustDomain(trusted.name))
            assert bundle is not None
            assert bundle.x509_authorities == set(x509.load_pem_x509_certificates(trusted.bundle_pem))
            assert len(bundle.x509_authorities) == count


def test_the_client_reads_several_svids_and_the_bundles(domain: TrustDomain) -> None:
    partner = TrustDomain("partner.example")
    update = Update.of(domain, domain.mint("/first"), domain.mint("/second"), federated=(partner,))
    with FakeWorkloadApi(update) as api, WorkloadApiClient(api.address) as client:
        assert [str(svid.spiffe_id) for svid in client.fetch_x509_svids(timeout=TIMEOUT_SECONDS)] == [
            "spiffe://example.org/first",
            "spiffe://example.org/second",
        ]
        bundles = client.fetch_x509_bundles(timeout=TIMEOUT_SECONDS).bundles
        assert {bundle.trust_domain.name for bundle in bundles} == {"example.org", "partner.example"}


def test_a_push_reaches_every_open_stream_and_those_that_come(
    api: FakeWorkloadApi, domain: TrustDomain, source: X509Source
) -> None:
    with X509Source(socket_path=api.address, timeout_in_seconds=TIMEOUT_SECONDS) as second:
        assert (api.streams_opened, api.streams_open) == (2, 2)
        updated = threading.Event()
        source.subscribe_for_updates(updated.set)
        domain.rotate()
        svid = domain.mint("/pushed")
        api.push(Update.of(domain, svid))
        assert updated.wait(TIMEOUT_SECONDS)
        wait_until(lambda: serial(second) == svid.leaf.serial_number, "the second source is told as well")
        assert serial(source) == svid.leaf.serial_number
    with X509Source(socket_path=api.address, timeout_in_seconds=TIMEOUT_SECONDS) as third:
        assert serial(third) == svid.leaf.serial_number
    api.wait_for_open_streams(1)


def test_set_is_for_new_streams_only(api: FakeWorkloadApi, domain: TrustDomain, source: X509Source) -> None:
    first, svid, last = serial(source), domain.mint("/new"), domain.mint("/last")
    heard: list[int] = []
    source.subscribe_for_updates(lambda: heard.append(serial(source)))
    api.set(Update.of(domain, svid))
    with X509Source(socket_path=api.address, timeout_in_seconds=TIMEOUT_SECONDS) as later:
        assert serial(later) == svid.leaf.serial_number != first
    api.push(Update.of(domain, last))
    wait_until(lambda: bool(heard), "the push arrives")
    assert heard == [last.leaf.serial_number], "and nothing came before it"


def test_the_agent_goes_away_and_comes_back(api: FakeWorkloadApi, domain: TrustDomain, source: X509Source) -> None:
    api.go_away()
    assert not api.socket_path.exists()
    assert api.streams_open == 0
    assert serial(source), "the source keeps what it has"
    svid, opened = domain.mint("/after"), api.streams_opened
    api.set(Update.of(domain, svid))
    api.go_away()
    api.come_back()
    api.come_back()
    api.wait_for_streams(opened + 1)
    wait_until(lambda: serial(source) == svid.leaf.serial_number, "the source connects again by itself")


def test_no_socket_is_told_at_once(api: FakeWorkloadApi) -> None:
    api.go_away()
    with pytest.raises(Exception, match="does not exist"):
        X509Source(socket_path=api.address, timeout_in_seconds=TIMEOUT_SECONDS)


def test_a_deaf_agent_takes_connections_and_answers_nothing(api: FakeWorkloadApi, source: X509Source) -> None:
    opened = api.streams_opened
    api.go_deaf()
    api.wait_for_connections(1)
    with pytest.raises(X509SourceError, match="Timeout"):
        X509Source(socket_path=api.address, timeout_in_seconds=0.2)
    assert api.streams_opened == opened
    api.come_back()
    api.wait_for_streams(opened + 1)
    assert not source.is_closed()


def test_an_agent_that_hangs_takes_streams_and_says_nothing(api: FakeWorkloadApi, domain: TrustDomain) -> None:
    api.hang()
    with pytest.raises(X509SourceError, match="Timeout"):
        X509Source(socket_path=api.address, timeout_in_seconds=0.2)
    assert api.streams_opened == 1
    api.wait_for_open_streams(0)
    sources: list[X509Source] = []
    opening = threading.Thread(target=lambda: sources.append(X509Source(socket_path=api.address)))
    opening.start()
    api.wait_for_streams(2)
    api.push(Update.of(domain))
    opening.join(TIMEOUT_SECONDS)
    assert serial(sources[0])
    sources[0].close()


BAD = {
    "garbage": Update.with_garbage,
    "no svids": Update.without_svids,
    "empty federated bundle": Update.with_empty_federated_bundle,
    "garbage for a bundle": lambda update: update.with_first(bundle=GARBAGE),
    "garbage for a key": lambda update: update.with_first(key=GARBAGE),
}


@pytest.mark.parametrize("how", BAD)
def test_one_bad_update_ends_the_librarys_source_for_good(
    api: FakeWorkloadApi, domain: TrustDomain, source: X509Source, how: str
) -> None:
    api.push(BAD[how](Update.of(domain)))
    wait_until(source.is_closed, "the source gives up")
    with pytest.raises(X509SourceError):
        source.get_x509_context()
    api.wait_for_open_streams(0)
    api.set(Update.of(domain))
    with X509Source(socket_path=api.address, timeout_in_seconds=TIMEOUT_SECONDS) as another:
        assert serial(another), "another one is served as before"


def test_the_library_takes_what_must_never_be_used(
    api: FakeWorkloadApi, domain: TrustDomain, source: X509Source
) -> None:
    expired = domain.mint("/expired", ttl_seconds=-60)
    api.push(Update.of(domain, expired))
    wait_until(lambda: serial(source) == expired.leaf.serial_number, "an expired one is taken")
    svid = domain.mint("/mismatched")
    api.push(Update.of(domain, svid).with_anothers_key())
    wait_until(lambda: serial(source) == svid.leaf.serial_number, "a key that does not match is taken")
    other = TrustDomain("partner.example").mint("spiffe://example.org/forged")
    api.push(Update.of(domain, other))
    wait_until(lambda: serial(source) == other.leaf.serial_number, "one that the bundle does not hold is taken")
    assert not source.is_closed()


def test_a_refusal_ends_streams_and_the_library_asks_again(
    api: FakeWorkloadApi, domain: TrustDomain, source: X509Source
) -> None:
    api.refuse()
    api.wait_for_streams(3)
    with pytest.raises(FetchX509SvidError, match=r"no identity issued.*PERMISSION_DENIED"):
        WorkloadApiClient(api.address).fetch_x509_svid(timeout=TIMEOUT_SECONDS)
    svid = domain.mint("/registered")
    api.push(Update.of(domain, svid))
    wait_until(lambda: serial(source) == svid.leaf.serial_number, "the source is served again")


def test_any_status_can_be_given(api: FakeWorkloadApi, source: X509Source) -> None:
    api.refuse(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no"))
    wait_until(source.is_closed, "the source does not ask again after this one")


# --- the protocol itself ---------------------------------------------------------


@pytest.mark.parametrize("metadata", [(), (("workload.spiffe.io", "yes"),), (("other", "true"),)])
@pytest.mark.parametrize("method", ["FetchX509SVID", "FetchX509Bundles"])
def test_calls_without_the_header_are_refused(api: FakeWorkloadApi, metadata: Any, method: str) -> None:
    with grpc.insecure_channel(f"unix:{api.socket_path}") as channel:
        request = getattr(workload_pb2, method.removeprefix("Fetch") + "Request")()
        fetch: Any = getattr(workload_pb2_grpc.SpiffeWorkloadAPIStub(channel), method)
        with pytest.raises(grpc.RpcError) as caught:
            next(fetch(request, metadata=metadata, timeout=TIMEOUT_SECONDS))
        status: Any = caught.value
        assert status.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (api.calls_without_header, api.streams_opened) == (1, 0)
        assert next(fetch(request, metadata=HEADER, timeout=TIMEOUT_SECONDS))


def test_jwt_is_switched_off(api: FakeWorkloadApi) -> None:
    with grpc.insecure_channel(f"unix:{api.socket_path}") as channel:
        stub: Any = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        with pytest.raises(grpc.RpcError, match="no JWT here"):
            stub.FetchJWTSVID(workload_pb2.JWTSVIDRequest(), metadata=HEADER, timeout=TIMEOUT_SECONDS)


def test_one_stream_too_many_is_refused_not_left_waiting(api: FakeWorkloadApi) -> None:
    with grpc.insecure_channel(f"unix:{api.socket_path}") as channel:
        stub: Any = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        streams = [
            stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=TIMEOUT_SECONDS)
            for _ in range(STREAMS_MAX)
        ]
        assert all(len(next(stream).svids) == 1 for stream in streams)
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            next(stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=TIMEOUT_SECONDS))
        for stream in streams:
            stream.cancel()
    api.wait_for_open_streams(0)


async def test_it_works_beside_an_event_loop(api: FakeWorkloadApi, domain: TrustDomain) -> None:
    async with grpc.aio.insecure_channel(f"unix:{api.socket_path}") as channel:
        stub: Any = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER)
        first = await asyncio.wait_for(stream.read(), TIMEOUT_SECONDS)
        assert first.svids[0].spiffe_id == domain.id + "/billaged"
        for path in ("/second", "/third"):
            api.push(Update.of(domain, domain.mint(path)))
            update = await asyncio.wait_for(stream.read(), TIMEOUT_SECONDS)
            assert update.svids[0].spiffe_id == domain.id + path
        api.go_away()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(stream.read(), TIMEOUT_SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, "as when an agent ends"


def test_the_socket_is_gone_after_the_end_and_the_path_may_be_given(tmp_path: Path, domain: TrustDomain) -> None:
    path = tmp_path / "a.sock"
    with FakeWorkloadApi(Update.of(domain), path) as api:
        assert path.is_socket() and api.address == f"unix://{path}"
    assert not path.exists()
    with FakeWorkloadApi() as api:
        made = api.socket_path
        assert made.is_socket()
    assert not made.parent.exists()
    with pytest.raises(ValueError, match="too long"):
        FakeWorkloadApi(None, tmp_path / ("a" * 120))


# --- a handshake with it ---------------------------------------------------------


def test_svids_make_a_handshake_over_a_rotation(domain: TrustDomain) -> None:
    """A server with an SVID of the old CA, a client with one of the new, each trusting the bundle."""
    server_svid = domain.mint("/billaged", names=("127.0.0.1",), intermediates=1)
    domain.rotate()
    client_svid = domain.mint("/metald")
    assert handshake(server_svid, client_svid, domain.bundle_pem) == [client_svid.spiffe_id.encode()]
    domain.retire()
    with pytest.raises(grpc.RpcError):
        handshake(server_svid, client_svid, domain.bundle_pem)


def handshake(server_svid: Svid, client_svid: Svid, bundle_pem: bytes) -> list[bytes]:
    """Who the server says has called."""
    callers: list[bytes] = []

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        callers.extend(context.auth_context()["peer_spiffe_id"])
        return request

    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("test", {"Say": grpc.unary_unary_rpc_method_handler(answer)})]
    )
    pair = server_svid.pair
    credentials = grpc.ssl_server_credentials([(pair.key, pair.cert)], bundle_pem, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    pair = client_svid.pair
    try:
        with grpc.secure_channel(
            f"127.0.0.1:{port}", grpc.ssl_channel_credentials(bundle_pem, pair.key, pair.cert)
        ) as channel:
            say: Any = channel.unary_unary("/test/Say", None, None)
            assert say(b"hello", timeout=TIMEOUT_SECONDS) == b"hello"
    finally:
        server.stop(0).wait()
    return callers
