"""TLS from files: what is refused at the start, who may connect, and who the journal says it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from door_fixtures import FilledFeed, RecordingIntake
from tls_material import DAY, Authority, Pair, key_pem

from billaged.doors.grpc_server import GrpcDoor
from billaged.identity.caller import CertificateCaller, caller_of
from billaged.identity.tls import server_tls
from billaged.model.errors import StartError
from billaged.settings import Grpc, Http, Tls
from billaged.web.server import check_plaintext

TIMEOUT = 10.0
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Files:
    """A server's certificate, key and CA in a folder, and the settings that name them."""

    def __init__(self, folder: Path, authority: Authority, pair: Pair | None = None) -> None:
        self.cert, self.key = (pair or authority.sign("server", names=("127.0.0.1", "localhost"))).write(folder, "it")
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(authority.pem)

    def settings(self, *, ca: bool = True) -> Tls:
        return Tls(mode="file", cert_file=self.cert, key_file=self.key, ca_file=self.ca if ca else None)


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Files:
    return Files(tmp_path, authority)


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    doors: list[GrpcDoor] = []

    async def run(tls_settings: Tls) -> tuple[int, RecordingIntake]:
        tls, intake = server_tls(tls_settings, NOW), RecordingIntake()
        settings = Grpc(port=0, address="127.0.0.1")
        doors.append(GrpcDoor(intake, FilledFeed(), settings, tls.credentials, caller_of(tls)))
        return await doors[-1].start(), intake

    yield run
    for door in doors:
        await door.stop(0)


async def call(port: int, roots: bytes | None, pair: Pair | None = None) -> bytes:
    """One heartbeat over TLS, or over plaintext where there are no roots."""
    if roots is None:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    else:
        key, cert = (pair.key, pair.cert) if pair else (None, None)
        channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(roots, key, cert))
    async with channel:
        rpc: Any = channel.unary_unary("/billing.v1.BillingService/SendHeartbeat", None, None)
        return await rpc(b"\x0a\x06host-1", timeout=TIMEOUT)


async def refused(port: int, roots: bytes | None, pair: Pair | None = None) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(port, roots, pair)
    return caught.value.code()


@pytest.mark.parametrize(
    ("names", "caller"),
    [
        ({"uris": ("spiffe://example.org/metald",), "names": ("metald.example.org",)}, "spiffe://example.org/metald"),
        ({"names": ("metald.example.org", "other.example.org")}, "metald.example.org"),
        ({}, "metald"),
    ],
)
async def test_mtls_names_the_caller(
    serve: Any, files: Files, authority: Authority, names: dict[str, Any], caller: str
) -> None:
    port, intake = await serve(files.settings())
    assert await call(port, authority.pem, authority.sign("metald", **names))
    assert [taken[2] for taken in intake.taken] == [caller]


async def test_mtls_refuses_everybody_else(serve: Any, files: Files, authority: Authority) -> None:
    port, intake = await serve(files.settings())
    stranger = Authority("somebody else's").sign("metald")
    expired = authority.sign("metald", not_after=NOW - DAY)
    for roots, pair in ((authority.pem, None), (authority.pem, stranger), (authority.pem, expired), (None, None)):
        assert await refused(port, roots, pair) is grpc.StatusCode.UNAVAILABLE
    assert intake.taken == []
    assert await call(port, authority.pem, authority.sign("metald")), "and goes on serving those it knows"


async def test_without_a_ca_tls_is_open_and_says_so(serve: Any, files: Files, authority: Authority) -> None:
    [warning] = server_tls(files.settings(ca=False), NOW).warnings
    assert "UNKEY_BILLAGED_TLS_CA_FILE" in warning
    port, intake = await serve(files.settings(ca=False))
    assert await call(port, authority.pem)
    assert [taken[2] for taken in intake.taken] == ["tls"]
    assert await refused(port, None) is grpc.StatusCode.UNAVAILABLE, "plaintext is never taken"
    assert await refused(port, Authority().pem) is grpc.StatusCode.UNAVAILABLE, "nor does a client trust another CA"


def test_disabled_is_plaintext_with_a_warning() -> None:
    tls = server_tls(Tls(mode="disabled"), NOW)
    assert tls.credentials is None
    assert "plaintext" in tls.warnings[0]
    assert caller_of(tls)(Facts({})) == "plaintext"


@pytest.mark.parametrize("there", [True, False])
def test_spiffe_refuses_and_never_falls_back(tmp_path: Path, there: bool) -> None:
    agent = tmp_path / "agent.sock"
    if there:
        agent.touch()
    with pytest.raises(StartError) as caught:
        server_tls(Tls(mode="spiffe", spiffe_socket=agent), NOW)
    text = str(caught.value)
    assert str(agent) in text and ("is there" if there else "was not found") in text
    assert "UNKEY_BILLAGED_TLS_MODE=file" in text


def test_a_good_pair_has_no_warnings(files: Files) -> None:
    tls = server_tls(files.settings(), NOW)
    assert tls.requires_client_certificate
    assert tls.warnings == ()


