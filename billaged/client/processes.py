"""Single processes as VMs."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from billaged.client.clock import CLOCK_TICK_NANOS, ticks_to_nanos
from billaged.client.readings import Observation, Reading
from billaged.model.errors import SettingError
from billaged.model.time import Clock

_log = logging.getLogger(__name__)

_PROC: Final = Path("/proc")
_ENDED_STATES: Final = "ZXx"


class Identity(NamedTuple):
    """A process's life: the number alone is used again."""

    pid: int
    start_ticks: int  # clock ticks after boot

    @property
    def vm_id(self) -> str:
        """The same for the process's whole life, another for any other process of this or any other boot or machine."""
        boot = (_PROC / "sys/kernel/random/boot_id").read_text()[:8]
        return f"pid-{self.pid}-{self.start_ticks}@{boot}"


def identify(pid: int) -> Identity | None:
    """The process that has this number now; None where none runs, or it is hidden, or only its exit status is left."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The name in parentheses may hold anything, spaces and parentheses too.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in _ENDED_STATES else Identity(pid, int(fields[19]))


class _Watched:
    def __init__(self, identity: Identity, started_ns: int | None) -> None:
        self.identity = identity
        self.vm_id = identity.vm_id
        self.process = psutil.Process(identity.pid)
        self.unreported_start_ns = started_ns
        self.alive_ns = started_ns or 0  # when it was last seen running
        self.disk_bytes = (0, 0)  # the last that could be read


class ProcessSource:
    """Processes by number, and all whose command line matches a pattern, now and later.

    What ran before the watch began has no start; what appears later starts when it
    really did. An end is dated to when the process was last seen alive: what it used
    after that nobody measured.
    """

    def __init__(self, pids: Iterable[int], pattern: re.Pattern[str] | None, clock: Clock) -> None:
        """Raises SettingError for a process that does not run."""
        self._pattern = pattern
        self._clock = clock
        self._watch_began_ticks = _ticks_since_boot()
        self._watched: dict[Identity, _Watched] = {}
        for pid in pids:
            identity = identify(pid)
            if identity is None:
                raise SettingError(f"--pid {pid}: there is no such process.")
            self._watched[identity] = _Watched(identity, None)

    def observe(self) -> list[Observation]:
        for identity in self._matching():
            self._watch(identity)
        return [self._observe_one(watched) for watched in list(self._watched.values())]

    def spooled(self) -> None:
        """Nothing to remember: another agent run takes what is running as running before it."""

    def exhausted(self) -> bool:
        return self._pattern is None and not self._watched

    def _matching(self) -> Iterator[Identity]:
        if self._pattern is None:
            return
        # The pattern stands in the agent's own command line, and in those of what started it (sudo, timeout, a shell).
        own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        for process in psutil.process_iter():
            if process.pid in own:
                continue
            try:
                command = " ".join(process.cmdline())
            except psutil.Error:  # gone meanwhile, or not ours to see
                continue
            if command and self._pattern.search(command):
                identity = identify(process.pid)
                if identity is not None and identity not in self._watched:
                    yield identity

    def _watch(self, identity: Identity) -> None:
        began_later = identity.start_ticks >= self._watch_began_ticks
        try:
            watched = _Watched(identity, self._start_nanos(identity) if began_later else None)
        except psutil.NoSuchProcess:  # it lived too short for anything to be measured
            return
        self._watched[identity] = watched
        _log.info("metering process %d as %s", identity.pid, watched.vm_id)

    def _observe_one(self, watched: _Watched) -> Observation:
        started_ns, watched.unreported_start_ns = watched.unreported_start_ns, None
        reading = _read(watched, self._clock)
        if reading is not None:
            watched.alive_ns = reading.time_ns
            # Ticks are coarser than the clock: a start is never later than what it precedes.
            started_ns = None if started_ns is None else min(started_ns, reading.time_ns)
            return Observation(watched.vm_id, reading, started_ns)
        del self._watched[watched.identity]
        _log.info("process %d (%s) has ended", watched.identity.pid, watched.vm_id)
        # Never sampled, never started as far as the server knows: there is nothing to stop.
        return Observation(watched.vm_id, None, started_ns, watched.alive_ns or None)

    def _start_nanos(self, identity: Identity) -> int:
        age_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - identity.start_ticks * CLOCK_TICK_NANOS
        return self._clock.wall_nanos() - max(0, age_ns)


def _ticks_since_boot() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // CLOCK_TICK_NANOS


def _read(watched: _Watched, clock: Clock) -> Reading | None:
    """None once the process has ended, whatever has its number now."""
    time_ns = clock.wall_nanos()
    if identify(watched.identity.pid) != watched.identity:
        return None
    try:
        with watched.process.oneshot():
            times = watched.process.cpu_times()
            memory_bytes = watched.process.memory_info().rss
        try:
            io = watched.process.io_counters()
            watched.disk_bytes = (io.read_bytes, io.write_bytes)
        except psutil.AccessDenied:
            # Another user's process: the last value, so that a counter never falls back.
            _log.debug("process %d: its disk counters are not ours to read", watched.identity.pid)
    except psutil.NoSuchProcess:
        return None
    if identify(watched.identity.pid) != watched.identity:  # it ended while it was read
        return None
    return Reading(time_ns, memory_bytes, ticks_to_nanos(times.user + times.system), *watched.disk_bytes, 0, 0)
