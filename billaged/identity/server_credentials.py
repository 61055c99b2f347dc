"""TLS of the gRPC server, changed while it runs: each new connection takes the newest material."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

import grpc

from billaged.identity.keeper import Keeper
from billaged.identity.material import Material

# gRPC's core calls the fetcher on its own thread and crashes now and then where a configuration
# comes back at once; a moment's pause keeps it from doing so.
_PAUSE_SECONDS: Final = 0.01


def server_credentials(keeper: Keeper) -> grpc.ServerCredentials:
    """Credentials that follow the keeper, which has material. Callers must show a certificate where it has trust."""
    material = keeper.material
    if material is None:
        raise ValueError("the keeper has no material yet")
    fetcher = _Fetcher(keeper, material)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(material), fetcher, require_client_authentication=material.trust is not None
    )


class _Fetcher:
    """Called for each new connection, on a thread of gRPC's core. Does no I/O: all handshakes wait for it."""

    def __init__(self, keeper: Keeper, used: Material) -> None:
        self._keeper = keeper
        self._lock = threading.Lock()  # guards the one below: each change is handed over once
        self._used = used

    def __call__(self) -> Any:
        # None is "as before": a configuration with every call would crash the core sooner or later.
        if self._keeper.material is self._used:
            return None
        with self._lock:
            material = self._keeper.material
            if material is None or material is self._used:
                return None
            time.sleep(_PAUSE_SECONDS)
            self._used = material
            return _configuration(material)


def _configuration(material: Material) -> Any:
    roots = material.trust.roots_pem if material.trust is not None else None
    return grpc.ssl_server_certificate_configuration([(material.key_pem, material.chain_pem)], roots)
