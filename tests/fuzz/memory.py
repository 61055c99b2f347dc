"""What a daemon holds, and whether it grows by more than what it has to know."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from daemon_process import DaemonProcess

MIB = 2**20
# What comes and goes: caches of SQLite that fill up, what malloc keeps after a message of 4 MiB. Measured: up to 15 MiB
# in the first ten thousand messages, then 5 MiB up or down. In a run of a million a leak of 60 bytes a message is more.
NOISE_BYTES = 32 * MIB
# The fold needs 450 bytes a VM (bench/README.md), and its columns grow by doubling.
VM_BYTES = 1024


class Held(NamedTuple):
    """At one moment: resident bytes, and how many VMs it keeps in memory."""

    resident_bytes: int
    known_vms: int


def resident_bytes(daemon: DaemonProcess) -> int:
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    if not found:
        raise ValueError("/proc has no VmRSS")
    return int(found[1]) * 1024


def held(daemon: DaemonProcess) -> Held:
    return Held(resident_bytes(daemon), int(daemon.stats()["known_vms"]))


def growth_max_bytes(before: Held, after: Held) -> int:
    """The most that may be held more."""
    return NOISE_BYTES + VM_BYTES * max(after.known_vms - before.known_vms, 0)
