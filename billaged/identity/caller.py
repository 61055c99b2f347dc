"""The caller of an RPC: the text that the policy decides about and the journal keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from billaged.identity.names import ANONYMOUS, PLAINTEXT
from billaged.identity.peer import PeerVerifier
from billaged.model.errors import Unauthenticated


class RpcPeer(Protocol):
    """What is asked of an RPC's context."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS knows about the peer."""


# Raises Unauthenticated for a certificate that does not hold (any more).
Caller = Callable[[RpcPeer], str]


def plaintext_caller(peer: RpcPeer) -> str:
    """Of a server without TLS."""
    return PLAINTEXT


def anonymous_caller(peer: RpcPeer) -> str:
    """Of a server that asks for no certificate."""
    return ANONYMOUS


class CertificateCaller:
    """Of a server with mTLS: verified with every call, by the clock of this moment."""

    def __init__(self, verifier: PeerVerifier, wall_nanos: Callable[[], int]) -> None:
        self._verifier = verifier
        self._wall_nanos = wall_nanos

    def __call__(self, peer: RpcPeer) -> str:
        facts = peer.auth_context()
        leaf = _first(facts, "x509_pem_cert")
        if not leaf:
            raise Unauthenticated("no certificate was shown")
        return self._verifier.verify(leaf, _first(facts, "x509_pem_cert_chain"), self._wall_nanos())


def _first(facts: Mapping[str, Iterable[bytes]], key: str) -> bytes:
    return next(iter(facts.get(key, ())), b"")
