"""`billaged certs dev`: certificates that every verifier takes, files that are nobody else's, commands that run."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result
from client_fixtures import BillingServer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store
from daemon_process import DaemonProcess
from spiffe import X509Svid
from tls_material import CLIENT, SERVER, Authority, key_pem

from billaged.cli.main import billaged
from billaged.identity.development.folder import make
from billaged.identity.development.minting import Minted, issue
from billaged.identity.development.wish import TRUST_DOMAIN, Pair, Wish
from billaged.identity.development.written import write, write_pair
from billaged.identity.keeper import Keeper
from billaged.identity.material import Material
from billaged.identity.peer import PeerVerifier
from billaged.identity.policy import Need, Role
from billaged.identity.policy_file import load
from billaged.identity.trust import ANY_DOMAIN, Trust
from billaged.model.errors import EXIT_USAGE, StartError, Unauthenticated
from billaged.model.time import NANOS
from billaged.settings import Settings

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
ALL = {f"{stem}.{suffix}" for stem in ("ca", "server", "metald", "operator") for suffix in ("pem", "key")} | {
    "policy.toml"
}
TIMEOUT_SECONDS = 60
PROGRAM = f"{shlex.quote(sys.executable)} -m billaged"  # what these tests have called
SERVER_ID = "spiffe://dev.billaged/billaged"


def certs(directory: Path, *arguments: str) -> Result:
    """The command; what billaged calls an error is raised."""
    return CliRunner().invoke(billaged, ["certs", "dev", "--dir", str(directory), *arguments], catch_exceptions=False)


def process(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "billaged", "certs", "dev", "--dir", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # A shell would break this name where it is not quoted.
    return tmp_path / "it's a dir"


@pytest.fixture
def made(folder: Path) -> Path:
    assert certs(folder, "--name", "billing.example.org", "--name", "192.0.2.7").exit_code == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def certificate(folder: Path, stem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{stem}.pem").read_bytes())


def names(folder: Path, stem: str) -> list[str]:
    found = certificate(folder, stem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in found.value]


def private_key(folder: Path, stem: str) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key((folder / f"{stem}.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


# --- the certificates ------------------------------------------------------------


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "deeper" / "certs"
    before = os.umask(0)
    try:
        certs(folder)
    finally:
        os.umask(before)
    assert set(contents(folder)) == ALL
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_certificates_say_what_they_are_for(made: Path) -> None:
    ca = certificate(made, "ca")
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    serials = set()
    for stem, usage in (("server", SERVER), ("metald", CLIENT), ("operator", CLIENT)):
        it = certificate(made, stem)
        serials.add(it.serial_number)
        extensions = it.extensions
        assert extensions.get_extension_for_class(x509.BasicConstraints).critical
        assert extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(False, None)
        assert extensions.get_extension_for_class(x509.KeyUsage).critical
        assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
        authority = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        subject = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert authority.key_identifier == subject.digest
        # Not NOW: that is when the tests were collected, which may be a while ago.
        now = datetime.now(UTC)
        assert timedelta(minutes=1) < now - it.not_valid_before_utc < timedelta(minutes=10)
        assert abs(it.not_valid_after_utc - now - 30 * DAY) < timedelta(minutes=5)
        key = private_key(made, stem)
        assert isinstance(key.curve, ec.SECP256R1)
        assert (made / f"{stem}.key").read_bytes() == key_pem(key), "PKCS#8"
        assert key.public_key() == it.public_key()
    assert len(serials) == 3 and min(serials) > 2**64


def test_names_are_those_of_the_daemon_and_of_the_clients(made: Path) -> None:
    server = names(made, "server")
    assert {"localhost", "billaged", "127.0.0.1", "::1", "billing.example.org", "192.0.2.7"} <= set(server)
    assert socket.gethostname().lower() in server
    assert names(made, "metald") == ["spiffe://dev.billaged/metald", "metald.dev.billaged"]


def test_each_has_one_spiffe_id_that_spiffe_libraries_take(made: Path) -> None:
    for stem, expected in (("server", SERVER_ID), ("metald", "spiffe://dev.billaged/metald")):
        pems = [(made / f"{stem}.{suffix}").read_bytes() for suffix in ("pem", "key")]
        assert str(X509Svid.parse(*pems).spiffe_id) == expected


@pytest.mark.parametrize("domain", [TRUST_DOMAIN, ANY_DOMAIN])
def test_the_server_is_no_caller_whatever_the_policy_says(made: Path, domain: str) -> None:
    """Its name fits `spiffe://dev.billaged/*` now, but its certificate is for servers only."""
    keeper = Keeper()
    trust = Trust({domain: (certificate(made, "ca"),)})
    pems = [(made / f"server.{suffix}").read_bytes() for suffix in ("pem", "key")]
    keeper.offer(Material((certificate(made, "server"),), *pems, trust, "server"))
    verifier, now_ns = PeerVerifier(keeper), int(NOW.timestamp()) * NANOS
    assert verifier.verify((made / "metald.pem").read_bytes(), b"", now_ns) == "spiffe://dev.billaged/metald"
    with pytest.raises(Unauthenticated, match="extended key usage") as refused:
        verifier.verify((made / "server.pem").read_bytes(), b"", now_ns)
    assert refused.value.identity == SERVER_ID


def test_the_strict_verifier_of_cryptography_takes_them(made: Path) -> None:
    builder = PolicyBuilder().store(Store([certificate(made, "ca")]))
    for stem in ("metald", "operator"):
        subjects = builder.build_client_verifier().verify(certificate(made, stem), []).subjects
        assert subjects is not None and subjects[0].value == f"spiffe://dev.billaged/{stem}"
    for name in names(made, "server"):
        if name == SERVER_ID:
            continue  # it checks DNS names and addresses only
        try:
            subject: x509.GeneralName = x509.IPAddress(ip_address(name))
        except ValueError:
            subject = x509.DNSName(name)
        assert builder.build_server_verifier(subject).verify(certificate(made, "server"), [])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on the PATH")
def test_openssl_takes_them(made: Path) -> None:
    def verify(stem: str, purpose: str, *options: str) -> int:
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, *options, "-CAfile", made / "ca.pem"]
        done = subprocess.run([*command, made / f"{stem}.pem"], capture_output=True, timeout=TIMEOUT_SECONDS)
        return done.returncode

    assert verify("server", "sslserver", "-verify_hostname", "billing.example.org") == 0
    assert verify("server", "sslserver", "-verify_ip", "::1") == 0
    assert verify("metald", "sslclient") == 0
    assert verify("metald", "sslserver") != 0
    assert verify("server", "sslclient") != 0
    assert verify("server", "sslserver", "-verify_hostname", "another.example.org") != 0


def test_the_policy_gives_what_the_names_promise(made: Path) -> None:
    policy = load(made / "policy.toml")
    given = {
        name: {role for role in Role if policy.grants_for(f"spiffe://dev.billaged/{name}", Need(role, True))}
        for name in ("metald", "operator", "another")
    }
    assert given["metald"] == {Role.INGEST}
    assert {Role.READ, Role.ADMIN} <= given["operator"]
    assert given["another"] == set()


# --- what is printed runs --------------------------------------------------------


def blocks(output: str) -> dict[str, str]:
    """The commands by the program they are for: the daemon with its environment, the sender, grpcurl."""
    kinds = {"serve": "export ", "send": f"{PROGRAM} send ", "grpcurl": "grpcurl "}
    return {kind: block for block in output.split("\n\n") for kind, start in kinds.items() if block.startswith(start)}


def test_the_environment_is_one_that_the_daemon_takes(folder: Path) -> None:
    output = certs(folder).stdout
    assert "For development only" in output
    exports, _, last = blocks(output)["serve"].rpartition("\n")
    assert last == f"{PROGRAM} serve"
    script = (
        f"{exports}\nexec {shlex.quote(sys.executable)} -c 'import os, sys; sys.stdout.write(repr(dict(os.environ)))'"
    )
    shown = subprocess.run(["sh", "-c", script], env=clean(), capture_output=True, text=True, check=True).stdout
    environment = eval(shown, {"__builtins__": {}})
    tls = Settings.load(environment).tls
    assert tls.mode == "file"
    assert (tls.cert_file, tls.key_file) == (folder / "server.pem", folder / "server.key")
    assert (tls.ca_file, tls.policy_file) == (folder / "ca.pem", folder / "policy.toml")


@pytest.mark.parametrize("is_found", [True, False])
def test_the_program_is_called_as_it_was(folder: Path, tmp_path: Path, is_found: bool) -> None:
    """By its path where the shell would not find it, or find another."""
    script = tmp_path / "a bin" / "billaged"
    other = tmp_path / "other" / "billaged"
    for path in (script, other):
        path.parent.mkdir()
        path.write_text(f"#!{sys.executable}\nfrom billaged.cli.main import main\nmain()\n")
        path.chmod(0o755)
    first = script.parent if is_found else other.parent
    environment = clean() | {"PATH": f"{first}{os.pathsep}{os.environ['PATH']}"}
    words = [script, "certs", "dev", "--dir", folder]
    output = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    expected = "billaged" if is_found else shlex.quote(str(script))
    assert f"\n{expected} serve\n" in output
    assert f"\n{expected} send heartbeat" in output


@pytest.fixture
def server() -> Iterator[BillingServer]:
    running = BillingServer()
    yield running
    running.stop()


def clean() -> dict[str, str]:
    """This process's environment without what billaged would read."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("UNKEY_", "BILLAGED_"))}


