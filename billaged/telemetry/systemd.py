"""What a service manager is told: the protocol of sd_notify(3), a datagram to the socket in NOTIFY_SOCKET."""

from __future__ import annotations

import logging
import os
import socket
from typing import Final

_log: Final = logging.getLogger("billaged.telemetry")


class ServiceManager:
    """Says nothing where nobody listens. A message that cannot be sent is not worth ending for."""

    def __init__(self, address: str | None = None) -> None:
        """``address`` defaults to the environment's, as systemd sets it."""
        address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        # An @ stands for the NUL byte of a name that is no file.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self, status: str) -> None:
        self._tell("READY=1", f"STATUS={status}")

    def waiting(self, status: str, more_seconds: float) -> None:
        """The start goes on, and may take this much longer."""
        self._tell(f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(more_seconds * 1e6)}")

    def status(self, status: str) -> None:
        self._tell(f"STATUS={status}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        # One assignment a line: what is told may not add lines of its own.
        message = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
                speaker.setblocking(False)
                speaker.sendto(message.encode(), self._address)
        except OSError as error:
            _log.debug("the service manager cannot be told: %s", error)
