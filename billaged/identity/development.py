"""Certificates for development: a CA of its own in a folder, what it signs, and a policy that knows them.

    DIR/ca.pem, ca.key            signs the others; this module never signs with a CA that it did not make
    DIR/server.pem, server.key    the daemon
    DIR/NAME.pem, NAME.key        a client, spiffe://dev.billaged/NAME
    DIR/policy.toml               what these may do; never written twice, for it is there to be edited

What is there and good is kept, what is there and wrong is refused unless it may be replaced.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from billaged.identity.material import text
from billaged.model.errors import StartError

TRUST_DOMAIN: Final = "dev.billaged"
ROLES: Final = {"metald": ("ingest",), "operator": ("read", "admin")}

_ORGANIZATION: Final = "billaged development only"
_SERVER_NAMES: Final = ("localhost", "billaged", "127.0.0.1", "::1")
_RESERVED: Final = ("ca", "server")
# Clocks differ a little between machines.
_BACKDATED: Final = timedelta(minutes=5)
_CA_LIFETIME_MIN: Final = timedelta(days=365)

_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_CLIENT_NAME: Final = re.compile(_LABEL)
_DNS_NAME: Final = re.compile(rf"(?=.{{1,253}}$)(\*\.)?{_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True)
class Wish:
    """What shall be there. ``server_names`` are DNS names or IP addresses beside those of this machine's loopback."""

    directory: Path
    server_names: tuple[str, ...]
    clients: tuple[str, ...]
    lifetime: timedelta
    replace: bool = False


class Line(NamedTuple):
    """What became of a pair, or of the policy: ``files`` are names in the directory."""

    files: tuple[str, ...]
    made: bool
    meaning: str
    valid_until: datetime | None