def shell(command: str, address: str) -> subprocess.CompletedProcess[str]:
    """Run a command as it was printed, only to a server on another port."""
    assert "127.0.0.1:8081" in command
    script = command.replace("127.0.0.1:8081", address)
    return subprocess.run(
        ["sh", "-c", script], env=clean(), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


def test_the_heartbeat_is_taken_over_mtls(folder: Path, server: BillingServer) -> None:
    heartbeat = blocks(certs(folder).stdout)["send"]
    key, cert, ca = ((folder / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem"))
    server.start(grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True))
    for host in ("127.0.0.1", "localhost"):
        done = shell(heartbeat, f"{host}:{server.port}")
        assert done.returncode == 0, done.stderr
    assert len(server.taken) == 2
    certs(folder.parent / "others")
    stranger = heartbeat.replace("metald.", "stranger.")
    for suffix in ("pem", "key"):
        shutil.copy(folder.parent / "others" / f"metald.{suffix}", folder / f"stranger.{suffix}")
    assert shell(stranger, server.address).returncode == 1, "a CA made in the same way is another CA"
    nobody = heartbeat.partition(" --tls-cert")[0]
    assert shell(nobody, server.address).returncode == 1, "a client without a certificate"
    assert len(server.taken) == 2


def daemon(output: str, data_dir: Path) -> DaemonProcess:
    """The daemon with the settings that were printed."""
    exports = blocks(output)["serve"].splitlines()[:-1]
    pairs = (shlex.split(line)[1].split("=", 1) for line in exports)
    settings = {name.removeprefix("UNKEY_BILLAGED_"): value for name, value in pairs} | {"DATA_DIR": str(data_dir)}
    return DaemonProcess(data_dir, settings)


def test_the_daemon_takes_the_heartbeat_of_whom_the_policy_knows(folder: Path, tmp_path: Path) -> None:
    output = certs(folder).stdout
    unknown = certs(folder, "--client", "another").stdout
    with daemon(output, tmp_path / "data") as running:
        done = shell(blocks(output)["send"], running.grpc_address)
        assert done.returncode == 0, done.stderr
        assert '"success": true' in done.stdout
        denied = shell(blocks(unknown)["send"], running.grpc_address)
        assert denied.returncode == 1 and "PERMISSION_DENIED" in denied.stderr


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="there is no grpcurl on the PATH")
def test_grpcurl_lists_the_daemons_services(folder: Path, tmp_path: Path) -> None:
    output = certs(folder).stdout
    with daemon(output, tmp_path / "data") as running:
        done = shell(blocks(output)["grpcurl"], running.grpc_address)
    assert done.returncode == 0, done.stderr
    assert "billing.v1.BillingService" in done.stdout


# --- what is there already -------------------------------------------------------


def test_a_second_run_changes_nothing(made: Path) -> None:
    before = contents(made)
    result = certs(made)
    assert contents(made) == before
    assert "made" not in {line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")}
    # This machine may be called something else by tomorrow: no reason to refuse.
    make(Wish(made, (), ("metald",), 30 * DAY), "another-host", NOW)
    assert contents(made) == before


def test_another_client_is_added_from_the_same_ca(made: Path) -> None:
    before = contents(made)
    result = certs(made, "--client", "another", "--client", "another")
    after = contents(made)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"another.pem", "another.key"}
    certificate(made, "another").verify_directly_issued_by(certificate(made, "ca"))
    assert "another.pem" in blocks(result.stdout)["send"]
    # What is printed for the policy can be put behind it as it is.
    assert "allows spiffe://dev.billaged/another nothing" in result.stdout
    block = next(block for block in result.stdout.split("\n\n") if block.startswith("[[allow]]"))
    with (made / "policy.toml").open("a") as file:
        file.write(f"\n{block}\n")
    policy = load(made / "policy.toml")
    assert policy.grants_for("spiffe://dev.billaged/another", Need(Role.INGEST))
    assert "nothing" not in certs(made, "--client", "another").stdout


def test_a_new_policy_knows_only_the_clients_that_were_asked_for(folder: Path) -> None:
    certs(folder, "--client", "another", "--client", "metald")
    policy = load(folder / "policy.toml")
    assert policy.grants_for("spiffe://dev.billaged/metald", Need(Role.INGEST))
    assert not policy.grants_for("spiffe://dev.billaged/another", Need(None))
    assert "another" in (folder / "policy.toml").read_text(), "as a comment"
    assert set(contents(folder)) == (ALL - {"operator.pem", "operator.key"}) | {"another.pem", "another.key"}


def test_a_policy_is_never_written_twice_and_a_broken_one_is_said(made: Path) -> None:
    (made / "policy.toml").write_text("[[allow]]\nmine = 1\n")
    result = certs(made, "--force")
    assert (made / "policy.toml").read_text() == "[[allow]]\nmine = 1\n"
    assert result.exit_code == 0 and "mine" in result.stdout


def test_force_makes_server_and_named_clients_anew_from_the_same_ca(made: Path) -> None:
    before = contents(made)
    certs(made, "--force", "--client", "metald", "--days", "3")
    after = contents(made)
    assert {name for name in before if before[name] != after[name]} == {
        "server.pem",
        "server.key",
        "metald.pem",
        "metald.key",
    }
    assert "billing.example.org" not in names(made, "server"), "it was not asked for this time"
    assert abs(certificate(made, "metald").not_valid_after_utc - NOW - 3 * DAY) < timedelta(minutes=2)


def break_expiry(folder: Path) -> None:
    make(Wish(folder, (), ("metald",), DAY, True), "host", NOW - 2 * DAY)


def break_half(folder: Path) -> None:
    (folder / "metald.key").unlink()


def break_key(folder: Path) -> None:
    shutil.copy(folder / "operator.key", folder / "metald.key")


def break_pem(folder: Path) -> None:
    (folder / "metald.pem").write_text("nothing")


def break_names(folder: Path) -> None:
    for suffix in ("pem", "key"):
        shutil.copy(folder / f"operator.{suffix}", folder / f"metald.{suffix}")


def break_signature(folder: Path) -> None:
    Authority("billaged development CA").sign("metald").write(folder, "metald")


def break_encryption(folder: Path) -> None:
    (folder / "metald.key").write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1()), b"passphrase"))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (break_expiry, r"metald.pem: has expired at 20"),
        (break_half, r"metald.pem: is there without its other half"),
        (break_key, r"metald.key: is not the key of metald.pem"),
        (break_pem, r"metald.pem: it or its key cannot be read"),
        (break_names, r"metald.pem: lacks spiffe://dev.billaged/metald"),
        (break_signature, r"metald.pem: was not signed by the CA in this directory"),
        (break_encryption, r"metald.pem: it or its key cannot be read"),
    ],
)
def test_what_is_wrong_is_refused_and_made_anew_only_by_force(made: Path, damage: object, problem: str) -> None:
    assert callable(damage)
    damage(made)
    before = contents(made)
    with pytest.raises(StartError, match=problem) as caught:
        certs(made, "--client", "metald", "--client", "new")
    assert "--force" in str(caught.value)
    assert contents(made) == before, "nothing is written, not even what could be"
    ca = before["ca.pem"]
    certs(made, "--client", "metald", "--force")
    assert (made / "ca.pem").read_bytes() == ca
    certs(made, "--client", "metald")


