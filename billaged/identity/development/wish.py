"""What shall be in the folder: the names of server and clients, and the certificates that carry them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

TRUST_DOMAIN: Final = "dev.billaged"

_SERVER: Final = "billaged"
_SERVER_NAMES: Final = ("localhost", "billaged", "127.0.0.1", "::1")
_RESERVED: Final = {
    "ca": "ca.pem is another certificate here",
    "server": "server.pem is another certificate here",
    # A client with this SPIFFE ID could pass for the server.
    _SERVER: "the server is called so",
}

_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_CLIENT_NAME: Final = re.compile(_LABEL)
_DNS_NAME: Final = re.compile(rf"(?=.{{1,253}}$)(\*\.)?{_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True)
class Wish:
    """What shall be there. ``server_names`` are DNS names or IP addresses beside those of this machine's loopback."""

    directory: Path
    server_names: tuple[str, ...]
    clients: tuple[str, ...]
    lifetime: timedelta
    replace: bool = False


@dataclass(frozen=True)
class Pair:
    """A certificate and its key: their file name without suffix, and what a new certificate says.

    One that is there already must have the ``needed`` names.
    """

    stem: str
    names: tuple[x509.GeneralName, ...]
    needed: tuple[x509.GeneralName, ...]
    usage: x509.ObjectIdentifier


def spiffe_id(name: str) -> str:
    """The SPIFFE ID of a client, which is what the policy knows it by, or of the server."""
    return f"spiffe://{TRUST_DOMAIN}/{name}"


def client_name(name: str) -> str:
    """The name, if it can be that of a file, a DNS label and a part of a SPIFFE ID. Raises ValueError."""
    if not _CLIENT_NAME.fullmatch(name):
        raise ValueError(f"{name!r}: must be up to 63 lower case letters, digits and hyphens, no hyphen first or last")
    if name in _RESERVED:
        raise ValueError(f"{name!r}: {_RESERVED[name]}")
    return name


def server_name(name: str) -> str:
    """The name as a DNS name (in lower case) or an IP address (without zone). Raises ValueError."""
    try:
        return str(ip_address(name.partition("%")[0]))
    except ValueError:
        if not _DNS_NAME.fullmatch(name.lower()):
            raise ValueError(f"{name!r}: is neither a DNS name nor an IP address") from None
    return name.lower()


def pairs(wish: Wish, host_name: str) -> tuple[Pair, ...]:
    """The server's, then the clients' in their order, each once.

    Raises:
        ValueError: a name is none.
    """
    clients = dict.fromkeys(map(client_name, wish.clients))
    asked = tuple(dict.fromkeys(map(server_name, wish.server_names)))
    return (_server(asked, host_name), *map(_client, clients))


def _server(asked: tuple[str, ...], host_name: str) -> Pair:
    # A machine may be called what no certificate can say.
    own = (host_name.lower(),) if _DNS_NAME.fullmatch(host_name.lower()) else ()
    identity = x509.UniformResourceIdentifier(spiffe_id(_SERVER))
    names = dict.fromkeys((*_SERVER_NAMES, *own, *asked))
    return Pair(
        "server",
        (identity, *map(_general_name, names)),
        # This machine may have another name by the next run: no reason to refuse what is there.
        (identity, *map(_general_name, asked)),
        ExtendedKeyUsageOID.SERVER_AUTH,
    )


def _client(name: str) -> Pair:
    names = (x509.UniformResourceIdentifier(spiffe_id(name)), x509.DNSName(f"{name}.{TRUST_DOMAIN}"))
    return Pair(name, names, names, ExtendedKeyUsageOID.CLIENT_AUTH)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