class _Signer(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class _Pair:
    """A certificate that shall be there: its file name without suffix, and the names it needs."""

    stem: str
    names: tuple[x509.GeneralName, ...]
    usage: x509.ObjectIdentifier


def client_id(name: str) -> str:
    """The SPIFFE ID of a client, which is what the policy knows it by."""
    return f"spiffe://{TRUST_DOMAIN}/{name}"


def client_name(name: str) -> str:
    """The name, if it can be that of a file, a DNS label and a part of a SPIFFE ID. Raises ValueError."""
    if not _CLIENT_NAME.fullmatch(name):
        raise ValueError(f"{name!r}: must be up to 63 lower case letters, digits and hyphens, no hyphen first or last")
    if name in _RESERVED:
        raise ValueError(f"{name!r}: {name}.pem is another certificate here")
    return name


def server_name(name: str) -> str:
    """The name as a DNS name (in lower case) or an IP address (without zone). Raises ValueError."""
    try:
        return str(ip_address(name.partition("%")[0]))
    except ValueError:
        if not _DNS_NAME.fullmatch(name.lower()):
            raise ValueError(f"{name!r}: is neither a DNS name nor an IP address") from None
    return name.lower()


def make(wish: Wish, host_name: str, now: datetime) -> list[Line]:
    """Make what is missing of the wish; ``now`` has a time zone. The server answers to ``host_name`` as well.

    Everything is looked at before anything is written.

    Raises:
        StartError: something that is there is in the way, a name is wrong, or the directory cannot be written.
    """
    try:
        clients = tuple(dict.fromkeys(map(client_name, wish.clients)))
        asked = tuple(dict.fromkeys(map(server_name, wish.server_names)))
    except ValueError as error:
        raise StartError(f"{error}.") from error
    try:
        return _make(wish, _server(asked, host_name), asked, clients, now)
    except OSError as error:
        raise StartError(f"{error.filename2 or error.filename or wish.directory}: {error.strerror}.") from error


def _server(asked: tuple[str, ...], host_name: str) -> _Pair:
    # A machine may be called what no certificate can say.
    own = (host_name.lower(),) if _DNS_NAME.fullmatch(host_name.lower()) else ()
    names = dict.fromkeys((*_SERVER_NAMES, *own, *asked))
    return _Pair("server", tuple(map(_general_name, names)), ExtendedKeyUsageOID.SERVER_AUTH)


def _client(name: str) -> _Pair:
    names = (x509.UniformResourceIdentifier(client_id(name)), x509.DNSName(f"{name}.{TRUST_DOMAIN}"))
    return _Pair(name, names, ExtendedKeyUsageOID.CLIENT_AUTH)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _make(wish: Wish, server: _Pair, asked: tuple[str, ...], clients: tuple[str, ...], now: datetime) -> list[Line]:
    directory = wish.directory
    _check_directory(directory)
    pairs = [server, *map(_client, clients)]
    found = _read_ca(directory)
    signer = found if found is not None and found.certificate.not_valid_after_utc > now else None
    problems = [] if signer or not found else [f"ca.pem: has expired at {text(found.certificate.not_valid_after_utc)}"]
    kept: dict[str, x509.Certificate] = {}
    for pair in pairs:
        # This machine may have another name by now; only what was asked for must be in a certificate that is there.
        needed = tuple(map(_general_name, asked)) if pair is server else pair.names
        outcome = _look(directory, pair, needed, signer, now)
        if isinstance(outcome, str):
            problems.append(outcome)
        elif outcome is not None and not wish.replace:
            kept[pair.stem] = outcome
    if problems and not wish.replace:
        listed = "\n".join(f"{directory}/{problem}" for problem in problems)
        raise StartError(
            f"{listed}\nNothing was written.", "--force makes these anew; another --dir leaves them alone."
        )

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = []
    if made_ca := signer is None:
        signer = _new_ca(now, max(wish.lifetime, _CA_LIFETIME_MIN))
        _write_pair(directory, "ca", signer.certificate, signer.key, replace=found is not None)
    lines.append(_line("ca", signer.certificate, "the CA", made=made_ca))
    for pair in pairs:
        certificate = kept.get(pair.stem)
        if certificate is None:
            certificate, key = _issue(pair, signer, now, wish.lifetime)
            _write_pair(directory, pair.stem, certificate, key, replace=wish.replace)
        lines.append(_line(pair.stem, certificate, ", ".join(_names(certificate)), made=pair.stem not in kept))
    lines.append(_policy(directory, clients))
    if made_ca and found is not None:
        lines += _orphans(directory, found)
    return lines


def _line(stem: str, certificate: x509.Certificate, meaning: str, *, made: bool) -> Line:
    return Line((f"{stem}.pem", f"{stem}.key"), made, meaning, certificate.not_valid_after_utc)


# --- what is there ---------------------------------------------------------------


def _check_directory(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise StartError(f"{directory}: is no directory.", "Name another with --dir.")
    # Whoever may write there may put a CA of his own in place of ours.
    if directory.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StartError(f"{directory}: other users may write there.", "chmod 700 it, or name another with --dir.")


def _read_ca(directory: Path) -> _Signer | None:
    """The CA that this module has made there earlier. Any other one is not touched, not even with ``replace``."""
    cert_path, key_path = directory / "ca.pem", directory / "ca.key"
    there = [path for path in (cert_path, key_path) if os.path.lexists(path)]
    if not there:
        return None
    others = StartError(
        f"{there[0]}: not a development CA that billaged made for this user, so it is left alone.",
        "Name another directory with --dir.",
    )
    if len(there) == 1 or any(path.is_symlink() or path.stat().st_uid != os.geteuid() for path in there):
        raise others
    try:
        certificate = x509.load_pem_x509_certificate(cert_path.read_bytes())
        key = load_pem_private_key(key_path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise others from error
    organizations = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    if organizations != [_ORGANIZATION] or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise others
    if key.public_key() != certificate.public_key() or not _signed_by(_Signer(certificate, key), certificate):
        raise others
    return _Signer(certificate, key)


def _look(
    directory: Path, pair: _Pair, needed: Iterable[x509.GeneralName], signer: _Signer | None, now: datetime
) -> x509.Certificate | str | None:
    """The certificate that is there and good; what is wrong with it, after its file's name; None where nothing is."""
    cert_path, key_path = directory / f"{pair.stem}.pem", directory / f"{pair.stem}.key"
    there = [path.name for path in (cert_path, key_path) if os.path.lexists(path)]
    if not there:
        return None
    if len(there) == 1:
        return f"{there[0]}: is there without its other half"
    try:
        certificate = x509.load_pem_x509_certificate(cert_path.read_bytes())
        key = load_pem_private_key(key_path.read_bytes(), None)
        belongs = key.public_key() == certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return f"{cert_path.name}: it or its key cannot be read as PEM"
    if not belongs:
        return f"{key_path.name}: is not the key of {cert_path.name}"
    if signer is None or not _signed_by(signer, certificate):
        return f"{cert_path.name}: was not signed by the CA in this directory"
    if certificate.not_valid_after_utc <= now:
        return f"{cert_path.name}: has expired at {text(certificate.not_valid_after_utc)}"
    has = _names(certificate)
    if missing := [str(name.value) for name in needed if str(name.value) not in has]:
        return f"{cert_path.name}: lacks {', '.join(missing)}"
    return certificate


def _orphans(directory: Path, old: _Signer) -> list[Line]:
    """What the CA before this one has signed and nobody made anew."""
    orphans = []
    for path in sorted(directory.glob("*.pem")):
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except ValueError:
            continue  # no certificate, so none of ours
        if _signed_by(old, certificate):
            orphans.append(Line((path.name,), False, "no longer good: the CA that signed it is replaced", None))
    return orphans


def _signed_by(signer: _Signer, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(signer.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


# --- what is made ----------------------------------------------------------------


def _new_ca(now: datetime, lifetime: timedelta) -> _Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own each: a verifier that trusts two of them knows which one to try.
    name = _subject(f"billaged development CA {secrets.token_hex(4)}")
    builder = _builder(name, name, key, key, now, now + lifetime).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    return _Signer(_key_usage(builder, authority=True).sign(key, hashes.SHA256()), key)


def _issue(
    pair: _Pair, signer: _Signer, now: datetime, lifetime: timedelta
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + lifetime, signer.certificate.not_valid_after_utc)
    builder = (
        _builder(_subject(pair.stem), signer.certificate.subject, key, signer.key, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([pair.usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(pair.names), critical=False)
    )
    return _key_usage(builder, authority=False).sign(signer.key, hashes.SHA256()), key


def _subject(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _key_usage(builder: x509.CertificateBuilder, *, authority: bool) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return builder.add_extension(usage, critical=True)


# --- files -----------------------------------------------------------------------


def _write_pair(
    directory: Path, stem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, *, replace: bool
) -> None:
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write(directory / f"{stem}.key", key_pem, replace=replace)
    _write(directory / f"{stem}.pem", certificate.public_bytes(Encoding.PEM), replace=replace)


def _write(path: Path, content: bytes, *, replace: bool) -> None:
    """All of it or nothing, mode 0600. A file that is there stays if it may not be replaced, even one just come."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        if replace:
            Path(temporary).replace(path)
        else:
            path.hardlink_to(temporary)
    finally:
        Path(temporary).unlink(missing_ok=True)


_POLICY_HEAD: Final = """\
# Who may do what: the identities that `billaged certs dev` has made. For development only.
# Nothing else is allowed. Check it with `billaged policy check`.
"""


def rule(client: str) -> str:
    """A client's rule in the policy, TOML."""
    roles = ", ".join(f'"{role}"' for role in ROLES.get(client, ("ingest",)))
    return f'[[allow]]\nidentity = "{client_id(client)}"\nroles = [{roles}]'


def _rule_or_comment(client: str) -> str:
    # What a client of another name may do is not ours to guess.
    lines = rule(client).splitlines()
    return "".join(f"{line}\n" if client in ROLES else f"# {line}\n" for line in lines)


def _policy(directory: Path, clients: tuple[str, ...]) -> Line:
    path = directory / "policy.toml"
    made = not os.path.lexists(path)
    if made:
        blocks = [_POLICY_HEAD, *map(_rule_or_comment, clients)]
        _write(path, "\n".join(blocks).encode(), replace=False)
    return Line((path.name,), made, "what the clients may do", None)