def test_a_server_name_that_is_asked_for_must_be_in_the_certificate(made: Path) -> None:
    before = contents(made)
    with pytest.raises(StartError, match=r"server\.pem: lacks new\.example\.org, 192\.0\.2\.8"):
        certs(made, "--name", "NEW.example.org", "--name", "192.0.2.8", "--name", "billing.example.org")
    assert contents(made) == before
    certs(made, "--name", "new.example.org", "--force")
    assert "new.example.org" in names(made, "server")


def test_a_server_without_its_spiffe_id_is_made_anew_only_by_force(made: Path) -> None:
    ca = Minted(certificate(made, "ca"), private_key(made, "ca"))
    only_dns = (x509.DNSName("localhost"),)
    before_ids = issue(Pair("server", only_dns, only_dns, SERVER), ca, NOW, DAY)
    write_pair(made, "server", before_ids, replace=True)
    with pytest.raises(StartError, match=rf"server\.pem: lacks {SERVER_ID}"):
        certs(made)
    certs(made, "--force")
    assert SERVER_ID in names(made, "server")


def test_nothing_outlives_the_ca_and_an_expired_one_is_replaced_by_force(folder: Path) -> None:
    wish = Wish(folder, (), ("metald", "operator"), 30 * DAY)
    make(wish, "host", NOW - 360 * DAY)
    make(Wish(folder, (), ("late",), 30 * DAY, True), "host", NOW)
    ca = certificate(folder, "ca")
    assert certificate(folder, "late").not_valid_after_utc == ca.not_valid_after_utc < NOW + 6 * DAY
    before = contents(folder)
    later = NOW + 10 * DAY
    with pytest.raises(StartError, match=r"ca\.pem: has expired"):
        make(wish, "host", later)
    assert contents(folder) == before
    lines = make(Wish(folder, (), ("metald",), 30 * DAY, True), "host", later)
    assert {line.files[0] for line in lines if line.made} == {"ca.pem", "server.pem", "metald.pem"}
    assert [line.files[0] for line in lines if "no longer good" in line.meaning] == ["late.pem", "operator.pem"]
    certificate(folder, "metald").verify_directly_issued_by(certificate(folder, "ca"))


