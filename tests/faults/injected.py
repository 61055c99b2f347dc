"""System calls that fail, or kill, by strace: the daemon is the child still, and strace beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from faults.scale import needed

# A call that begins, with its file; it may end in the same line, or in a later one that begins with a bracket.
_BEGINS: Final = re.compile(r"(?P<thread>\d+) +\w+\(\d+<(?P<file>[^>]*)>")
_ENDS: Final = re.compile(r"(?P<thread>\d+) .*(?:\(INJECTED\)|= \?)$")


class Injection(NamedTuple):
    """``number`` counts the calls of one thread on ``file`` (any, where it is empty), from one."""

    call: str
    fault: str
    number: int
    file: str = ""

    @property
    def name(self) -> str:
        return f"{self.fault.rpartition('=')[2]}-at-{self.call}-{self.number}-of-{self.file or 'any-file'}"

    def under(self, data_dir: Path, log: Path) -> list[str]:
        """The command that runs another one with this fault; ``log`` gets the calls."""
        # With -D strace is the grandchild: who is killed and waited for is the daemon itself.
        command = [needed("strace"), "-D", "-f", "-y", "-o", str(log), "-e", f"trace={self.call}"]
        if not self.fault.startswith("signal="):
            # Quick, as all other calls are left alone; but where it stops a call no signal can be given.
            command.append("--seccomp-bpf")
        if self.file:
            command += ["-P", str(data_dir / self.file)]
        return [*command, "-e", f"inject={self.call}:{self.fault}:when={self.number}"]


def injected(log: Path) -> list[str]:
    """The file names of calls that were made to fail, or that never came back."""
    names, files = [], {}
    for line in log.read_text().splitlines():
        if begins := _BEGINS.match(line):
            files[begins["thread"]] = Path(begins["file"]).name
        if (ends := _ENDS.match(line)) and ends["thread"] in files:
            names.append(files[ends["thread"]])
    return names
