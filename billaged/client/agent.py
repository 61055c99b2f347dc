"""The agent: meters on one thread, delivers on another, and ends when told to."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from billaged.client.channel import BillingClient
from billaged.client.courier import Courier
from billaged.client.failure import CallFailed
from billaged.client.metering import Metering
from billaged.client.spool import Spool
from billaged.model.time import NANOS, Clock

_log = logging.getLogger(__name__)

# How long a stop waits for what is under way before it cuts the connection.
FLUSH_SECONDS = 1.0
# How soon a courier that waits sees that there is another identity.
_LOOK_SECONDS = 0.5


class Stop(Protocol):
    """What ends the agent; a ``threading.Event`` is one."""

    def wait(self, timeout: float) -> bool:
        """Return True as soon as the agent is to end, False after ``timeout`` seconds."""


class Agent:
    """Joins metering, spool and courier. ``stop`` paces the ticks as well."""

    def __init__(
        self, metering: Metering, courier: Courier, client: BillingClient, spool: Spool, clock: Clock, stop: Stop
    ) -> None:
        self._metering = metering
        self._courier = courier
        self._client = client
        self._spool = spool
        self._clock = clock
        self._stop = stop
        self._wake = threading.Event()  # the courier has something to do
        self._ending = threading.Event()
        self._crashed: Exception | None = None  # what ended the courier; read after it has ended

    def run(self, interval_ns: int) -> None:
        """Meter every ``interval_ns`` until stopped or nothing is left to meter. The spool keeps what was not sent.

        A tick that is missed (the machine slept, the disk was slow) is left out, not made up for.
        """
        courier = threading.Thread(target=self._run_courier, name="courier", daemon=True)
        next_ns = self._clock.monotonic_nanos()
        # Before the courier's first heartbeat: one that lists nothing would say that nothing runs.
        self._metering.tick()
        courier.start()
        try:
            while not self._ending.is_set():
                if self._metering.exhausted():
                    _log.info("nothing is left to meter")
                    break
                now_ns = self._clock.monotonic_nanos()
                next_ns += max(1, -((next_ns - now_ns) // interval_ns)) * interval_ns
                if self._stop.wait((next_ns - now_ns) / NANOS):
                    break
                self._metering.tick()
                self._wake.set()
            self._metering.finish()
        finally:
            self._ending.set()
            self._wake.set()
            courier.join(FLUSH_SECONDS)
            self._client.close()
            courier.join(FLUSH_SECONDS)
        if self._crashed is not None:
            raise self._crashed
        if waiting_bytes := self._spool.used_bytes + self._spool.reserved_bytes:
            _log.info("%d bytes wait in %s for the next start", waiting_bytes, self._spool.directory)

    def once(self) -> bool:
        """One tick, then send until all is acknowledged or the server fails; whether all was taken."""
        self._metering.tick()
        try:
            self._client.wait_for_identity()
        except CallFailed as failure:
            _log.error("%s; the sample waits in %s. %s", failure, self._spool.directory, failure.hint)
            return False
        while self._courier.deliver() == 0.0 and not self._courier.is_away():
            continue
        self._client.close()
        return not (self._courier.is_away() or self._courier.is_held_up() or self._courier.refused)

    def _run_courier(self) -> None:
        try:
            while True:
                self._wake.clear()
                ending = self._ending.is_set()
                self._client.warn_of_expiry()
                seconds = self._courier.deliver()
                if seconds == 0.0 and not self._courier.is_away():
                    continue
                # Asked before the last round: what was put in before the end is in it.
                if ending or (self._ending.is_set() and self._courier.is_away()):
                    return
                self._wait(seconds)
        except Exception as error:  # noqa: BLE001 - handed to the thread that ends the agent
            self._crashed = error
            self._ending.set()

    def _wait(self, seconds: float) -> None:
        # While the server is away time helps, and another identity: a new sample must not wake the courier every tick.
        if not self._courier.is_away():
            self._wake.wait(seconds)
            return
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._courier.may_differ():
            if self._ending.wait(min(left, _LOOK_SECONDS)):
                return