def test_a_ca_holds_a_year_or_as_long_as_asked(folder: Path) -> None:
    certs(folder, "--days", "500")
    for stem in ("ca", "server"):
        assert abs(certificate(folder, stem).not_valid_after_utc - NOW - 500 * DAY) < timedelta(minutes=2)


# --- what is somebody else's -----------------------------------------------------


def foreign_pair(folder: Path) -> None:
    """A CA in good order, that is not ours."""
    authority = Authority("billaged development CA")
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "ca.key").write_bytes(key_pem(authority.key))


def foreign_key(folder: Path) -> None:
    certs(folder)
    (folder / "ca.key").write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1())))


def foreign_certificate(folder: Path) -> None:
    (folder / "ca.pem").write_bytes(Authority().pem)


def foreign_key_alone(folder: Path) -> None:
    (folder / "ca.key").write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1())))


def foreign_by_link(folder: Path) -> None:
    certs(folder.parent / "others")
    for name in ("ca.pem", "ca.key"):
        (folder / name).symlink_to(folder.parent / "others" / name)


def foreign_encrypted(folder: Path) -> None:
    certs(folder)
    key = private_key(folder, "ca")
    (folder / "ca.key").write_bytes(key_pem(key, b"passphrase"))


def foreign_signature(folder: Path) -> None:
    """A certificate that says it is ours, with its key, signed by another."""
    certs(folder)
    key = private_key(folder, "ca")
    ours = certificate(folder, "ca")
    builder = x509.CertificateBuilder(
        ours.issuer, ours.subject, key.public_key(), 1, ours.not_valid_before_utc, ours.not_valid_after_utc
    )
    signature = ours.signature_hash_algorithm
    assert isinstance(signature, x509.base._AllowedHashTypes)
    other = builder.sign(ec.generate_private_key(ec.SECP256R1()), signature)
    (folder / "ca.pem").write_bytes(other.public_bytes(Encoding.PEM))


