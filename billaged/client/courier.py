"""The courier: takes what waits in the spool to the server, in order, until it is acknowledged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from billaged.client.backoff import Backoff
from billaged.client.channel import BillingClient
from billaged.client.delivery import Delivery
from billaged.client.failure import NO_REASON, UNKEPT, UNREADABLE, CallFailed
from billaged.client.lane import WINDOW_RECORDS, Lane
from billaged.client.outage import Outage
from billaged.client.refused import NotKept, RefusedFile
from billaged.client.spool import Spool, SpoolRefused
from billaged.client.waiting import Held, Waiting
from billaged.model.records import Kind
from billaged.model.time import NANOS, Clock
from billaged.wire.billing.v1 import billing_pb2 as pb

_log = logging.getLogger(__name__)

HEARTBEAT_NANOS: Final = 30 * NANOS
# The request itself is wrong: sent again it would be refused again. Anything else may pass, also
# a refusal of who we are: policies are corrected and certificates renewed, and the usage was real.
_FINAL_CODES: Final = frozenset({"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", UNREADABLE})
# It is about the VM or its customer as often as about us: others may be allowed.
_DENIED: Final = "PERMISSION_DENIED"
# With these a heartbeat is let go: they say nothing about the samples.
_HEARTBEAT_CODES: Final = _FINAL_CODES | {_DENIED}
# How many refusals are remembered as said; then all may be said once more.
_SAID_MAX: Final = 1_000


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
        self._main = Lane(spool)
        self._waiting = Waiting(spool, backoff)
        self.acknowledged = 0  # records of the spool that the server took
        self.refused = 0  # records of the spool that it never will

    def deliver(self) -> float:
        """Send what is due, up to one window; returns the seconds after which there is more to do (0: at once)."""
        now_ns = self._clock.monotonic_nanos()
        if now_ns < self._retry_ns and not self.may_differ():
            return (self._retry_ns - now_ns) / NANOS
        if self.may_differ():
            self._waiting.hurry()
        try:
            self._send_heartbeat(now_ns)
            # First what has waited longest: of one VM nothing is sent before it.
            worked = self._send_waiting()
            worked = self._send_window(self._main) or worked
        except CallFailed as failure:
            return self._wait_after(failure)
        self._outage.end(self.acknowledged)
        self._backoff.reset()
        if worked:
            return 0.0
        next_ns = min(self._next_heartbeat_ns, self._waiting.next_ns)
        return max(0.0, (next_ns - self._clock.monotonic_nanos()) / NANOS)

    def is_away(self) -> bool:
        """Whether the last call failed in a way that may pass."""
        return self._outage.is_on()

    def is_held_up(self) -> bool:
        """Whether the server does not allow the usage of some VM, which waits apart."""
        return bool(self._waiting)

    def close(self) -> None:
        """Once nothing is delivered any more. The spool is its owner's to close."""
        self._waiting.close()

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

    def _send_window(self, lane: Lane, max_records: int = WINDOW_RECORDS) -> bool:
        """Send one window of the lane; False if nothing waited."""
        if not lane.fill(max_records):
            return False
        while lane.window:
            self._send(lane)
        lane.settle()
        return True

    def _send_waiting(self) -> bool:
        """Ask about the VMs that were denied; whether the server took something of one."""
        worked = False
        for held in self._waiting.due(self._clock.monotonic_nanos()):
            try:
                worked = self._send_held(held) or worked
            except CallFailed as failure:
                if failure.code != _DENIED:
                    raise
                self._waiting.deny(held, failure, self._clock.monotonic_nanos())
        return worked

    def _send_held(self, held: Held) -> bool:
        if not self._send_window(held.lane, 1 if held.is_denied else WINDOW_RECORDS):
            self._waiting.release(held)
            return False
        self._waiting.taken(held)
        return True

    def _send(self, lane: Lane) -> None:
        delivery = lane.window[0]
        if lane is self._main and self._waiting.holds(delivery.vm_id):
            self._hold(delivery, None)
        else:
            try:
                self._call(delivery)
            except CallFailed as failure:
                if not self._settle(lane, delivery, failure):
                    return
        lane.window.popleft()

    def _call(self, delivery: Delivery) -> None:
        if delivery.is_unreadable:
            raise CallFailed(UNREADABLE, f"no {delivery.kind.name} request, never sent")
        response = self._client.call(delivery.kind, delivery.request().SerializeToString())
        if not getattr(response, "success", False):
            if not (said := str(getattr(response, "message", "")).strip()):
                # What an empty answer looks like, too: nobody has decided anything about this usage.
                raise CallFailed(NO_REASON, "answered with success=false and no reason")
            raise CallFailed("FAILED_PRECONDITION", said)
        self.acknowledged += len(delivery.records)
        # Each success counts: a server that takes one in ten is not one that is away.
        self._backoff.reset()

    def _settle(self, lane: Lane, delivery: Delivery, failure: CallFailed) -> bool:
        """Whether the delivery, which failed, is safe in another place on disk; else it is to be sent in parts.

        Raises:
            CallFailed: the failure may pass, or there is no other place.
        """
        if failure.code == _DENIED and lane is self._main:
            self._hold(delivery, failure)
            return True
        is_final = failure.code in _FINAL_CODES
        is_too_large = failure.code == "RESOURCE_EXHAUSTED" and not failure.is_throttling
        # One bad sample must not take the others with it, and a batch may be too large for this server.
        if len(delivery.records) > 1 and (is_final or is_too_large):
            lane.split()
            if is_final:
                return False
        if not is_final:
            raise failure
        self._keep_refused(delivery, failure)
        self._say_refused(delivery.vm_id, f"refused: {failure}; kept in {self._refused.path}", failure)
        self.refused += len(delivery.records)
        return True

    def _hold(self, delivery: Delivery, failure: CallFailed | None) -> None:
        try:
            self._waiting.hold(delivery, failure, self._clock.monotonic_nanos())
        except SpoolRefused as error:
            # Then it stays in the spool, and in the way.
            details = f"{delivery.vm_id} is not allowed, and cannot wait apart: {error}"
            hint = "It holds up the others until that server's policy allows it, or there is room."
            raise CallFailed(UNKEPT, details, hint=hint) from error

    def _keep_refused(self, delivery: Delivery, failure: CallFailed) -> None:
        try:
            for record in delivery.records:
                self._refused.add(self._clock.wall_nanos(), record, str(failure))
        except NotKept as error:
            # Then it stays in the spool, and in the way: nothing that was metered goes without a trace.
            raise CallFailed(UNKEPT, f"{error}, for {failure}", hint=error.hint) from error

    def _wait_after(self, failure: CallFailed) -> float:
        seconds = self._backoff.after_failure(failure.code, failure.retry_after_seconds)
        now_ns = self._clock.monotonic_nanos()
        waiting_bytes = self._spool.used_bytes + self._spool.reserved_bytes
        self._outage.note(failure, seconds, waiting_bytes, now_ns)
        self._retry_ns = now_ns + int(seconds * NANOS)
        return seconds

    def _say_refused(self, subject: str, said: str, failure: CallFailed) -> None:
        if len(self._refusals_said) >= _SAID_MAX:
            self._refusals_said.clear()
        if (subject, failure.code) not in self._refusals_said:
            self._refusals_said.add((subject, failure.code))
            _log.error("%s %s (said once)", subject, said.rstrip())
