"""One gRPC channel, the material it was made with, and the calls that are under way on it."""

from __future__ import annotations

from typing import Any, Final

import grpc

from billaged.client.tls import Tls
from billaged.identity.material import Material

_OPTIONS: Final = (
    # gRPC's own reconnecting goes up to two minutes; how long to wait is the caller's to decide.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Channels of the process share their sockets otherwise: a new one must make its own handshake.
    ("grpc.use_local_subchannel_pool", 1),
)


class Connection:
    """Whoever has it guards it: no method may run beside another. Connects with the first call."""

    def __init__(self, address: str, tls: Tls | None, material: Material | None) -> None:
        """``tls`` None is plaintext; with it there must be material. Raises NoTrust."""
        self.material = material
        self._calls = 0
        self._retired = False
        self.channel: Any = _channel(address, tls, material)

    @property
    def is_done(self) -> bool:
        """No call is under way, and none will be."""
        return self._retired and not self._calls

    def begin(self) -> None:
        """A call is made on the channel; ``end`` follows."""
        self._calls += 1

    def end(self) -> None:
        self._calls -= 1
        self._close_if_done()

    def retire(self) -> None:
        """Close as soon as the calls under way have ended, which each has to within its own timeout."""
        self._retired = True
        self._close_if_done()

    def close(self) -> None:
        """Cancels what is under way."""
        self.channel.close()

    def _close_if_done(self) -> None:
        if self.is_done:
            self.channel.close()


def _channel(address: str, tls: Tls | None, material: Material | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(address, options=_OPTIONS)
    if material is None:
        raise tls.nothing_yet()
    credentials = grpc.ssl_channel_credentials(
        tls.roots_pem(material), material.key_pem or None, material.chain_pem or None
    )
    name = tls.server_name
    options = (*_OPTIONS, ("grpc.ssl_target_name_override", name)) if name else _OPTIONS
    return grpc.secure_channel(address, credentials, options=options)
