"""TLS of the HTTP server, by Python's own ssl, changed while it runs.

A context for all connections would not do: OpenSSL keeps the sessions of TLS 1.2 in the
context that a connection begins with, where Python can neither turn that off nor clear it.
Whoever has been there once would get in again after their CA was taken out. So each
connection begins with a bare context of its own, which knows no sessions and goes away with
it, and takes certificate, key and roots from the shared one as the handshake begins. The
bare one costs 0.15 ms and 13 KB, a whole one a millisecond and a file.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from typing import Final

from billaged.identity.keeper import Keeper
from billaged.identity.material import BadMaterial, Material

_log: Final = logging.getLogger("billaged.identity")

# Forward secret and authenticated; TLS 1.3 has no others.
_TLS_1_2_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_PROTOCOLS: Final = ("http/1.1",)


class ServerTls:
    """Follows the keeper, which has material: what begins from now on gets the newest."""

    def __init__(self, keeper: Keeper) -> None:
        """
        Raises:
            BadMaterial: TLS does not take what the keeper has.
        """
        material = keeper.material
        if material is None:
            raise ValueError("the keeper has no material yet")
        self._keeper = keeper
        self._lock = threading.Lock()  # one renewal at a time, so that the last one takes the newest
        self._used = material
        self._shared = _shared(material)  # replaced as a whole
        keeper.listen(self._renew)
        self._renew()  # it may have changed since it was read

    def context(self) -> ssl.SSLContext:
        """A server's context for one new connection, and for that one only."""
        shared = self._shared
        # How it verifies is settled before it takes the shared context, whose roots it verifies with.
        context = _bare(shared.verify_mode)

        def take(connection: ssl.SSLObject, name: str | None, begun_with: ssl.SSLContext) -> None:
            connection.context = shared

        # OpenSSL asks here whether the client names a server or not.
        context.sni_callback = take
        return context

    def _renew(self) -> None:
        """On the thread that offers material: loading it takes a moment, which is not the event loop's."""
        with self._lock:
            material = self._keeper.material
            if material is None or material is self._used:
                return
            try:
                self._shared = _shared(material)
            except BadMaterial as error:
                _log.error("HTTP goes on with the certificate it has: %s", error)
                return
            self._used = material


def _shared(material: Material) -> ssl.SSLContext:
    """The context that has certificate, key and roots. Raises BadMaterial where OpenSSL does not take them."""
    context = _bare(ssl.CERT_NONE if material.trust is None else ssl.CERT_OPTIONAL)
    context.set_alpn_protocols(_PROTOCOLS)
    try:
        _load(context, material.chain_pem, material.key_pem)
        if material.trust is not None:
            context.load_verify_locations(cadata=material.trust.roots_pem.decode("ascii"))
    except OSError as error:  # ssl.SSLError is one
        raise BadMaterial(f"{material.name}: TLS does not take the certificate or its key: {error}.") from error
    return context


def _bare(verify_mode: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS_1_2_CIPHERS)
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.verify_mode = verify_mode
    # As gRPC and our own verification do: what is trusted is trusted, self-signed or not.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _load(context: ssl.SSLContext, chain_pem: bytes, key_pem: bytes) -> None:
    # Python's ssl reads keys from files only: from one that has no name and is in memory.
    file = os.memfd_create("billaged-tls", os.MFD_CLOEXEC)
    with os.fdopen(file, "wb") as stream:
        stream.write(chain_pem + b"\n" + key_pem)
        stream.flush()
        context.load_cert_chain(f"/proc/self/fd/{file}")
