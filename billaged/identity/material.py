"""Material: a certificate with its key and the trust that came with it, checked before it is used.

gRPC accepts a wrong pair or an expired certificate silently and then refuses every
connection without a word; here each of these is refused with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from billaged.identity.trust import Trust
from billaged.model.errors import StartError

_BEGIN = b"-----BEGIN CERTIFICATE-----"


class BadMaterial(StartError):
    """Certificate, key or roots that must not be used; the message says why, and what to do."""


@dataclass(frozen=True, eq=False)
class Material:
    """What one side shows of itself, and whom it trusts.

    ``chain`` is the own certificate first, then those that signed it, as ``chain_pem``; both
    are empty for a client that shows none. ``trust`` None: a server asks no caller for a
    certificate, a client trusts the system's roots.
    """

    chain: tuple[x509.Certificate, ...]
    chain_pem: bytes
    key_pem: bytes
    trust: Trust | None
    name: str

    @property
    def leaf(self) -> x509.Certificate | None:
        return self.chain[0] if self.chain else None

    @cached_property
    def valid_until(self) -> datetime | None:
        """When the first certificate of the chain ends; None without one."""
        return min((certificate.not_valid_after_utc for certificate in self.chain), default=None)

    @property
    def valid_from(self) -> datetime | None:
        return self.chain[0].not_valid_before_utc if self.chain else None

    def same_as(self, other: Material) -> bool:
        """Whether using the one instead of the other changes nothing."""
        mine, theirs = (
            (material.chain_pem, material.key_pem, material.trust.fingerprint if material.trust else None)
            for material in (self, other)
        )
        return mine == theirs

    def check(self, now: datetime) -> None:
        """Raises BadMaterial unless all of it can be used at this time (with a time zone)."""
        for certificate in self.chain:
            if certificate.not_valid_after_utc <= now:
                raise BadMaterial(
                    f"{self.name}: the certificate has expired at {text(certificate.not_valid_after_utc)}.", "Renew it."
                )
            if certificate.not_valid_before_utc > now:
                raise BadMaterial(
                    f"{self.name}: the certificate is not valid before {text(certificate.not_valid_before_utc)}.",
                    "Check this machine's clock.",
                )
        if self.chain:
            self._check_pair(self.chain[0])
        if self.trust is not None and not any(
            root.not_valid_after_utc > now for roots in self.trust.bundles.values() for root in roots
        ):
            raise BadMaterial(
                f"{self.name}: every CA certificate has expired, or there is none: nobody could connect.", "Renew them."
            )

    def _check_pair(self, leaf: x509.Certificate) -> None:
        key = load_pem_private_key(self.key_pem, password=None)
        spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if key.public_key().public_bytes(*spki) != leaf.public_key().public_bytes(*spki):
            raise BadMaterial(
                f"{self.name}: the key is not that of the first certificate.",
                "The own certificate must stand first, before those that signed it.",
            )


def certificates(pem: bytes, what: str) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM file. Raises BadMaterial where it holds none, or a part of one."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise BadMaterial(f"{what} holds no certificate in PEM form.") from error
    if pem.count(_BEGIN) != len(found):
        # A file that is being written: what is there so far would pass for a shorter chain.
        raise BadMaterial(f"{what} ends within a certificate.", "Write it under another name and rename it.")
    return tuple(found)


def private_key_pem(pem: bytes, what: str) -> bytes:
    """The key file as it is, if it holds a key that can be used. Raises BadMaterial."""
    try:
        load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise BadMaterial(f"{what}: the key is encrypted.", "Give one without a passphrase, mode 0600.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadMaterial(f"{what} holds no private key in PEM form that can be used.") from error
    return pem


def as_pem(chain: tuple[x509.Certificate, ...], key: PrivateKeyTypes) -> tuple[bytes, bytes]:
    """Chain and key as TLS libraries take them."""
    chain_pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
    return chain_pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def text(moment: datetime) -> str:
    """A time as messages show it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
