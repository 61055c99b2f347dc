"""Summaries for those who watch: each has a bounded queue of its own, and is cut off when it fills."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import suppress

from billaged.aggregator.summary import Summary, SummaryBatch
from billaged.model.errors import NotServing, Overloaded
from billaged.model.quantity import ScoreWeights, Usage, resource_score
from billaged.summaries.mean import memory_mean_bytes
from billaged.wire.billing.v1.usage_stream_pb2 import UsageSummary, UsageTotals

_log = logging.getLogger("billaged.summaries")


class _Watcher:
    """One stream. ``messages`` belongs to the event loop; None in it is the end."""

    def __init__(self, customer_ids: Collection[str], vm_ids: Collection[str], queue_max: int) -> None:
        self.customer_ids = frozenset(customer_ids)
        self.vm_ids = frozenset(vm_ids)
        self._queue_max = queue_max
        self.messages: asyncio.Queue[UsageSummary | None] = asyncio.Queue()
        self.too_slow = False

    def wants(self, batch: SummaryBatch) -> list[int]:
        indexes: Collection[int] = range(len(batch))
        if self.customer_ids:
            indexes = [index for index in indexes if batch.customer_ids[index] in self.customer_ids]
        if self.vm_ids:
            indexes = [index for index in indexes if batch.vm_ids[index] in self.vm_ids]
        return list(indexes)

    def give(self, messages: list[UsageSummary]) -> None:
        if self.too_slow:
            return
        if self.messages.qsize() + len(messages) > self._queue_max:
            self.too_slow = True
            self.messages.put_nowait(None)
            return
        for message in messages:
            self.messages.put_nowait(message)

    def end(self) -> None:
        self.messages.put_nowait(None)


class WatchedSummaries:
    """Satisfies ``aggregator.summary.SummarySink`` and ``doors.ports.SummaryFeed``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, weights: ScoreWeights, queue_max: int) -> None:
        self._loop = loop
        self._weights = weights
        self._queue_max = queue_max
        # Guards the list below: the loop changes it, the broadcast's thread reads it.
        self._lock = threading.Lock()
        self._watchers: list[_Watcher] = []
        self._ended = False
        # Set while nobody watches.
        self._nobody = asyncio.Event()
        self._nobody.set()

    def publish(self, batch: SummaryBatch) -> None:
        with self._lock:
            watchers = list(self._watchers)
        made: dict[int, UsageSummary | None] = {}
        for watcher in watchers:
            messages = []
            for index in watcher.wants(batch):
                if index not in made:
                    made[index] = self._message(batch, index)
                if (message := made[index]) is not None:
                    messages.append(message)
            if messages:
                self._loop.call_soon_threadsafe(watcher.give, messages)

    def _message(self, batch: SummaryBatch, index: int) -> UsageSummary | None:
        """None, and a line on the log, where it cannot be made: the others of its batch are given out."""
        try:
            return message_of(batch.row(index), self._weights)
        except Exception:  # noqa: BLE001 - one VM's trouble is not the others'
            _log.exception("the summary of VM %s cannot be given out", batch.vm_ids[index])
            return None

    async def watch(self, customer_ids: Collection[str], vm_ids: Collection[str]) -> AsyncIterator[UsageSummary]:
        if self._ended:
            raise NotServing("billaged is stopping")
        watcher = _Watcher(customer_ids, vm_ids, self._queue_max)
        with self._lock:
            self._watchers.append(watcher)
        self._nobody.clear()
        try:
            while (message := await watcher.messages.get()) is not None:
                yield message
            if watcher.too_slow:
                raise Overloaded(f"the watcher fell more than {self._queue_max} summaries behind; watch again")
        finally:
            with self._lock:
                self._watchers.remove(watcher)
                if not self._watchers:
                    self._nobody.set()

    async def end(self, patience_seconds: float) -> None:
        """End every stream once its watcher has read what waits for it; wait that long for them."""
        self._ended = True
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.end()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_seconds):
                await self._nobody.wait()


def message_of(summary: Summary, weights: ScoreWeights) -> UsageSummary:
    window_ns = summary.window_end_ns - summary.window_start_ns
    session_ns = summary.session_end_ns - summary.session_start_ns
    return UsageSummary(
        vm_id=summary.vm_id,
        customer_id=summary.customer_id,
        session_number=summary.ordinal,
        window_start_nanos=summary.window_start_ns,
        window_end_nanos=summary.window_end_ns,
        window=_totals(summary.window, window_ns, weights),
        session=_totals(summary.session, session_ns, weights),
        session_start_nanos=summary.session_start_ns,
        session_end_nanos=summary.session_end_ns,
        final=summary.final,
        replayed=summary.replayed,
    )


def _totals(usage: Usage, span_ns: int, weights: ScoreWeights) -> UsageTotals:
    return UsageTotals(
        cpu_time_nanos=usage.cpu_time_ns,
        memory_byte_seconds=usage.memory_byte_seconds,
        memory_mean_bytes=memory_mean_bytes(usage),
        memory_peak_bytes=usage.memory_peak_bytes,
        disk_read_bytes=usage.disk_read_bytes,
        disk_write_bytes=usage.disk_write_bytes,
        network_rx_bytes=usage.network_rx_bytes,
        network_tx_bytes=usage.network_tx_bytes,
        measured_nanos=usage.measured_ns,
        gap_nanos=usage.gap_ns,
        samples=usage.samples,
        resource_score=str(resource_score(usage, span_ns, weights)),
    )
