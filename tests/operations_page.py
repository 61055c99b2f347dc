"""docs/operations.md as what it has to be tried: its commands, its files of settings, its policy.

What is in backticks and begins with the name of a program is a command as well as a line of a ``bash`` block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from daemon_process import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()
# What begins with one of these, in backticks, and goes on, is a command.
PROGRAM = re.compile(
    r"(?:apt|billaged|curl|docker|grpcurl|head|install|journalctl|kill|make|pip|podman|promtool|rm"
    r"|scripts/install\.sh|spire-server|sqlite3|sudo|systemctl) "
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"`(?:/etc/billaged/)?((?:commands/)?\w+)\.env`")


class Command(NamedTuple):
    """One on the page, by the line it is in, without the ``sudo`` and the comment."""

    line: int
    text: str


class Settled(NamedTuple):
    """A file of settings on the page, by its name below /etc/billaged, without the ending."""

    name: str
    text: str


def commands() -> Iterator[Command]:
    """Each in its place; one that stands in a block is not run again where it is told of."""
    in_blocks = {command.text for fence in FENCE.finditer(PAGE) for command in lines_of(fence)}
    end = 0
    for fence in FENCE.finditer(PAGE):
        yield from (command for command in spans(end, fence.start()) if command.text not in in_blocks)
        yield from lines_of(fence)
        end = fence.end()
    yield from (command for command in spans(end, len(PAGE)) if command.text not in in_blocks)


def spans(start: int, end: int) -> Iterator[Command]:
    for span in SPAN.finditer(PAGE, start, end):
        if PROGRAM.match(span[1]):
            yield Command(line_at(span.start()), bare(span[1]))


def lines_of(fence: re.Match[str]) -> Iterator[Command]:
    if fence[1] == "bash":
        for found in re.finditer(r"^.+(?:(?<=\\)\n.+)*", fence[2], re.MULTILINE):
            yield Command(line_at(fence.start(2) + found.start()), bare(found[0].replace("\\\n", "")))


def line_at(place: int) -> int:
    return PAGE.count("\n", 0, place) + 1


def bare(text: str) -> str:
    return re.sub(r"\bsudo ", "", re.sub(r" +# .*", "", text)).strip()


def settled() -> Iterator[Settled]:
    """Each block of settings belongs to the file that was named last."""
    for fence in FENCE.finditer(PAGE):
        if fence[1] == "ini":
            yield Settled(FILE.findall(PAGE[: fence.start()])[-1], fence[2])


# Told of in several places, it is run in the first.
TOLD = list(commands())
COMMANDS = [
    command
    for index, command in enumerate(TOLD)
    if command.text.startswith("systemctl ") or command.text not in {before.text for before in TOLD[:index]}
]
FILES = dict(settled())
[POLICY] = [fence[2] for fence in FENCE.finditer(PAGE) if fence[1] == "toml"]
