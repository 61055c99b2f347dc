"""Tracing: follows requests from their door to the fold, and keeps what ended until it is sent.

Nothing here waits. What there is no room for is dropped and counted.

Not by opentelemetry-instrumentation-grpc, whose interceptor does not fit this door: it does not see
``abort_with_status``, so a refused call has status 0; it iterates what a stream's handler returns, and ours
are coroutines; and it makes a span of every call before it is known whether anybody keeps it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from billaged.telemetry.traces import Served, Trace, current, parent_of, rate_bound

WAITING_MAX: Final = 8_192
# So many are sent at once, and wake whoever sends.
BATCH: Final = 512

Headers = Iterable[tuple[Any, Any]]
Begin = Callable[[Headers], Trace]


class Folded(NamedTuple):
    """The fold of the group that a request's record was in. Times as in ``Trace``."""

    trace: Trace
    began_ns: int
    ended_ns: int
    # How many records the group had.
    records: int


class Tracing:
    """Any thread may ask; each of the others' methods has one thread that calls it, as it says."""

    def __init__(self, sampling_rate: float) -> None:
        """``sampling_rate``, 0 to 1: of the traces that begin here. A caller's own decision holds for its trace."""
        self._bound = rate_bound(sampling_rate)
        self.ended: deque[Trace | Folded] = deque()
        # Set when there is a batch.
        self.wake = threading.Event()
        # Records of sampled requests on their way to the fold, by number, which only grows.
        self._followed: deque[tuple[int, Trace]] = deque()
        self._folded_records = 0
        # What there was no room for: of the loop's thread, and of the aggregator's.
        self._dropped_requests = 0
        self._dropped_folds = 0

    @property
    def dropped(self) -> int:
        """Spans that nobody could be sent, for there were too many."""
        return self._dropped_requests + self._dropped_folds

    def grpc(self) -> DoorTracer:
        return DoorTracer("grpc", "rpc.grpc.status_code", self._beginning("traceparent"))

    def connect(self) -> DoorTracer:
        return DoorTracer("connect_rpc", "rpc.connect_rpc.error_code", self._beginning(b"traceparent"))

    def _beginning(self, wanted: str | bytes) -> Callable[[Served], Begin]:
        bound, on_end = self._bound, self._request_ended

        def of(method: Served) -> Begin:
            def begin(headers: Headers) -> Trace:
                parent = None
                for name, value in headers:
                    if name == wanted:
                        parent = parent_of(value.decode("latin-1") if isinstance(value, bytes) else value)
                        break
                trace = Trace(method, parent, bound, on_end)
                current.set(trace)
                return trace

            return begin

        return of

    def _request_ended(self, trace: Trace) -> None:
        if not self._keep(trace):
            self._dropped_requests += 1

    # --- intake.service.Follower, on the loop's thread -----------------------------

    def handed_over(self, number: int) -> None:
        """The request that is being answered waits for the journal now; its record has this number."""
        trace = current.get()
        if trace is not None and trace.sampled:
            trace.handed_over_ns = time.monotonic_ns()
            if len(self._followed) < WAITING_MAX:
                self._followed.append((number, trace))
            else:
                self._dropped_requests += 1

    def durable(self) -> None:
        """It knows that its record is in the journal."""
        trace = current.get()
        if trace is not None and trace.sampled:
            trace.durable_ns = time.monotonic_ns()

    # --- of the fold, on the aggregator's thread ---------------------------------------

    def folded(self, records: int, seconds: float) -> None:
        """The next so many records have been folded, which took so long until now."""
        self._folded_records += records
        if not self._followed or self._followed[0][0] > self._folded_records:
            return
        ended_ns = time.monotonic_ns()
        began_ns = ended_ns - round(seconds * 1e9)
        while self._followed and self._followed[0][0] <= self._folded_records:
            _, trace = self._followed.popleft()
            if not self._keep(Folded(trace, began_ns, ended_ns, records)):
                self._dropped_folds += 1

    # --- for who sends -------------------------------------------------------------

    def _keep(self, ended: Trace | Folded) -> bool:
        waiting = len(self.ended)
        if waiting >= WAITING_MAX:
            return False
        self.ended.append(ended)
        if waiting >= BATCH and not self.wake.is_set():
            self.wake.set()
        return True

    def take(self) -> list[Trace | Folded]:
        """What ended first, a batch at most. Called by one thread."""
        self.wake.clear()
        taken = [self.ended.popleft() for _ in range(min(BATCH, len(self.ended)))]
        if len(self.ended) >= BATCH:
            self.wake.set()
        return taken


class DoorTracer:
    """Satisfies ``doors.ports.Tracer``."""

    def __init__(self, system: str, status_attribute: str, beginning: Callable[[Served], Begin]) -> None:
        self._system = system
        self._status_attribute = status_attribute
        self._beginning = beginning

    def of(self, service: str, method: str) -> Begin:
        """What begins the trace of a request for this method, given its headers."""
        attributes = {"rpc.system": self._system, "rpc.service": service, "rpc.method": method}
        return self._beginning(Served(f"{service}/{method}", attributes, self._status_attribute))
