"""The courier: takes what waits in the spool to the server, in order, until it is acknowledged."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

from billaged.client.backoff import Backoff
from billaged.client.channel import BillingClient
from billaged.client.cursor import Position
from billaged.client.delivery import Delivery, join
from billaged.client.failure import UNKEPT, CallFailed
from billaged.client.outage import Outage
from billaged.client.refused import RefusedFile
from billaged.client.spool import Spool
from billaged.model.records import Kind
from billaged.model.time import NANOS, Clock
from billaged.wire.billing.v1 import billing_pb2 as pb

_log = logging.getLogger(__name__)

HEARTBEAT_NANOS: Final = 30 * NANOS
# The request itself is wrong: sent again it would be refused again. Anything else may pass, also
# a refusal of who we are: policies are corrected and certificates renewed, and the usage was real.
_FINAL_CODES: Final = frozenset({"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE"})
# With these a heartbeat is let go: they say nothing about the samples.
_HEARTBEAT_CODES: Final = _FINAL_CODES | {"PERMISSION_DENIED"}
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
        self._outage = Outage(client.target.address)
        self._window: deque[Delivery] = deque()  # what was read from the spool and is not yet acknowledged
        self._window_end = Position(0, 0)
        self.acknowledged = 0  # records of the spool that the server took
        self.refused = 0  # records of the spool that it never will

    def deliver(self) -> float:
        """Send what is due, up to one window; returns the seconds after which there is more to do (0: at once)."""
        now_ns = self._clock.monotonic_nanos()
        if now_ns < self._retry_ns and not self.may_differ():
            return (self._retry_ns - now_ns) / NANOS
        try:
            self._send_heartbeat(now_ns)
            worked = self._send_window()
        except CallFailed as failure:
            return self._wait_after(failure)
        self._outage.end(self.acknowledged)
        self._backoff.reset()
        if worked:
            return 0.0
        return max(0.0, (self._next_heartbeat_ns - self._clock.monotonic_nanos()) / NANOS)

    def is_away(self) -> bool:
        """Whether the last call failed in a way that may pass."""
        return self._outage.is_on()

    def may_differ(self) -> bool:
        """Whether what failed may work now, without waiting any longer: there is another identity."""
        return self._client.has_news()

    def _send_heartbeat(self, now_ns: int) -> None:
        if now_ns < self._next_heartbeat_ns:
            return
        request = pb.SendHeartbeatRequest(instance_id=self._instance_id, active_vms=self._active_vms())
        try:
            self._client.call(Kind.HEARTBEAT, request.SerializeToString())
        except CallFailed as failure:
            if failure.code not in _HEARTBEAT_CODES:
                raise
            self._say_refused(self._instance_id, f"heartbeats refused: {failure}. {failure.hint}", failure)
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
            too_large = failure.code == "RESOURCE_EXHAUSTED" and not failure.is_throttling
            # One bad sample must not take the others with it, and a batch may be too large for this server.
            if len(delivery.records) > 1 and (final or too_large):
                self._window.popleft()
                self._window.extendleft(reversed(delivery.halves()))
                if final:
                    return
            if not final:
                raise
            self._keep_refused(delivery, request, failure)
            said = f"refused: {failure}; kept in {self._refused.path}"
            self._say_refused(delivery.vm_id, said, failure)
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
            raise CallFailed(UNKEPT, f"{self._refused.path}: {error.strerror}, for {failure}") from error

    def _wait_after(self, failure: CallFailed) -> float:
        seconds = self._backoff.after_failure(failure.code, failure.retry_after_seconds)
        now_ns = self._clock.monotonic_nanos()
        self._outage.note(failure, seconds, self._spool.used_bytes, now_ns)
        self._retry_ns = now_ns + int(seconds * NANOS)
        return seconds

    def _say_refused(self, subject: str, said: str, failure: CallFailed) -> None:
        if (subject, failure.code) not in self._refusals_said:
            self._refusals_said.add((subject, failure.code))
            _log.error("%s %s (said once)", subject, said.rstrip())
