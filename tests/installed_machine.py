"""What scripts/install.sh makes of this tree, in a staging root: built once, whichever tests ask for it."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from checkout import copy_to, needs_index


def install(checkout: Path, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a checkout's install.sh."""
    done = subprocess.run(
        [checkout / "scripts" / "install.sh", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


class Machine:
    """A staging root, which stands for /."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "opt" / "billaged"
        self.settings = root / "etc" / "billaged" / "billaged.env"
        self.units = root / "etc" / "systemd" / "system"
        self.data = root / "var" / "lib" / "billaged"
        self.commands = root / "usr" / "local" / "bin"
        self.share = root / "usr" / "local" / "share"
        self.logrotate = root / "etc" / "logrotate.d" / "billaged"

    def run(
        self, *arguments: str, environment: Mapping[str, str] | None = None, command: str = "billaged"
    ) -> subprocess.CompletedProcess[str]:
        """An installed command, as somebody without this project's environment has it."""
        return subprocess.run(
            [self.commands / command, *arguments],
            env={"PATH": "/usr/bin:/bin"} | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def current(self) -> str:
        return str((self.home / "current").readlink())

    @property
    def releases(self) -> set[str]:
        return {f"releases/{path.name}" for path in (self.home / "releases").iterdir()}

    def files(self) -> dict[str, tuple[int, int]]:
        """Every release's files, with what would tell that one was written again."""
        return {
            str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in (self.home / "releases").rglob("*")
        }

    def exec_start(self, unit: str) -> list[str]:
        """The words of a unit's ExecStart, in this root."""
        [line] = [line for line in (self.units / unit).read_text().splitlines() if line.startswith("ExecStart=")]
        program, *arguments = line.removeprefix("ExecStart=").split()
        return [str(self.root) + program, *arguments]

    def environment(self, unit: str, **more: str) -> dict[str, str]:
        """What systemd would give to a unit: PATH, Environment=, then the settings' file."""
        found = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        for line in (self.units / unit).read_text().splitlines():
            if line.startswith("Environment="):
                name, _, value = line.removeprefix("Environment=").partition("=")
                found[name] = value
        for line in self.settings.read_text().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.partition("=")
                [found[name]] = shlex.split(value)
        return found | more

    def copied_to(self, root: Path) -> Machine:
        """One to change. Its releases share their files with this one's: nobody ever writes to a release.

        That it runs at all shows that nothing in it knows where it was made.
        """

        def copy(source: str, target: str) -> str:
            if Path(source).is_relative_to(self.home / "releases"):
                os.link(source, target, follow_symlinks=False)
                return target
            return shutil.copy2(source, target)

        shutil.copytree(self.root, root, symlinks=True, copy_function=copy)
        return Machine(root)


class Staged(NamedTuple):
    """This tree, as it was when the first test asked for it, and what was made of it."""

    checkout: Path
    machine: Machine
    said: str


def staged(factory: pytest.TempPathFactory) -> Staged:
    """To be looked at only; skips where there is nothing to install from."""
    needs_index()
    session = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    folder = session / "staged"
    folder.mkdir(exist_ok=True)
    checkout, machine, said = folder / "checkout", Machine(folder / "root"), folder / "said"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            shutil.rmtree(checkout, ignore_errors=True)
            said.write_text(install(copy_to(checkout), "--prefix", machine.root).stdout)
    return Staged(checkout, machine, said.read_text())
