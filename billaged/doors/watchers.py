"""Watchers: who reads summaries as they come, and how many may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, cast

from google.protobuf.message import DecodeError

from billaged.doors.gate import Admission
from billaged.doors.ports import SummaryFeed
from billaged.model.errors import InvalidField, Overloaded, RequestError
from billaged.model.ids import MAX_ID_BYTES, why_not_id
from billaged.wire.billing.v1.usage_stream_pb2 import UsageSummary, WatchSummariesRequest
from billaged.wire.counting import check_lists

# A watcher that takes nothing for this long is cut off: its queue may be short, but it would stand for ever.
STALLED_SECONDS: Final = 30.0
# Customers, and VMs, that one watcher may ask for by name.
WATCHED_IDS_MAX: Final = 1_000
_REQUEST_BYTES_MAX: Final = 2 * WATCHED_IDS_MAX * (MAX_ID_BYTES + 3) + 64 * 1024


class StalledWatcher(Overloaded):
    """A watcher has stopped reading."""

    def __init__(self, stalled_seconds: float) -> None:
        super().__init__(f"cut off: no summary was read for {stalled_seconds:g} s; watch again and read faster")


class Watchers:
    """Lets only so many watch a feed at once, over all doors that share it, and shows them what they may see."""

    def __init__(self, feed: SummaryFeed, watchers_max: int, per_identity_max: int | None = None) -> None:
        self._feed = feed
        self._watchers_max = watchers_max
        self._per_identity_max = watchers_max if per_identity_max is None else per_identity_max
        self._open: dict[asyncio.Task[Any], Admission] = {}  # streams that hold a place now
        self._ended: dict[asyncio.Task[Any], RequestError] = {}  # those that may not go on, and why

    @classmethod
    def over(cls, feed: SummaryFeed | Watchers, watchers_max: int) -> Watchers:
        """The feed itself if it is already limited, so that doors given the same one share its places."""
        return feed if isinstance(feed, Watchers) else cls(feed, watchers_max)

    @property
    def open_count(self) -> int:
        """Streams that hold a place now."""
        return len(self._open)

    async def watch(self, request: WatchSummariesRequest, admission: Admission) -> AsyncGenerator[UsageSummary, None]:
        """The summaries from now on that were asked for and may be seen; a place is taken with the first.

        Raises:
            Unauthenticated, Forbidden: the caller may not watch any more.
            Overloaded: no place is left, or the watcher has fallen too far behind.
        """
        if len(self._open) >= self._watchers_max:
            raise Overloaded(f"all {self._watchers_max} places for watchers are taken", retry_after_seconds=10.0)
        if sum(other.key == admission.key for other in self._open.values()) >= self._per_identity_max:
            raise Overloaded(f"one caller may have {self._per_identity_max} watchers", retry_after_seconds=10.0)
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("doors watch in tasks")
        self._open[task] = admission
        try:
            # The port promises that closing releases, so there is an aclose.
            feed = cast(AsyncGenerator[UsageSummary, Any], self._feed.watch(request.customer_ids, request.vm_ids))
            async with aclosing(feed) as summaries:
                async for summary in summaries:
                    # What is shown is shown to who may see it at this moment.
                    admission.renew()
                    if admission.sees(summary.customer_id, summary.vm_id):
                        yield summary
        except asyncio.CancelledError:
            if (error := self._ended.pop(task, None)) is None:
                raise
            task.uncancel()
            raise error from None
        finally:
            self._ended.pop(task, None)
            del self._open[task]

    def renew(self) -> None:
        """End the streams whose caller would not be let in any more: certificates end and policies change,
        also while nothing is shown. To be called every second.
        """
        for task, admission in list(self._open.items()):
            if task in self._ended:
                continue
            try:
                admission.renew()
            except RequestError as error:
                self._ended[task] = error
                task.cancel()


def watch_request(payload: bytes, admission: Admission) -> WatchSummariesRequest:
    """What is to be watched.

    Raises:
        InvalidField: the bytes are no such request, or it has too many ids or what is no id.
        Forbidden: it names a customer or a VM that may not be seen.
    """
    check_lists(payload, WatchSummariesRequest, WATCHED_IDS_MAX)
    # What the request has beside its ids is kept as long as it is watched.
    if len(payload) > _REQUEST_BYTES_MAX:
        raise InvalidField("", "the request is larger than all ids that may come at once")
    try:
        request = WatchSummariesRequest.FromString(payload)
    except DecodeError as error:
        raise InvalidField("", "the request is not a valid protobuf message of its type") from error
    for name, ids in (("customer_ids", request.customer_ids), ("vm_ids", request.vm_ids)):
        if len(ids) > WATCHED_IDS_MAX:
            raise InvalidField(name, f"holds {len(ids)} ids, at most {WATCHED_IDS_MAX} may come at once")
        for index, text in enumerate(ids):
            if problem := why_not_id(text):
                raise InvalidField(f"{name}[{index}]", problem)
    admission.check_filter(request.customer_ids, request.vm_ids)
    return request