@pytest.mark.parametrize(
    "foreign",
    [
        foreign_pair,
        foreign_key,
        foreign_certificate,
        foreign_key_alone,
        foreign_by_link,
        foreign_encrypted,
        foreign_signature,
    ],
)
@pytest.mark.parametrize("options", [[], ["--force"]])
def test_another_ca_is_neither_used_nor_overwritten(folder: Path, foreign: object, options: list[str]) -> None:
    folder.mkdir()
    assert callable(foreign)
    foreign(folder)
    before = contents(folder)
    with pytest.raises(StartError, match="is left alone"):
        certs(folder, *options, "--client", "new")
    assert contents(folder) == before


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/x",
        "a\\b",
        "a.b",
        "A",
        "ca",
        "server",
        "billaged",
        "a\n",
        "-a",
        "a-",
        "a b",
        "ä",
        "a\x1b[2J",
        "a" * 64,
    ],
)
def test_names_that_are_no_names_are_refused(folder: Path, name: str) -> None:
    result = certs(folder, "--client", "good", f"--client={name}")
    assert result.exit_code == 2 and "--client" in result.stderr
    assert "\x1b" not in result.stderr
    assert not folder.exists()
    with pytest.raises(StartError):
        make(Wish(folder, (), (name,), DAY), "host", NOW)


