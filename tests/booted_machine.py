"""A machine that boots systemd: this one's files under an overlay, in namespaces of its own, without a network.

What is done there stays there. It needs root, for the mounts, and leaves nothing behind.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

SYSTEMD: Final = "/lib/systemd/systemd"
_TOOLS: Final = ("unshare", "pivot_root", "mount", "ip", "systemctl", "setpriv")

# $1: an empty folder. $2: a folder that both sides see. $3: what to run in the overlay first, with a network.
_MAKE: Final = r"""
set -e
top=$1 shared=$2 first=$3
mount -t tmpfs tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
cd "$top/root"
mount -t proc proc proc
mount --bind /sys sys
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs dev
for name in null zero full random urandom tty; do : >dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/shm dev/pts
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t cgroup2 cgroup2 sys/fs/cgroup
mkdir -p mnt/shared oldroot
mount --bind "$shared" mnt/shared
# None of this machine's own services, users' data or billaged.
rm -rf etc/systemd/system/*.wants etc/billaged var/lib/billaged opt/billaged
"""
_FIRST: Final = 'chroot . /bin/sh -c "$first" >"$shared/first" 2>&1\n'
_BOOT: Final = r"""
cat >etc/systemd/system/session.service <<'END'
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
StandardOutput=file:/mnt/shared/output
StandardError=file:/mnt/shared/output
ExecStart=/bin/sh /mnt/shared/session
ExecStopPost=/bin/sh -c 'journalctl --no-pager >/mnt/shared/journal 2>&1; systemctl --no-block exit'
TimeoutStartSec=400
END
cat >etc/systemd/system/session.target <<'END'
[Unit]
Wants=session.service systemd-journald.service
END
cat >run/init <<'END'
mount -t proc proc /proc
umount -l /oldroot
ip link set lo up
PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec env -i container=other PATH=$PATH /lib/systemd/systemd --unit=session.target --show-status=no
END
exec unshare --net --pid --fork --kill-child /bin/sh -c 'pivot_root . oldroot; cd /; exec /bin/sh /run/init'
"""


def _own_cgroup() -> Path | None:
    """Where this process is in the unified hierarchy; None where there is none to write to."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = [fields[1] for fields in mounts if fields[2] == "cgroup2" and "rw" in fields[3].split(",")]
    paths = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    return Path(places[0] + paths[0]) if places and paths else None


def _run(script: str, folder: Path, first: str) -> subprocess.CompletedProcess[str]:
    """In a cgroup and namespaces that end with it."""
    parent = _own_cgroup()
    if parent is None:
        raise OSError("there is no cgroup2 hierarchy")
    group = parent / f"billaged-test-{os.getpid()}"
    group.mkdir()
    top, shared = folder / "top", folder / "shared"
    top.mkdir(exist_ok=True)
    shared.mkdir(exist_ok=True)
    entered = f'echo $$ >"{group}/cgroup.procs" && exec unshare --mount --cgroup /bin/sh -c "$0" "$@"'
    try:
        return subprocess.run(
            ["/bin/sh", "-c", entered, script, "sh", str(top), str(shared), first],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=800,
        )
    finally:
        for inner in sorted(group.rglob("*/"), reverse=True):
            inner.rmdir()
        group.rmdir()


@functools.cache
def problem() -> str:
    """Why there can be none here; empty where there can."""
    if os.geteuid() != 0:
        return "only root can boot a machine in namespaces"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"not installed: {', '.join(missing)}"
    if not Path(SYSTEMD).exists():
        return "there is no systemd"
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = _run(_MAKE, Path(folder), "")
        except OSError as error:
            return f"no cgroup of its own: {error}"
    return f"no overlay of its own: {done.stderr.strip()}" if done.returncode else ""


def boot(folder: Path, first: str, session: str) -> Path:
    """Run ``first`` in the overlay, boot it, run ``session`` there; the folder with ``first``, ``output``, ``journal``.

    Both are for a shell; what is in ``folder / "shared"`` they see as /mnt/shared.
    """
    shared = folder / "shared"
    shared.mkdir(exist_ok=True)
    (shared / "session").write_text(session)
    done = _run(_MAKE + _FIRST + _BOOT, folder, first)
    said = (shared / "first").read_text() if (shared / "first").exists() else ""
    assert (shared / "output").exists(), f"it did not boot: {done.stdout}{done.stderr}{said}"
    return shared
