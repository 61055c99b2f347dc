"""Usage that the server does not allow yet: it waits apart, a spool for each VM, so that others go on.

A policy names VMs and customers, so one VM may be denied and the next one not. What is denied
may be allowed later, and then each VM's records still go in their order: whatever comes for a VM
that waits here waits behind it.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from billaged.client.backoff import Backoff
from billaged.client.delivery import Delivery, join
from billaged.client.failure import CallFailed
from billaged.client.lane import Lane
from billaged.client.outage import AGAIN_NANOS
from billaged.client.segment import FRAME_BYTES, HEADER_BYTES, SpoolRecord
from billaged.client.spool import MIN_SPOOL_BYTES, Spool, SpoolRefused
from billaged.model.errors import StorageError
from billaged.model.time import NANOS

_log = logging.getLogger(__name__)

# Each has two files open.
MAX_VMS: Final = 128
# The share of the spool's bound that may wait here; the rest is for those who are allowed.
_SHARE: Final = 2
_SHOWN_VMS: Final = 5
_NOTHING_DUE_NS: Final = 2**63 - 1
_AT_ONCE_NS: Final = 0


@dataclass(slots=True)
class Held:
    """One VM's usage that waits. ``is_denied`` until the server has taken some of it."""

    vm_id: str
    lane: Lane
    backoff: Backoff
    next_ns: int = _AT_ONCE_NS  # not asked about before this, monotonic
    is_denied: bool = True


class Waiting:
    """The directory ``waiting`` of a spool. Owned by one thread; takes its room from the spool's bound."""

    def __init__(self, spool: Spool, backoff: Backoff) -> None:
        """Take up what an earlier agent left. Raises StorageError."""
        self._spool = spool
        self._backoff = backoff
        self._directory = spool.directory / "waiting"
        self._max_bytes = max(MIN_SPOOL_BYTES, spool.max_bytes // _SHARE)
        self._held: dict[str, Held] = {}  # by the name of its directory
        self._said_ns: int | None = None  # when all of them were last named in the log
        try:
            for directory in sorted(path for path in self._directory.glob("*") if path.is_dir()):
                self._take_up(directory)
        except OSError as error:
            raise StorageError(f"{self._directory}: cannot be read: {error.strerror}.") from error
        self._reserve()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def next_ns(self) -> int:
        """When one of them is to be asked about next; far away where there is none."""
        return min((held.next_ns for held in self._held.values()), default=_NOTHING_DUE_NS)

    def holds(self, vm_id: str) -> bool:
        return _name(vm_id) in self._held

    def hold(self, delivery: Delivery, failure: CallFailed | None, now_ns: int) -> None:
        """Make its records durable here, behind what waits of the VM; ``failure`` is why, where it is the first.

        Raises:
            SpoolRefused: no room, or the disk failed; nothing has changed.
        """
        size_bytes = HEADER_BYTES + sum(FRAME_BYTES + 1 + len(record.payload) for record in delivery.records)
        if self._spool.reserved_bytes + size_bytes > self._max_bytes:
            raise SpoolRefused(f"{self._max_bytes} bytes wait to be allowed already")
        held = self._held.get(_name(delivery.vm_id))
        if held is not None:
            held.lane.spool.append(delivery.records)
        else:
            held = self._begin(delivery)
            if failure is not None:
                self._wait(held, failure, now_ns)
                self._say_begun(held, failure, now_ns)
        self._reserve()

    def due(self, now_ns: int) -> list[Held]:
        """Those that it is time to ask about."""
        return [held for held in self._held.values() if held.next_ns <= now_ns]

    def hurry(self) -> None:
        """Ask about all of them at once: we are somebody else now."""
        for held in self._held.values():
            held.next_ns = _AT_ONCE_NS

    def deny(self, held: Held, failure: CallFailed, now_ns: int) -> None:
        """It still has to wait."""
        held.is_denied = True
        held.lane.give_up()
        self._wait(held, failure, now_ns)
        if self._said_ns is None or now_ns - self._said_ns >= AGAIN_NANOS:
            self._say_all(failure, now_ns)

    def release(self, held: Held) -> None:
        """All of it has left."""
        self._held.pop(held.lane.spool.directory.name)
        try:
            held.lane.spool.remove()
        except OSError as error:
            # Nothing is lost by it: it holds nothing, and the next agent removes it.
            _log.warning("%s: cannot be removed: %s", held.lane.spool.directory, error.strerror)
        self._reserve()
        _log.info("%s is allowed now: what waited of it has been taken", held.vm_id)

    def taken(self, held: Held) -> None:
        """The server has taken a window of it: the next one may follow."""
        held.is_denied = False
        held.next_ns = _AT_ONCE_NS
        held.backoff.reset()
        self._reserve()

    def close(self) -> None:
        """Let go of the files; harmless when that is done."""
        for held in self._held.values():
            held.lane.spool.close()
        self._held.clear()

    def _take_up(self, directory: Path) -> None:
        spool = Spool(directory, self._max_bytes)
        records: list[SpoolRecord] = spool.peek(1, 1)[0]
        if not records:
            spool.remove()
            return
        vm_id = join(records)[0].vm_id
        self._held[directory.name] = Held(vm_id, Lane(spool), self._backoff.another())

    def _begin(self, delivery: Delivery) -> Held:
        if len(self._held) >= MAX_VMS:
            raise SpoolRefused(f"usage of {MAX_VMS} VMs waits to be allowed already")
        name = _name(delivery.vm_id)
        try:
            spool = Spool(self._directory / name, self._max_bytes)
        except StorageError as error:
            raise SpoolRefused(str(error)) from error
        try:
            spool.append(delivery.records)
        except SpoolRefused:
            spool.close()
            raise
        held = self._held[name] = Held(delivery.vm_id, Lane(spool), self._backoff.another())
        return held

    def _wait(self, held: Held, failure: CallFailed, now_ns: int) -> None:
        held.next_ns = now_ns + int(held.backoff.after_failure(failure.code) * NANOS)

    def _reserve(self) -> None:
        self._spool.reserved_bytes = sum(held.lane.spool.used_bytes for held in self._held.values())

    def _say_begun(self, held: Held, failure: CallFailed, now_ns: int) -> None:
        where = held.lane.spool.directory
        _log.warning("%s: %s; its usage waits in %s, others' goes on. %s", held.vm_id, failure, where, failure.hint)
        if self._said_ns is None:
            self._said_ns = now_ns

    def _say_all(self, failure: CallFailed, now_ns: int) -> None:
        self._said_ns = now_ns
        names = [held.vm_id for held in self._held.values()]
        shown = ", ".join(names[:_SHOWN_VMS]) + (", …" if len(names) > _SHOWN_VMS else "")
        _log.warning(
            "not allowed: %s (%d VMs): %s; usage waits in %s, %d bytes, others' goes on. %s",
            shown,
            len(names),
            failure,
            self._directory,
            self._spool.reserved_bytes,
            failure.hint,
        )


def _name(vm_id: str) -> str:
    # An id may be longer than a file's name, and hold a slash.
    return hashlib.sha256(vm_id.encode()).hexdigest()[:32]
