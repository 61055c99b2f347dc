"""Trust domains for tests: they mint X.509-SVIDs and rotate their CAs as a SPIFFE server does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from tls_material import Authority, Pair, RotatingAuthority, lasting

# Clocks differ a little between machines, so an SVID is valid a little before it is minted.
BACKDATED = timedelta(seconds=10)


@dataclass(frozen=True)
class Svid:
    """An X.509-SVID with its key: PEM in ``pair``, DER as the Workload API carries it."""

    spiffe_id: str
    pair: Pair

    @cached_property
    def chain_der(self) -> bytes:
        """The leaf first, then the intermediate CAs, one behind the other."""
        return der_of(self.pair.certificates)

    @cached_property
    def key_der(self) -> bytes:
        """PKCS#8, unencrypted."""
        key = load_pem_private_key(self.pair.key, None)
        return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    @property
    def leaf(self) -> x509.Certificate:
        return self.pair.leaf


class TrustDomain:
    """A trust domain: ``example.org`` is its name, ``spiffe://example.org`` its id.

    It rotates as ``RotatingAuthority`` says: ``prepare``, ``activate``, ``retire``, or ``rotate``.
    """

    def __init__(self, name: str = "example.org") -> None:
        self.name = name
        self.authority = RotatingAuthority(f"CA of {name}")

    @property
    def id(self) -> str:
        return f"spiffe://{self.name}"

    def mint(
        self,
        path_or_id: str = "/billaged",
        *,
        names: tuple[str, ...] = (),
        ttl_seconds: float = 3600.0,
        intermediates: int = 0,
        more_uris: tuple[str, ...] = (),
    ) -> Svid:
        """An SVID of the path in this trust domain; a whole id is taken as it is, so that one can be forged.

        It is valid for at least ``ttl_seconds`` and at most a second longer, for certificates know whole
        seconds; with zero or less it has expired. ``names`` are DNS names or IP addresses,
        ``intermediates`` the number of CAs between the root and it, ``more_uris`` what makes it ambiguous.
        """
        spiffe_id = path_or_id if path_or_id.startswith("spiffe://") else self.id + path_or_id
        not_after = lasting(ttl_seconds) if ttl_seconds > 0 else datetime.now(UTC) + timedelta(seconds=ttl_seconds - 1)
        not_before = min(datetime.now(UTC), not_after) - BACKDATED
        signer: Authority = self.authority.current
        for level in range(intermediates):
            signer = signer.intermediate(f"intermediate CA {level + 1} of {self.name}")
        pair = signer.sign(
            spiffe_id.rpartition("/")[2],
            uris=(spiffe_id, *more_uris),
            names=names,
            not_before=not_before,
            not_after=not_after,
        )
        return Svid(spiffe_id, pair)

    @property
    def bundle_pem(self) -> bytes:
        """Every CA that is trusted now."""
        return self.authority.pem

    @property
    def bundle_der(self) -> bytes:
        """The same as the Workload API carries it."""
        return der_of(root.certificate for root in self.authority.roots)

    def prepare(self, *, ttl_seconds: float | None = None) -> None:
        """Trust a new CA that does not sign yet."""
        self.authority.prepare(not_after=None if ttl_seconds is None else lasting(ttl_seconds))

    def activate(self) -> None:
        """Sign with the newest CA; the old ones stay in the bundle."""
        self.authority.activate()

    def retire(self) -> None:
        """Take the CAs before the one that signs out of the bundle."""
        self.authority.retire()

    def rotate(self) -> None:
        """Sign with a new CA; the old ones stay in the bundle until ``retire``."""
        self.authority.rotate()


def der_of(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in certificates)
