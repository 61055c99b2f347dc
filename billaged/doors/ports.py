"""What the doors need from the stages behind them. The composition root joins them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from billaged.model.records import Kind, Record
from billaged.wire.billing.v1.usage_stream_pb2 import UsageSummary


class Intake(Protocol):
    """Where records go."""

    @property
    def items_max(self) -> Mapping[Kind, int]:
        """How many items a request's list may hold, for the kinds that have one."""

    async def submit(self, record: Record, payload: bytes, caller: str) -> None:
        """Return once the record is durable.

        Raises:
            RequestError: the record was not taken; nothing of it was or will be written.
        """


class SummaryFeed(Protocol):
    """Where summaries come from."""

    def watch(self, customer_ids: Collection[str], vm_ids: Collection[str]) -> AsyncIterator[UsageSummary]:
        """Summaries from now on that match (an empty collection matches all).

        The iterator ends when the daemon stops, and raises ``Overloaded`` when the
        caller has fallen too far behind. Closing it releases what it holds.
        """


class Meter(Protocol):
    """Where one door's requests are counted."""

    def of(self, method: str) -> Callable[[str, float], None]:
        """What to call when a request of this method has ended: with gRPC's name of its status, and the seconds that
        it took."""


class Unmetered:
    """A ``Meter`` for who does not want to know."""

    def of(self, method: str) -> Callable[[str, float], None]:
        return lambda code, seconds: None


class Trace(Protocol):
    """A request while it is answered, for who follows it. Lives in the task that answers."""

    caller: str
    """Who calls, once that is known."""

    def end(self, code: str) -> None:
        """It is answered, with gRPC's name of its status. Called once."""


class Tracer(Protocol):
    """Who follows one door's requests."""

    def of(self, service: str, method: str) -> Callable[[Iterable[tuple[Any, Any]]], Trace]:
        """What to call when a request of this method begins, with its headers as the door has them."""
