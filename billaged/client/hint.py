"""What may help with a call that failed.

A server that refuses a certificate closes the connection and says nothing, so gRPC knows only
"Socket closed": what this side shows and expects tells more.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from billaged.client.tls import Tls, identity_of
from billaged.identity.material import Material, text

# How gRPC begins what it says when there is no connection, as opposed to one that broke.
_NO_CONNECTION: Final = "failed to connect to all addresses"
_CLOSED: Final = ("Socket closed", "reset by peer", "Broken pipe", "Connection aborted", "EOF")
_CLOSED_ON_US: Final = "It took the connection and closed it, as a server does that"


class View:
    """What this side knows of its own connection when a call on it fails."""

    def __init__(self, address: str, tls: Tls | None, material: Material | None, now: datetime) -> None:
        self._address = address
        self._tls = tls
        self._material = material
        self._now = now

    def hint(self, code: str, details: str) -> str:
        """What to look at, in whole sentences; empty where nothing is known."""
        if code == "PERMISSION_DENIED":
            return f"That server's policy would have to allow this to {self._shown()}, for these ids{self._unless()}."
        if code == "UNAUTHENTICATED":
            return self._expired() or self._unproved() or f"It does not accept the certificate of {self._shown()}."
        if code != "UNAVAILABLE" or _NO_CONNECTION not in details:
            return ""
        return self._about_the_server(details) or self._about_us(details)

    def _about_the_server(self, details: str) -> str:
        if "Connection refused" in details or "No such file" in details:
            return "Nothing listens there: is billaged running, and is --address right?"
        if "http1" in details or "Failed parsing HTTP/2" in details:
            return "What answers there speaks no gRPC: is --address the gRPC port, not the HTTP port?"
        if self._tls is None or self._material is None:
            return ""
        if "WRONG_VERSION_NUMBER" in details:
            return "What answers there speaks no TLS: is --address right, and is the server set to use TLS?"
        if "Hostname Verification Check failed" in details:
            name = self._tls.server_name or _host(self._address)
            return (
                f"The server's certificate is not for {name}: --tls-server-name expects another DNS name, "
                "and the certificate must have that name."
            )
        if "CERTIFICATE_VERIFY_FAILED" in details:
            if "expired" in details or "not yet valid" in details:
                return "The server's certificate does not hold at this time: renew it, or set this machine's clock."
            return f"The server's certificate is not signed by {self._tls.trusted(self._material)}."
        return ""

    def _about_us(self, details: str) -> str:
        if not any(words in details for words in _CLOSED):
            return ""
        if self._tls is None:
            return (
                f"{_CLOSED_ON_US} wants TLS: give --spiffe-socket, or --tls-ca "
                "(and --tls-cert with --tls-key, if it asks for a certificate)."
            )
        return (
            self._expired()
            or self._unproved()
            or f"{_CLOSED_ON_US} does not trust the certificate of {self._shown()}: is its CA among the server's?"
        )

    def _expired(self) -> str:
        until = self._material.valid_until if self._material is not None else None
        if until is None or until > self._now:
            return ""
        return f"This client's certificate has expired at {text(until)}: renew it."

    def _unproved(self) -> str:
        if self._material is not None and self._material.chain:
            return ""
        return f"{_CLOSED_ON_US} asks for a certificate: give --tls-cert and --tls-key, or --spiffe-socket."

    def _unless(self) -> str:
        if self._material is None or not self._material.chain:
            return ""
        return " (or to @anonymous, if it asks nobody for a certificate)"

    def _shown(self) -> str:
        if self._tls is None:
            return "callers without TLS (@plaintext)"
        if self._material is None or not self._material.chain:
            return "callers without a certificate (@anonymous)"
        return identity_of(self._material) or self._material.name


def _host(address: str) -> str:
    # What gRPC expects of a unix socket's server.
    return "localhost" if address.startswith("unix:") else address.rpartition(":")[0].strip("[]")
