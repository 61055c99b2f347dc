"""Trust: whose signature counts, for which part of the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

# Certificates from files know no trust domains: one pool signs for everybody.
ANY_DOMAIN: Final = ""


@dataclass(frozen=True, eq=False)
class Trust:
    """Root certificates by trust domain name; mode ``file`` has one pool under ``ANY_DOMAIN``."""

    bundles: Mapping[str, tuple[x509.Certificate, ...]]

    def roots_for(self, domain: str) -> tuple[x509.Certificate, ...]:
        """The roots that may sign for a trust domain; none for one that is unknown."""
        return self.bundles.get(domain, ())

    @cached_property
    def roots_pem(self) -> bytes:
        """All of them in one pool, as TLS takes it, in an order of their own: equal pools are equal bytes.

        TLS cannot tell the domains apart: who passes it must be verified again (``identity.peer``).
        """
        pems = {root.public_bytes(Encoding.PEM) for roots in self.bundles.values() for root in roots}
        return b"".join(sorted(pems))

    @cached_property
    def fingerprint(self) -> tuple[tuple[str, frozenset[bytes]], ...]:
        """Equal for equal trust, in whatever order it came."""
        return tuple(
            (domain, frozenset(root.public_bytes(Encoding.DER) for root in roots))
            for domain, roots in sorted(self.bundles.items())
        )
