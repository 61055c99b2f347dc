"""What /metrics answers: text or OpenMetrics, written by one thread, and not more often than is good for the daemon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

_TEXT_CONTENT: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS_TYPE: Final = "application/openmetrics-text"
_OPENMETRICS_CONTENT: Final = f"{_OPENMETRICS_TYPE}; version=1.0.0; charset=utf-8"
# A scrape is shown again to whoever comes so soon after it, or within so many times what it took to write:
# the interpreter does nothing else meanwhile, and however many ask, most of its time is for usage.
_FRESH_SECONDS: Final = 0.1
_REST: Final = 9
# Prometheus waits for 10 s, unless it is told to wait for less.
_WAIT_SECONDS: Final = 8.0


# The library has no types for it.
_openmetrics: Final[Callable[[Collector], bytes]] = openmetrics.generate_latest


class Scrape(NamedTuple):
    """``content_type`` goes into the header of the same name."""

    content_type: str
    body: bytes


class ScrapeTooSlow(Exception):
    """The numbers could not be had in time. Whoever asks again may be luckier."""


class Exposition:
    """Lives on the event loop, with a thread of its own for the work."""

    def __init__(self, collector: Collector, wait_seconds: float = _WAIT_SECONDS) -> None:
        self._collector = collector
        self._wait_seconds = wait_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="billaged-metrics")
        # Of each format: what is being written, or the newest, and until when that is shown.
        self._scrapes: dict[bool, asyncio.Future[Scrape]] = {}
        self._fresh_until: dict[bool, float] = {}

    async def scrape(self, accept: str) -> Scrape:
        """What there is now, in the format of an Accept header.

        Raises:
            ScrapeTooSlow: it takes too long.
        """
        is_open = _wants_openmetrics(accept)
        scrape = self._scrapes.get(is_open)
        if scrape is None or (scrape.done() and time.monotonic() >= self._fresh_until[is_open]):
            loop = asyncio.get_running_loop()
            scrape = self._scrapes[is_open] = loop.run_in_executor(self._thread, self._write, is_open)
            # Nobody may wait for it any more once it fails.
            scrape.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            # Others wait for the same.
            return await asyncio.wait_for(asyncio.shield(scrape), self._wait_seconds)
        except TimeoutError:
            raise ScrapeTooSlow(f"the metrics could not be read within {self._wait_seconds:g} s") from None

    def close(self) -> None:
        """Nobody asks any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _write(self, is_open: bool) -> Scrape:
        began = time.monotonic()
        try:
            if is_open:
                return Scrape(_OPENMETRICS_CONTENT, _openmetrics(self._collector))
            return Scrape(_TEXT_CONTENT, exposition.generate_latest(self._collector))
        finally:
            ended = time.monotonic()
            self._fresh_until[is_open] = ended + max(_FRESH_SECONDS, _REST * (ended - began))


def _wants_openmetrics(accept: str) -> bool:
    """Whether a header names it. Who gives weights (q=) names nothing that it cannot read."""
    return any(part.partition(";")[0].strip().lower() == _OPENMETRICS_TYPE for part in accept.split(","))
