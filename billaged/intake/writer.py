"""The journal writer: a thread that commits everything waiting as one group, then lets it be acknowledged."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple, Protocol

from billaged.intake.chain import rows_after
from billaged.intake.journal import Journal
from billaged.model.errors import BillagedError, NotServing
from billaged.model.records import JournalEntry, Kind, Record

_log = logging.getLogger("billaged.intake")

# After a group of this many the next one waits a moment for company: each commit costs a sync
# and a few changes of the interpreter's lock, so under load fewer, larger ones acknowledge more,
# and sooner (bench/README.md). A lone request never waits.
_BUSY_RECORDS: Final = 8
_LINGER_SECONDS: Final = 0.003


class Waiting(NamedTuple):
    """A record on its way into the journal, and the future of whoever waits for it."""

    kind: Kind
    received_ns: int
    caller: str
    payload: bytes
    record: Record
    done: asyncio.Future[None] | None


class Downstream(Protocol):
    """Where durable entries go, in journal order. Must not block."""

    def put(self, entries: Sequence[JournalEntry]) -> None: ...


class GroupObserver(Protocol):
    """Who wants to know how the journal does. Called by the writer's thread, which must not wait."""

    def committed(self, first: int, records: int, seconds: float) -> None:
        """A group of this many rows, from the sequence ``first`` on, is durable; that took so long."""


class JournalWriter:
    """Owns the journal's writing side. ``put`` is the way in; None in the queue is the end."""

    def __init__(
        self,
        journal: Journal,
        downstream: Downstream,
        loop: asyncio.AbstractEventLoop,
        group_max_records: int,
        group_max_bytes: int,
        on_fatal: Callable[[BaseException], None],
        observer: GroupObserver | None = None,
    ) -> None:
        self._journal = journal
        self._downstream = downstream
        self._loop = loop
        self._group_max_records = group_max_records
        self._group_max_bytes = group_max_bytes
        self._on_fatal = on_fatal
        self._observer = observer
        # Bounded by the intake, which refuses what is too much before it comes here.
        self._queue: SimpleQueue[Waiting | None] = SimpleQueue()
        # Rows up to here may leave the journal; the thread removes them between commits.
        self.prunable_through = 0
        # Groups committed, for operators; only the thread writes it.
        self.groups = 0
        # Whether the last group was large enough that waiting for the next one pays.
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="journal-writer")

    def start(self) -> None:
        self._thread.start()

    def put(self, waiting: Waiting) -> None:
        self._queue.put(waiting)

    def stop(self) -> None:
        """Commit everything put before, then end the thread."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        group: list[Waiting] = []
        try:
            more = True
            while more:
                group, more = self._gather()
                self._busy = len(group) >= _BUSY_RECORDS
                if group:
                    self._commit(group)
                    self._journal.prune(self.prunable_through)
        except BaseException as error:
            self._refuse(group)
            self._on_fatal(error)
            if not isinstance(error, BillagedError):
                raise

    def _gather(self) -> tuple[list[Waiting], bool]:
        """Wait for one, then take all that came in the meantime, within the group's bounds."""
        group: list[Waiting] = []
        size = 0
        waiting = self._queue.get()
        if self._busy:
            time.sleep(_LINGER_SECONDS)
        while waiting is not None:
            group.append(waiting)
            size += len(waiting.payload)
            if len(group) >= self._group_max_records or size >= self._group_max_bytes:
                return group, True
            try:
                waiting = self._queue.get_nowait()
            except Empty:
                return group, True
        return group, False

    def _commit(self, group: list[Waiting]) -> None:
        rows = rows_after(self._journal.head, [one[:4] for one in group])
        began = time.perf_counter()
        self._journal.append(rows)
        if self._observer is not None:
            self._observer.committed(rows[0][0], len(rows), time.perf_counter() - began)
        self.groups += 1
        self._downstream.put([JournalEntry(row[0], *one[:5], row[5]) for row, one in zip(rows, group, strict=True)])
        futures = [one.done for one in group if one.done is not None]
        if futures:
            self._loop.call_soon_threadsafe(_acknowledge, futures)

    def _refuse(self, group: Sequence[Waiting]) -> None:
        """The commit failed: whether these are durable is unknown, so their callers must try again.

        Those that still wait were never written: the same for them.
        """
        futures = [one.done for one in (*group, *self._left_over()) if one.done is not None]
        try:
            self._loop.call_soon_threadsafe(_fail, futures)
        except RuntimeError:
            _log.debug("the loop is closed; its callers are gone")

    def _left_over(self) -> Iterator[Waiting]:
        while True:
            try:
                waiting = self._queue.get_nowait()
            except Empty:
                return
            if waiting is not None:
                yield waiting


def _acknowledge(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        # A caller that went away has cancelled its own; the record is durable all the same.
        if not future.done():
            future.set_result(None)


def _fail(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(NotServing("the journal could not be committed; billaged restarts, send again"))
