"""Listening sockets, and a clear word where one cannot be had."""

from __future__ import annotations

import ipaddress
import resource
import socket
from typing import Final, NamedTuple

from billaged.model.errors import StartError

GRPC_PORT: Final = "UNKEY_BILLAGED_PORT"
GRPC_ADDRESS: Final = "UNKEY_BILLAGED_ADDRESS"
HTTP_PORT: Final = "UNKEY_BILLAGED_HTTP_PORT"
HTTP_ADDRESS: Final = "UNKEY_BILLAGED_HTTP_ADDRESS"

_BACKLOG: Final = 1024
# Files that the daemon may have open itself: databases with their logs, segments, sockets, a thread's pipes.
_OWN_FILES: Final = 96


def open_socket(address: str, port: int, port_variable: str, address_variable: str) -> socket.socket:
    """A listening TCP socket; port 0 takes any free one.

    Raises:
        StartError: it cannot be had; the message names host, port and the setting to change.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise cannot_listen(address, port, port_variable, address_variable, error) from error
    listening = socket.socket(family, kind, protocol)
    try:
        # Connections of a daemon that has just ended must not keep the next one out.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise cannot_listen(address, port, port_variable, address_variable, error) from error
    return listening


def cannot_listen(address: str, port: int, port_variable: str, address_variable: str, error: Exception) -> StartError:
    """The error of a daemon that cannot have its place."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return StartError(
        f"cannot listen on {join(address, port)}: {reason}.",
        f"Stop what listens there, or set {port_variable} (or {address_variable}) to another.",
    )


class Room(NamedTuple):
    """How many connections each server may have."""

    grpc: int
    http: int


def room_for_connections(grpc_wanted: int, http_wanted: int) -> Room:
    """What this process's limit of open files leaves for connections, which are files too.

    Takes the limit up as far as it goes. Journal, ledger and logs come first: a daemon that
    cannot open them any more because strangers are connected would be the end of it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return Room(grpc_wanted, http_wanted)
    free = max(0, hard - _OWN_FILES)
    http = min(http_wanted, max(1, free // 4))
    return Room(min(grpc_wanted, max(1, free - http)), http)


def join(address: str, port: int) -> str:
    """``host:port``, with brackets where the host is an IPv6 address."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address; a name other than localhost might be anything."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"
