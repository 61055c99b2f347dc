"""What a service manager is told: the protocol of sd_notify(3), a datagram to the socket in NOTIFY_SOCKET."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Final

_log: Final = logging.getLogger("billaged.telemetry")


class ServiceManager:
    """Says nothing where nobody listens. A message that cannot be sent is not worth ending for."""

    def __init__(self, address: str | None = None) -> None:
        """``address`` defaults to the environment's, as systemd sets it."""
        address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        # An @ stands for the NUL byte of a name that is no file.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_seconds = _watchdog_seconds(os.environ) if address else None
        """How long it may hear no ``alive`` before it ends this process; None where it does not watch."""

    def ready(self, status: str) -> None:
        self._tell("READY=1", f"STATUS={status}")

    def waiting(self, status: str, more_seconds: float) -> None:
        """The start goes on, and may take this much longer."""
        self._tell(f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(more_seconds * 1e6)}")

    def status(self, status: str) -> None:
        self._tell(f"STATUS={status}")

    def alive(self) -> None:
        """Only for who has looked whether the work goes on: a timer would say it of a daemon that hangs, too."""
        self._tell("WATCHDOG=1")

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
                speaker.sendto(message.encode(errors="backslashreplace"), self._address)
        except OSError as error:
            _log.debug("the service manager cannot be told: %s", error)


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """What systemd has set for this process; a parent's is not ours (sd_watchdog_enabled(3))."""
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
        process = int(environ.get("WATCHDOG_PID", "0")) or os.getpid()
    except ValueError:
        _log.warning("WATCHDOG_USEC or WATCHDOG_PID is no number: the watchdog is not fed")
        return None
    return microseconds / 1e6 if microseconds > 0 and process == os.getpid() else None
