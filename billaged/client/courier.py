"""The courier: takes what waits in the spool to the server, in order, until it is acknowledged."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

from billaged.client.backoff import Backoff
from billaged.client.channel import BillingClient, CallFailed
from billaged.client.cursor import Position
from billaged.client.delivery import Delivery, join
from billaged.client.refused import RefusedFile
from billaged.client.spool import Spool
from billaged.model.records import Kind
from billaged.model.time import NANOS, Clock
from billaged.wire.billing.v1 import billing_pb2 as pb

_log = logging.getLogger(__name__)

HEARTBEAT_NANOS: Final = 30 * NANOS
# The request itself is wrong: sent again it would be refused again. Anything else may pass.
_FINAL_CODES: Final = frozenset({"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE"})
_WINDOW_RECORDS: Final = 10_000
_WINDOW_BYTES: Final = 2**20


class Courier:
    """Owned by one thread. A heartbeat is liveness and never waits in the spool."""

    def __init__(
        self,
        client: BillingClient,
        spool: Spool,
        instance_id: str,
        active_vms: Callable[[], tuple[str, ...]],
        clock: Clock,
        backoff: Backoff,
    ) -> None:
        self._client = client
        self._spool = spool
        self._instance_id = instance_id
        self._active_vms = active_vms
        self._clock = clock
        self._backoff = backoff
        self._refused = RefusedFile(spool.directory / "refused.jsonl")
        self._refusals_said: set[tuple[str, str]] = set()
        self._next_heartbeat_ns = clock.monotonic_nanos()
        self._retry_ns = self._next_heartbeat_ns  # no call before this
        self._away_code: str | None = None  # what the server was last away with, None while it is there
        self._window: deque[Delivery] = deque()  # what was read from the spool and is not yet acknowledged
        self._window_end = Position(0, 0)
        self.acknowledged = 0  # records of the spool that the server took
        self.refused = 0  # records of the spool that it never will

    def deliver(self) -> float:
        """Send what is due, up to one window; returns the seconds after which there is more to do (0: at once)."""
        now_ns = self._clock.monotonic_nanos()
        if now_ns < self._retry_ns:
            return (self._retry_ns - now_ns) / NANOS
        try:
            self._send_heartbeat(now_ns)
            worked = self._send_window()
        except CallFailed as failure:
            return self._wait_after(failure)
        self._note_there()
        if worked:
            return 0.0
        return max(0.0, (self._next_heartbeat_ns - self._clock.monotonic_nanos()) / NANOS)

    def is_away(self) -> bool:
        """Whether the last call failed in a way that may pass."""
        return self._away_code is not None

    def _send_heartbeat(self, now_ns: int) -> None:
        if now_ns < self._next_heartbeat_ns:
            return
        request = pb.SendHeartbeatRequest(instance_id=self._instance_id, active_vms=self._active_vms())
        try:
            self._client.call(Kind.HEARTBEAT, request.SerializeToString())
        except CallFailed as failure:
            if failure.code not in _FINAL_CODES:
                raise
            self._say_refused(self._instance_id, failure)
        self._next_heartbeat_ns = now_ns + HEARTBEAT_NANOS

    def _send_window(self) -> bool:
        """Send one window of the spool; False if nothing waited."""
        if not self._window:
            records, self._window_end = self._spool.peek(_WINDOW_RECORDS, _WINDOW_BYTES)
            if not records:
                self._spool.acknowledge(self._window_end)
                return False
            self._window.extend(join(records))
        while self._window:
            self._send(self._window[0])
        self._spool.acknowledge(self._window_end)
        return True

    def _send(self, delivery: Delivery) -> None:
        request = delivery.request()
        try:
            response = self._client.call(delivery.kind, request.SerializeToString())
            if not getattr(response, "success", False):
                raise CallFailed("FAILED_PRECONDITION", getattr(response, "message", "") or "answered success=false")
        except CallFailed as failure:
            final = failure.code in _FINAL_CODES
            # One bad sample must not take the others with it, and a batch may be too large for this server.
            if len(delivery.records) > 1 and (final or failure.code == "RESOURCE_EXHAUSTED"):
                self._window.popleft()
                self._window.extendleft(reversed(delivery.halves()))
                if final:
                    return
            if not final:
                raise
            self._keep_refused(delivery, request, failure)
            self._say_refused(delivery.vm_id, failure)
            self.refused += len(delivery.records)
        else:
            self.acknowledged += len(delivery.records)
            # Each success counts: a server that takes one in ten is not one that is away.
            self._backoff.reset()
        self._window.popleft()

    def _keep_refused(self, delivery: Delivery, request: Message, failure: CallFailed) -> None:
        try:
            self._refused.add(self._clock.wall_nanos(), delivery.kind, request, str(failure))
        except OSError as error:
            # Then it stays in the spool, and in the way: nothing that was metered goes without a trace.
            raise CallFailed("UNKEPT", f"{self._refused.path}: {error.strerror}, for {failure}") from error

    def _wait_after(self, failure: CallFailed) -> float:
        reopened = self._client.reopen_if_rotated()
        seconds = self._backoff.after_failure(failure.retry_after_seconds)
        if failure.code == "CANCELLED":
            _log.debug("call cancelled: %s", failure.details)
        elif failure.code != self._away_code:
            _log.warning("%s: %s; usage waits on disk", self._client.target.address, failure)
        else:
            _log.debug("%s: %s; next try in %.1f s", self._client.target.address, failure, seconds)
        if reopened:
            _log.info("the TLS files have changed and are in use now")
        self._away_code = failure.code
        self._retry_ns = self._clock.monotonic_nanos() + int(seconds * NANOS)
        return seconds

    def _note_there(self) -> None:
        if self._away_code is not None:
            _log.info("%s is back; %d records acknowledged so far", self._client.target.address, self.acknowledged)
        self._away_code = None
        self._backoff.reset()

    def _say_refused(self, subject: str, failure: CallFailed) -> None:
        if (subject, failure.code) not in self._refusals_said:
            self._refusals_said.add((subject, failure.code))
            _log.error("%s refused: %s; kept in %s (said once)", subject, failure, self._refused.path)
