"""What the doors need from the stages behind them. The composition root joins them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from typing import Protocol

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
