"""Certificates for tests: authorities, and what they sign, as PEM. All pass cryptography's default verifier."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True)
class Pair:
    """A certificate (with the intermediate ones that it needs) and its key, PEM."""

    cert: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        cert.write_bytes(self.cert)
        key.touch(mode=0o600)
        key.write_bytes(self.key)
        return cert, key

    @property
    def certificates(self) -> list[x509.Certificate]:
        """The own one, then those that signed it, without the root."""
        return x509.load_pem_x509_certificates(self.cert)

    @property
    def leaf(self) -> x509.Certificate:
        return self.certificates[0]


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def pem_of(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def lasting(seconds: float) -> datetime:
    """The first time a certificate can say (they know whole seconds) that is at least so far away."""
    return datetime.fromtimestamp(math.ceil(datetime.now(UTC).timestamp() + seconds), UTC)


class Authority:
    """A CA that signs what it is asked to: a root, or an intermediate one where it has an ``issuer``."""

    def __init__(
        self,
        name: str = "test authority",
        *,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        issuer: Authority | None = None,
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._issuer = issuer
        start = not_before or datetime.now(UTC) - 30 * DAY
        signer = issuer or self
        builder = _builder(self._name, signer._name, self.key, start, not_after)
        self.certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(signer._key_identifier(), critical=False)
            .sign(signer.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """This CA's own certificate: of a root, what a verifier trusts."""
        return pem_of([self.certificate])

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What stands behind a leaf that this CA signed: from this CA up, without the root."""
        return () if self._issuer is None else (self.certificate, *self._issuer.chain)

    def intermediate(self, name: str = "test intermediate", *, not_after: datetime | None = None) -> Authority:
        """A CA below this one; what it signs carries the chain."""
        return Authority(name, not_after=not_after, issuer=self)

    def sign(
        self,
        common_name: str,
        *,
        uris: tuple[str, ...] = (),
        names: tuple[str, ...] = (),
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        usages: tuple[x509.ObjectIdentifier, ...] = (SERVER, CLIENT),
    ) -> Pair:
        """A certificate for servers and clients alike; ``names`` are DNS names or IP addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        start = not_before or datetime.now(UTC) - 10 * DAY
        builder = (
            _builder(subject, self._name, key, start, not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        alternatives = [x509.UniformResourceIdentifier(uri) for uri in uris] + [_general_name(name) for name in names]
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return Pair(pem_of([builder.sign(self.key, hashes.SHA256()), *self.chain]), key_pem(key))

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())


class RotatingAuthority:
    """A CA that changes its key without a moment in which a verifier and a signer disagree.

    In this order, with time for everybody to learn the new ``pem`` in between: ``prepare``
    (the next is trusted), ``activate`` (the next signs), ``retire`` (only it is trusted).
    """

    def __init__(self, name: str = "test authority") -> None:
        self._name = name
        self._roots = [Authority(name)]  # the oldest first
        self._signing = 0

    @property
    def roots(self) -> tuple[Authority, ...]:
        """All that are trusted now, the oldest first."""
        return tuple(self._roots)

    @property
    def current(self) -> Authority:
        """The one that signs now."""
        return self._roots[self._signing]

    @property
    def pem(self) -> bytes:
        return b"".join(root.pem for root in self._roots)

    def prepare(self, *, not_after: datetime | None = None) -> None:
        self._roots.append(Authority(self._name, not_after=not_after))

    def activate(self) -> None:
        self._signing = len(self._roots) - 1

    def retire(self) -> None:
        """Trust only the one that signs, and what is prepared."""
        del self._roots[: self._signing]
        self._signing = 0

    def rotate(self) -> None:
        """Prepare and activate at once: the old one stays trusted until ``retire``."""
        self.prepare()
        self.activate()


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
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


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    not_before: datetime,
    not_after: datetime | None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after or datetime.now(UTC) + 30 * DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
