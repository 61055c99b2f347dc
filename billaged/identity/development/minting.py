"""Minting: a new CA, and the certificates that it signs."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from billaged.identity.development.wish import Pair

# By which a CA of ours is told from another.
ORGANIZATION: Final = "billaged development only"

# Clocks differ a little between machines.
_BACKDATED: Final = timedelta(minutes=5)
_CA_LIFETIME_MIN: Final = timedelta(days=365)


class Minted(NamedTuple):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def signed(self, certificate: x509.Certificate) -> bool:
        """Whether this one is the CA that signed it."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def new_ca(now: datetime, lifetime: timedelta) -> Minted:
    """A CA that signs for a year, or for ``lifetime`` if that is longer."""
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own each: a verifier that trusts two of them knows which one to try.
    name = _subject(f"billaged development CA {secrets.token_hex(4)}")
    builder = _builder(name, name, key, key, now, now + max(lifetime, _CA_LIFETIME_MIN)).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    return Minted(_key_usage(builder, authority=True).sign(key, hashes.SHA256()), key)


def issue(pair: Pair, ca: Minted, now: datetime, lifetime: timedelta) -> Minted:
    """A new certificate of the CA, which it does not outlive."""
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + lifetime, ca.certificate.not_valid_after_utc)
    builder = (
        _builder(_subject(pair.stem), ca.certificate.subject, key, ca.key, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([pair.usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(pair.names), critical=False)
    )
    return Minted(_key_usage(builder, authority=False).sign(ca.key, hashes.SHA256()), key)


def _subject(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
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
