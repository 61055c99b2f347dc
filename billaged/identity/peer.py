"""Who a peer's certificate says it is, and whether that still holds: asked on every RPC.

TLS verified the certificate when the connection began, against one flat pool of roots.
Since then it may have expired, or its CA may have been taken out (a resumed session brings
back both); and the pool lets a federated trust domain sign names of ours. So the
certificate is verified again, against the roots of the domain its name is in. The answer is
kept for as long as the trust stays the same: a certificate seen before costs a dict lookup.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NamedTuple

from cryptography import x509

from billaged.identity.keeper import Keeper
from billaged.identity.material import text
from billaged.identity.trust import ANY_DOMAIN, Trust
from billaged.identity.verification import verify
from billaged.model.errors import Unauthenticated
from billaged.model.time import NANOS

_KEPT_MAX: Final = 4096
_REFUSED_NANOS: Final = 5 * NANOS
_CHARACTERS_MAX: Final = 255
# What the SPIFFE standard allows for an ID.
_SPIFFE_ID_BYTES_MAX: Final = 2048


class Peer(NamedTuple):
    """``identity`` is what the policy and the journal know; it holds before ``valid_until_ns`` (Unix time)."""

    identity: str
    valid_until_ns: int


class _Refusal(NamedTuple):
    reason: str
    identity: str  # claimed, for the log; empty where there is none
    looked_ns: int  # when: one that is not valid yet may become so


class PeerVerifier:
    """Verifies against what ``keeper`` trusts now. Used by one thread."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._trust: Trust | None = None  # which the answers below hold for
        self._known: dict[tuple[bytes, bytes], Peer | _Refusal] = {}

    def verify(self, leaf: bytes, chain: bytes, now_ns: int) -> str:
        """The identity of who showed this certificate (PEM) and these intermediates (PEM, may be empty).

        Raises:
            Unauthenticated: it does not hold, or not any more.
        """
        material = self._keeper.material
        trust = material.trust if material is not None else None
        if trust is None:
            raise Unauthenticated("nobody's certificate is trusted here")
        if trust is not self._trust:
            self._trust = trust
            self._known.clear()
        known = self._known.get((leaf, chain))
        if isinstance(known, _Refusal) and now_ns - known.looked_ns > _REFUSED_NANOS:
            known = None
        if known is None:
            if len(self._known) >= _KEPT_MAX:
                # Short-lived certificates would otherwise add up for as long as the daemon runs.
                self._known.clear()
            known = self._known[leaf, chain] = _look(leaf, chain, trust, now_ns)
        if isinstance(known, _Refusal):
            raise Unauthenticated(known.reason, known.identity)
        if now_ns >= known.valid_until_ns:
            ended = text(datetime.fromtimestamp(known.valid_until_ns // NANOS, UTC))
            raise Unauthenticated(f"the certificate has expired at {ended}", known.identity)
        return known.identity


def _look(leaf_pem: bytes, chain_pem: bytes, trust: Trust, now_ns: int) -> Peer | _Refusal:
    identity = ""
    try:
        leaf = x509.load_pem_x509_certificate(leaf_pem)
        intermediates = x509.load_pem_x509_certificates(chain_pem) if chain_pem.strip() else []
        has_domains = ANY_DOMAIN not in trust.bundles
        identity, domain = spiffe_identity(leaf) if has_domains else (name_of(leaf), ANY_DOMAIN)
        roots = trust.roots_for(domain)
        if not roots:
            return _Refusal(f"the trust domain {domain} is not trusted here", identity, now_ns)
        until = verify(leaf, intermediates, roots, datetime.fromtimestamp(now_ns / NANOS, UTC))
    except Exception as error:  # noqa: BLE001 - a stranger's certificate may make its parser raise anything
        return _Refusal(f"the certificate does not hold: {error}", identity, now_ns)
    return Peer(identity, int(until.timestamp()) * NANOS)


def spiffe_identity(leaf: x509.Certificate) -> tuple[str, str]:
    """The SPIFFE ID of an X.509-SVID and the name of its trust domain.

    Raises:
        ValueError: it has no URI name or several, or its one is no SPIFFE ID of a workload.
    """
    uris = _names(leaf, x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError(f"it has {len(uris) or 'no'} URI names, a SPIFFE identity has one")
    if len(uris[0].encode()) > _SPIFFE_ID_BYTES_MAX:
        raise ValueError("its SPIFFE ID is too long")
    # Takes a fifth of a second to import, which the other modes need not wait for.
    from spiffe import SpiffeId
    from spiffe.errors import PySpiffeError

    try:
        parsed = SpiffeId(uris[0])
    except PySpiffeError as error:
        raise ValueError(str(error)) from error
    # One spelling for one identity: the library also takes upper case for lower.
    if str(parsed) != uris[0] or not parsed.path:
        raise ValueError(f"{printable(uris[0])} is no SPIFFE ID of a workload")
    return uris[0], parsed.trust_domain.name


def name_of(leaf: x509.Certificate) -> str:
    """The one URI name of a certificate, else its first DNS name.

    Raises:
        ValueError: it has several URI names, or neither, or one that could be mistaken for something else.
    """
    uris = _names(leaf, x509.UniformResourceIdentifier)
    if len(uris) > 1:
        raise ValueError(f"it has {len(uris)} URI names: which of them is meant?")
    names = uris or _names(leaf, x509.DNSName)
    if not names:
        raise ValueError("it has neither a URI nor a DNS name")
    name = names[0]
    # Names that begin with @ are ours, for callers without a certificate; and it ends up in logs and tables.
    if not name or name.startswith("@") or len(name) > _CHARACTERS_MAX or not name.isascii() or not name.isprintable():
        raise ValueError(f"{printable(name)} is no name for an identity")
    return name


def printable(name: str) -> str:
    """A name as a log may show it: bounded, on one line."""
    return "".join(character if character.isprintable() else "?" for character in name[:_CHARACTERS_MAX])


def _names(leaf: x509.Certificate, kind: type[x509.UniformResourceIdentifier] | type[x509.DNSName]) -> list[str]:
    try:
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return alternatives.get_values_for_type(kind)