@pytest.mark.parametrize("which", ["cert", "key", "ca"])
def test_a_missing_file_is_named_with_its_setting(files: Files, which: str) -> None:
    path: Path = getattr(files, which)
    path.unlink()
    with pytest.raises(StartError, match=rf"UNKEY_BILLAGED_TLS_{which.upper()}_FILE: .*No such file") as caught:
        server_tls(files.settings(), NOW)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("which", "problem"), [("cert", "no certificate"), ("key", "no private key"), ("ca", "no cer")]
)
@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_pem_is_named(files: Files, which: str, problem: str, content: bytes) -> None:
    getattr(files, which).write_bytes(content)
    with pytest.raises(StartError, match=rf"UNKEY_BILLAGED_TLS_{which.upper()}_FILE: .*{problem}"):
        server_tls(files.settings(), NOW)


def test_a_directory_is_no_file(files: Files, tmp_path: Path) -> None:
    files.key = tmp_path
    with pytest.raises(StartError, match="Is a directory"):
        server_tls(files.settings(), NOW)


def test_another_key_is_refused(files: Files, authority: Authority) -> None:
    files.key.write_bytes(authority.sign("another").key)
    with pytest.raises(StartError, match="is not the key of the first certificate"):
        server_tls(files.settings(), NOW)


def test_a_chain_in_the_wrong_order_is_refused(files: Files, authority: Authority) -> None:
    files.cert.write_bytes(authority.pem + files.cert.read_bytes())
    with pytest.raises(StartError, match="must stand first"):
        server_tls(files.settings(), NOW)


def test_an_encrypted_key_is_refused(files: Files) -> None:
    files.key.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1()), b"passphrase"))
    with pytest.raises(StartError, match="the key is encrypted"):
        server_tls(files.settings(), NOW)


def test_time_makes_a_certificate_refused_and_warned_of(tmp_path: Path, authority: Authority) -> None:
    pair = authority.sign("server", not_before=NOW - DAY, not_after=NOW + 10 * DAY)
    settings = Files(tmp_path, authority, pair).settings()
    assert server_tls(settings, NOW).warnings == ()
    [warning] = server_tls(settings, NOW + 4 * DAY).warnings
    assert "expires at" in warning
    with pytest.raises(StartError, match="has expired at"):
        server_tls(settings, NOW + 11 * DAY)
    with pytest.raises(StartError, match="is not valid before"):
        server_tls(settings, NOW - 2 * DAY)


def test_a_ca_that_has_expired_is_refused(tmp_path: Path) -> None:
    gone = Authority(not_after=NOW - DAY)
    with pytest.raises(StartError, match=r"ca\.pem: every certificate in it has expired"):
        server_tls(Files(tmp_path, gone).settings(), NOW)


def test_a_key_that_all_can_reach_is_warned_of(files: Files) -> None:
    files.key.chmod(0o644)
    [warning] = server_tls(files.settings(), NOW).warnings
    assert str(files.key) in warning and "0600" in warning


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7", "billing.example.org"])
@pytest.mark.parametrize("mode", ["file", "spiffe"])
def test_http_beyond_loopback_is_refused_where_tls_is_asked_for(files: Files, address: str, mode: str) -> None:
    tls = files.settings() if mode == "file" else Tls(mode="spiffe")
    with pytest.raises(StartError, match=r"UNKEY_BILLAGED_HTTP_ADDRESS=.*127\.0\.0\.1"):
        check_plaintext(tls, Http(address=address))


@pytest.mark.parametrize(
    ("mode", "address"),
    [("spiffe", "127.0.0.1"), ("spiffe", "::1"), ("spiffe", "localhost"), ("disabled", "0.0.0.0")],
)
def test_http_is_allowed_on_loopback_or_without_tls(mode: Any, address: str) -> None:
    check_plaintext(Tls(mode=mode), Http(address=address))


class Facts:
    """What gRPC knows about a peer."""

    def __init__(self, facts: dict[str, list[bytes]]) -> None:
        self.facts = facts

    def auth_context(self) -> dict[str, list[bytes]]:
        return self.facts


def test_a_callers_name_can_break_no_line_and_is_bounded() -> None:
    caller = CertificateCaller()
    assert caller(Facts({"x509_pem_cert": [b"1"], "x509_common_name": [b"a\nb\xff"]})) == "a?b\\xff"
    assert len(caller(Facts({"x509_pem_cert": [b"2"], "x509_common_name": [b"a" * 9000]}))) == 255
    assert caller(Facts({"x509_pem_cert": [b"3"]})) == "tls"


def test_names_are_kept_by_certificate_and_not_for_ever() -> None:
    caller = CertificateCaller()
    for number in range(10_000):
        name = b"host-%d" % number
        assert caller(Facts({"x509_pem_cert": [name], "peer_dns": [name]})) == name.decode()
    assert len(caller._names) < 5_000
    # The certificate is what counts: the same one is not looked at twice.
    assert caller(Facts({"x509_pem_cert": [b"host-9999"], "peer_dns": [b"another"]})) == "host-9999"
