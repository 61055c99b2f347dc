"""The whole machine as one VM."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import psutil

from billaged.client.clock import ticks_to_nanos
from billaged.client.readings import Observation, Reading
from billaged.model.time import Clock

_log = logging.getLogger(__name__)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_BLOCK_DEVICES: Final = Path("/sys/block")
# Where /sys does not tell: disks in memory, and those whose traffic another disk counts again.
_NOT_DISKS: Final = ("loop", "ram", "zram", "dm-", "md")

# The parts of the machine's CPU time that are work. Linux counts a guest's time in
# user and nice already, so guest and guest_nice would count it twice.
BUSY_FIELDS: Final = ("user", "nice", "system", "irq", "softirq", "steal")


class HostSource:
    """CPU time of all cores but idle and waiting, memory in use, whole disks, all networks but loopback."""

    def __init__(self, vm_id: str, clock: Clock, boot: BootMark | None = None) -> None:
        self._vm_id = vm_id
        self._clock = clock
        self._boot = boot
        self._disks = DeviceTotals()
        self._networks = DeviceTotals()

    def observe(self) -> list[Observation]:
        reading = self.read()
        started_ns = None
        if self._boot is not None and self._boot.is_new():
            started_ns = min(reading.time_ns, self._clock.wall_nanos() - time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        return [Observation(self._vm_id, reading, started_ns)]

    def spooled(self) -> None:
        if self._boot is not None:
            self._boot.note()

    def exhausted(self) -> bool:
        return False

    def read(self) -> Reading:
        # The time first: what is counted later than it says is billed later, never earlier.
        time_ns = self._clock.wall_nanos()
        times = psutil.cpu_times()
        disks = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        networks = psutil.net_io_counters(pernic=True, nowrap=False) or {}
        whole = whole_disks(disks)
        read_bytes, write_bytes = self._disks.add({name: disks[name][2:4] for name in whole})
        received_bytes, sent_bytes = self._networks.add(
            {name: (io.bytes_recv, io.bytes_sent) for name, io in networks.items() if name != "lo"}
        )
        return Reading(
            time_ns=time_ns,
            memory_bytes=psutil.virtual_memory().used,
            cpu_time_ns=sum(ticks_to_nanos(getattr(times, field, 0.0)) for field in BUSY_FIELDS),
            disk_read_bytes=read_bytes,
            disk_write_bytes=write_bytes,
            network_rx_bytes=received_bytes,
            network_tx_bytes=sent_bytes,
        )


class BootMark:
    """Remembers in a file which boot of the machine was metered last.

    The counters start from zero with each boot. An agent that finds another boot than
    it metered before knows that its VM has started anew; where it never metered
    before it knows nothing, and what runs is an implicit session.
    """

    def __init__(self, path: Path, vm_id: str, boot_id: str | None = None) -> None:
        """Raises OSError if the file is there and cannot be read."""
        self._path = path
        self._now = f"{boot_id or _BOOT_ID.read_text().strip()} {vm_id}\n"
        self._noted = path.read_text() if path.exists() else None

    def is_new(self) -> bool:
        same_vm = self._noted is not None and self._noted.partition(" ")[2] == self._now.partition(" ")[2]
        return same_vm and self._noted != self._now

    def note(self) -> None:
        if self._noted == self._now:
            return
        try:
            self._path.touch(mode=0o600)
            self._path.write_text(self._now)
        except OSError as error:
            # At worst the same start is sent again, which the server takes as late and bills nothing for.
            _log.warning("%s: cannot be written: %s", self._path, error.strerror)
        self._noted = self._now


class DeviceTotals:
    """Two counters summed over devices that come and go, so that the sum never goes back.

    A device that goes keeps its share; one that comes back counts what is more than it had, or, with less, all of it.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, ...]] = {}
        self._totals = [0, 0]

    def add(self, devices: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        for name, values in devices.items():
            before = self._last.get(name, (0, 0))
            for index, (value, last) in enumerate(zip(values, before, strict=True)):
                self._totals[index] += value - last if value >= last else value
        self._last.update(devices)
        return self._totals[0], self._totals[1]


def whole_disks(names: Iterable[str], block_devices: Path = _BLOCK_DEVICES) -> list[str]:
    """Those of the names that are disks of their own: no partitions, nothing that lies on another disk or in memory.

    The kernel links a disk to its hardware; partitions, loop, RAM, device-mapper
    and RAID devices have no such link.
    """
    if block_devices.is_dir():
        return [name for name in names if (block_devices / name.replace("/", "!") / "device").exists()]
    return [name for name in names if not name.startswith(_NOT_DISKS) and not name[-1:].isdigit()]
