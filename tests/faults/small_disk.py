"""A disk of some MiB, in a mount namespace of its own: nothing of it is left on the machine when its holder ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from daemon_process import ROOT

from faults.scale import needed

_BALLAST: Final = "ballast"
_PAGE: Final = 4096


class SmallDisk:
    """``path`` is where daemons see it; only they do, run ``under``."""

    def __init__(self, holder_pid: int, path: Path) -> None:
        self.path = path
        # How others look into that namespace. SQLite would follow it to the real root: files are copied first.
        self._from_outside = Path(f"/proc/{holder_pid}/root{path}")
        self.under = (
            *("nsenter", "-t", str(holder_pid), "-U", "-m", "--preserve-credentials"),
            *("sh", "-c", f'cd {ROOT} && exec "$@"', "sh"),
        )

    def free_bytes(self) -> int:
        status = os.statvfs(self._from_outside)
        return status.f_bavail * status.f_frsize

    def fill(self, but_bytes: int = 0) -> None:
        """Let somebody else use all of it but so much."""
        ballast = self._from_outside / _BALLAST
        with ballast.open("ab", buffering=0) as file:
            while (room := self.free_bytes() - but_bytes) >= _PAGE:
                file.write(bytes(min(room, 1 << 20)))

    def empty(self) -> None:
        (self._from_outside / _BALLAST).unlink()

    def copy_to(self, folder: Path) -> None:
        """All but the ballast."""
        shutil.copytree(self._from_outside, folder, ignore=shutil.ignore_patterns(_BALLAST))


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[SmallDisk]:
    """Skips where this machine gives a process no namespace of its own."""
    script = 'mount -t tmpfs -o "size=$1" none "$2" && echo ready && exec cat'
    holder = subprocess.Popen(
        [needed("unshare"), "-rm", "sh", "-c", script, "sh", f"{mebibytes}m", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with holder:
        if holder.stdout is None or holder.stdout.readline() != "ready\n":
            said = holder.stderr.read() if holder.stderr is not None else ""
            pytest.skip(f"no small disk can be mounted here: {said.strip()}")
        try:
            yield SmallDisk(holder.pid, folder)
        finally:
            holder.kill()