@pytest.mark.parametrize(
    "name", ["", "a b", "a..b", "-a", "a\n", "ä.example", "*", "a.*.b", "http://x", "x:80", "1.2.3.4/8"]
)
def test_server_names_that_are_no_names_are_refused(folder: Path, name: str) -> None:
    result = certs(folder, f"--name={name}")
    assert result.exit_code == 2 and "--name" in result.stderr
    assert not folder.exists()


def test_a_host_name_that_no_certificate_can_say_is_left_out(folder: Path) -> None:
    make(Wish(folder, ("*.example.org", "fe80::1%eth0"), ("metald",), DAY), "not_a.name", NOW)
    expected = {"localhost", "billaged", "127.0.0.1", "::1", "*.example.org", "fe80::1"}
    assert set(names(folder, "server")) == {SERVER_ID, *expected}


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_that_others_may_write_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(StartError, match="other users may write there"):
        certs(folder)
    assert contents(folder) == {}


def test_a_directory_that_is_there_is_left_as_it_is(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    certs(folder)
    assert folder.stat().st_mode & 0o777 == 0o755


# --- in a process of its own -----------------------------------------------------


def test_errors_are_lines_with_exit_code_2(folder: Path) -> None:
    folder.mkdir()
    (folder / "ca.key").touch()
    done = process(directory=folder)
    assert done.returncode == EXIT_USAGE
    assert done.stderr.startswith(f"billaged: error: {folder / 'ca.key'}: not a development CA")
    below_a_file = process(directory=folder / "ca.key" / "certs")
    assert below_a_file.returncode == EXIT_USAGE
    assert below_a_file.stderr.startswith("billaged: error: ") and "Traceback" not in below_a_file.stderr


def test_a_disk_that_is_full_leaves_no_half_of_a_file(folder: Path) -> None:
    words = [sys.executable, "-m", "billaged", "certs", "dev", "--dir", str(folder)]
    # No file may grow: the first write fails, as on a full disk.
    script = f"ulimit -f 0; exec {shlex.join(words)}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == EXIT_USAGE, done.stderr
    assert "File too large" in done.stderr
    assert contents(folder) == {}
    certs(folder)


def test_a_file_that_comes_at_the_last_moment_stays(tmp_path: Path) -> None:
    path = tmp_path / "ca.key"
    path.write_bytes(b"another's")
    with pytest.raises(FileExistsError):
        write(path, b"ours", replace=False)
    assert contents(tmp_path) == {"ca.key": b"another's"}
    write(path, b"ours", replace=True)
    assert contents(tmp_path) == {"ca.key": b"ours"}


def test_runs_at_the_same_time_do_not_mix_their_cas(folder: Path) -> None:
    words = [sys.executable, "-m", "billaged", "certs", "dev", "--dir", str(folder)]
    running = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(4)]
    outcomes = [(each.communicate(timeout=TIMEOUT_SECONDS)[1], each.returncode) for each in running]
    assert 0 in {code for _, code in outcomes}
    assert not any(b"Traceback" in output for output, _ in outcomes)
    assert set(contents(folder)) == ALL
    certs(folder)  # what is there is good
