"""The thread that gives summaries out."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from billaged.aggregator.summary import SummaryBatch, SummarySink

_log = logging.getLogger("billaged.summaries")

# Batches that wait: an interval is one, a stop is one.
_QUEUE_MAX: Final = 4_096


class Broadcast:
    """Satisfies ``aggregator.summary.SummarySink``: takes batches at once, gives them out in its own time."""

    def __init__(self, sinks: Sequence[SummarySink]) -> None:
        self._sinks = sinks
        # Guards the queue; waits for batches and the end.
        self._wake = threading.Condition()
        self._queue: deque[SummaryBatch] = deque()
        self._stopping = False
        # Batches that were not given out because too many waited.
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="summaries")

    def start(self) -> None:
        self._thread.start()

    def publish(self, batch: SummaryBatch) -> None:
        with self._wake:
            if len(self._queue) >= _QUEUE_MAX:
                # The ledger has the usage all the same; what is lost is a line of log.
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(batch)
            self._wake.notify()

    def stop(self) -> None:
        """Give out what waits, then end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        told = 0
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._stopping)
                if not self._queue:
                    return
                batch = self._queue.popleft()
                dropped = self.dropped
            if dropped != told:
                _log.warning("summaries are produced faster than they are read: %d batches not given out", dropped)
                told = dropped
            for sink in self._sinks:
                try:
                    sink.publish(batch)
                except Exception:  # noqa: BLE001 - one reader's trouble is not the others'
                    _log.exception("a batch of %d summaries could not be given out", len(batch))
