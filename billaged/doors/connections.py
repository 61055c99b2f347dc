"""How many connections one caller uses: gRPC tells of none that opens or closes, only of each RPC's peer.

So a connection counts from its first RPC on, and until the kernel does not know it any
more. The kernel is asked only when a caller seems to have too many.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from billaged.model.errors import Overloaded
from billaged.model.time import NANOS

MAX_CONNECTIONS_PER_IDENTITY: Final = "UNKEY_BILLAGED_MAX_CONNECTIONS_PER_IDENTITY"

StillOpen = Callable[[Collection[str]], set[str]]

_log: Final = logging.getLogger("billaged.doors")

_PEERS_MAX: Final = 65_536
# Time between two looks, so that callers who connect anew for each call are not refused for connections that
# they have closed. A look at very many sockets takes long, on the event loop: it may have this part of its time.
_LOOK_NANOS: Final = NANOS // 20
_LOOK_SHARE: Final = 20
_RETRY_SECONDS: Final = 1.0

# The tables of the namespace that this process is in; /proc/net can be hidden from a service.
_TABLES: Final = Path("/proc/self/net")
_MAPPED_IPV4: Final = bytes(10) + b"\xff\xff"


class Connections:
    """Connections in use by key, an identity or a remote address. For one thread, the event loop's."""

    def __init__(
        self,
        per_key_max: int,
        *,
        still_open: StillOpen,
        monotonic_nanos: Callable[[], int],
        peers_max: int = _PEERS_MAX,
    ) -> None:
        """``still_open`` says which of these peers are connected; an OSError of it, that this cannot be known:
        then nobody is refused. A ``per_key_max`` of 0 is no limit.
        """
        self._per_key_max = per_key_max
        self._still_open = still_open
        self._monotonic_nanos = monotonic_nanos
        self._peers_max = peers_max
        self._key_of: OrderedDict[str, str] = OrderedDict()  # by peer, the longest known first
        self._peers_of: dict[str, set[str]] = {}  # the same the other way round; no set is empty
        self._look_again_ns = 0  # when the next look is allowed
        self._blind = False  # whether it was said that nothing can be seen
        self.refused = 0  # RPCs refused so far

    def used(self, key: str, peer: str) -> None:
        """An RPC of ``key`` has come over the connection from ``peer`` (as ``context.peer()`` names it).

        Raises:
            Overloaded: the key uses as many other connections as it may.
        """
        if self._key_of.get(peer) == key or not self._per_key_max:
            return
        # Another's until now: that connection has ended, and its port was given out again.
        self._forget(peer)
        if self._count(key) >= self._per_key_max:
            self._look()
            if self._count(key) >= self._per_key_max:
                self.refused += 1
                raise Overloaded(
                    f"{self._per_key_max} other connections are in use, as many as one caller may have"
                    f" ({MAX_CONNECTIONS_PER_IDENTITY})",
                    _RETRY_SECONDS,
                )
        if len(self._key_of) >= self._peers_max:
            self._look()
            if len(self._key_of) >= self._peers_max:
                # If it is open after all, its next RPC makes it known again.
                self._forget(next(iter(self._key_of)))
        self._key_of[peer] = key
        self._peers_of.setdefault(key, set()).add(peer)

    def prune(self) -> None:
        """Forget connections that are closed: those of callers who do not come again would stay for good."""
        if self._key_of:
            self._look()

    def _count(self, key: str) -> int:
        return len(self._peers_of.get(key, ()))

    def _look(self) -> None:
        """Forget what is closed, of all keys at once: a greedy one must not use up the looks of the others."""
        began_ns = self._monotonic_nanos()
        if began_ns < self._look_again_ns:
            return
        try:
            closed = self._key_of.keys() - self._still_open(self._key_of.keys())
        except OSError as error:
            self._forget_all(error)
            return
        for peer in closed:
            self._forget(peer)
        ended_ns = self._monotonic_nanos()
        self._look_again_ns = ended_ns + max(_LOOK_NANOS, _LOOK_SHARE * (ended_ns - began_ns))

    def _forget(self, peer: str) -> None:
        key = self._key_of.pop(peer, None)
        if key is not None:
            peers = self._peers_of[key]
            peers.discard(peer)
            if not peers:
                del self._peers_of[key]

    def _forget_all(self, error: OSError) -> None:
        """A caller is rather let in than refused wrongly; the next look may come at once."""
        self._key_of.clear()
        self._peers_of.clear()
        if not self._blind:
            self._blind = True
            _log.warning("%s does nothing, open connections cannot be seen: %s", MAX_CONNECTIONS_PER_IDENTITY, error)


def open_peers(local_port: int, tables: Path = _TABLES) -> StillOpen:
    """Says which peers have a connection to this TCP port, by the kernel's tables; OSError where there are none."""
    return _Tables(local_port, tables).still_open


class _Tables:
    """``tcp`` and ``tcp6`` of a folder, as proc(5) has them."""

    def __init__(self, local_port: int, folder: Path) -> None:
        # "sl: LOCAL:PORT REMOTE:PORT STATE ", addresses and ports in hexadecimal, state 01 is ESTABLISHED.
        self._row = re.compile(rb": [0-9A-F]+:%04X ([0-9A-F]+:[0-9A-F]{4}) 01 " % local_port)
        self._ipv4, self._ipv6 = folder / "tcp", folder / "tcp6"

    def still_open(self, peers: Collection[str]) -> set[str]:
        """Those of the peers that are connected."""
        remotes = self._remotes()
        return {peer for peer in peers if _remote(peer) in remotes}

    def _remotes(self) -> set[bytes]:
        rows = self._row.findall(self._ipv4.read_bytes())
        with contextlib.suppress(FileNotFoundError):  # of a machine without IPv6
            rows += self._row.findall(self._ipv6.read_bytes())
        mapped = _in_table(_MAPPED_IPV4)
        return {remote.removeprefix(mapped) for remote in rows}


def _remote(peer: str) -> bytes | None:
    """A peer as the tables write it; None for what is no TCP peer."""
    host, _, port = peer.rpartition(":")
    try:
        return b"%s:%04X" % (_address(host), int(port))
    except (OSError, ValueError):
        return None


# Thousands of peers come from a few hosts.
@functools.lru_cache(4096)
def _address(host: str) -> bytes:
    """The address in "ipv4:192.0.2.1" as the tables write it, and IPv4 within IPv6 as IPv4.

    Raises:
        OSError, ValueError: it is none.
    """
    kind, _, address = host.partition(":")
    if kind == "ipv4":
        return _in_table(socket.inet_pton(socket.AF_INET, address))
    if kind == "ipv6":
        # "%5Bfe80::1%252%5D": brackets, and a zone that the tables do not have.
        bare = unquote(address).strip("[]").partition("%")[0]
        return _in_table(socket.inet_pton(socket.AF_INET6, bare).removeprefix(_MAPPED_IPV4))
    raise ValueError(f"{host!r} is no address of TCP")


def _in_table(packed: bytes) -> bytes:
    """An address (or part of one) in hexadecimal: words of 32 bits, each in this machine's byte order."""
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return b"".join(b"%08X" % int.from_bytes(word, sys.byteorder) for word in words)
