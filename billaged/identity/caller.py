"""The caller: the text that the journal keeps about who sent a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from billaged.identity.tls import ServerTls

PLAINTEXT: Final = "plaintext"
# TLS without a CA for callers: encrypted, but nobody has said who they are.
ANONYMOUS: Final = "tls"

_NAMES_KEPT_MAX: Final = 4096
_MAX_CHARACTERS: Final = 255


class Peer(Protocol):
    """What is asked of an RPC's context."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS knows about the peer."""


Caller = Callable[[Peer], str]


def caller_of(tls: ServerTls) -> Caller:
    """The way to name callers that fits how the server is secured."""
    if tls.credentials is None:
        return lambda peer: PLAINTEXT
    if not tls.requires_client_certificate:
        return lambda peer: ANONYMOUS
    return CertificateCaller()


class CertificateCaller:
    """Names a peer by its certificate: the first URI name, else the first DNS name, else the common name."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}  # by the peer's certificate, PEM

    def __call__(self, peer: Peer) -> str:
        facts = peer.auth_context()
        certificate = _first(facts, "x509_pem_cert")
        name = self._names.get(certificate)
        if name is None:
            if len(self._names) >= _NAMES_KEPT_MAX:
                # Short-lived certificates would otherwise add up for as long as the daemon runs.
                self._names.clear()
            name = self._names[certificate] = _name(facts)
        return name


def _name(facts: Mapping[str, Iterable[bytes]]) -> str:
    for key in ("peer_uri", "peer_dns", "x509_common_name"):
        value = _first(facts, key)
        if value:
            text = value.decode("utf-8", "backslashreplace")[:_MAX_CHARACTERS]
            # It ends up in logs and tables: nothing in it may look like the end of a line.
            return "".join(character if character.isprintable() else "?" for character in text)
    return ANONYMOUS


def _first(facts: Mapping[str, Iterable[bytes]], key: str) -> bytes:
    return next(iter(facts.get(key, ())), b"")
