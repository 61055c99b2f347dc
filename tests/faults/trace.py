"""What strace saw: syncs of a file, bytes that came and went on one socket, and when each began and ended."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from faults.scale import needed

_CALLS: Final = "fdatasync,fsync,recvmsg,sendmsg,recvfrom,sendto,read,write,readv,writev"
_COMES: Final = frozenset({"recvmsg", "recvfrom", "read", "readv"})
_SYNCS: Final = frozenset({"fdatasync", "fsync"})
# An acknowledgement that did not wait for its sync would leave while the sync still waits for this.
SYNC_DELAY_MICROSECONDS: Final = 10_000
_STRING_MAX: Final = 2_000

_LINE: Final = re.compile(r"(?P<thread>\d+) +(?P<rest>.*)")
_UNFINISHED: Final = " <unfinished ...>"
_RESUMED: Final = re.compile(r"<\.\.\. \w+ resumed>(?P<rest>.*)")
_CALL: Final = re.compile(r"(?P<name>\w+)\(\d+<(?P<file>.*?)>, ?|(?P<sync>f\w*sync)\(\d+<(?P<path>[^>]*)>")
_STRING: Final = re.compile(r'"((?:[^"\\]|\\.)*)"(\.\.\.)?')


class Call(NamedTuple):
    """``began`` and ``ended`` are lines of the trace: what is on an earlier one was earlier."""

    began: int
    ended: int
    text: str


class Bytes(NamedTuple):
    began: int
    ended: int
    content: bytes


class Sync(NamedTuple):
    began: int
    ended: int


@dataclass
class Trace:
    """``syncs`` are those that worked; ``received`` and ``sent`` are of one socket, in order."""

    syncs: list[Sync] = field(default_factory=list)
    failed: list[Sync] = field(default_factory=list)
    received: list[Bytes] = field(default_factory=list)
    sent: list[Bytes] = field(default_factory=list)


def under(log: Path, fault: str = f"delay_exit={SYNC_DELAY_MICROSECONDS}") -> list[str]:
    """The command that traces the one that follows; each sync is held up a moment before it returns."""
    return [
        *(needed("strace"), "-D", "-f", "-yy", "-s", str(_STRING_MAX), "-o", str(log), "--seccomp-bpf"),
        *("-e", f"trace={_CALLS}", "-e", "signal=none"),
        *("-e", f"inject=fdatasync,fsync:{fault}"),
    ]


def calls(lines: Iterable[str]) -> Iterator[Call]:
    """Calls that returned; those that others came between are put together again."""
    unfinished: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        if (found := _LINE.fullmatch(line)) is None:
            continue
        thread, rest = found["thread"], found["rest"]
        if rest.endswith(_UNFINISHED):
            unfinished[thread] = number, rest.removesuffix(_UNFINISHED)
        elif resumed := _RESUMED.fullmatch(rest):
            began, before = unfinished.pop(thread)
            yield Call(began, number, before + resumed["rest"])
        else:
            yield Call(number, number, rest)


def read_trace(lines: Iterable[str], synced: Path, port: int) -> Trace:
    """The syncs of a file and the bytes on this daemon's port: of one connection, there must not be more.

    Raises:
        ValueError: strace has cut what was sent, or there were more connections.
    """
    trace, sockets = Trace(), set()
    for call in calls(lines):
        if (found := _CALL.match(call.text)) is None:
            continue
        if found["sync"]:
            if found["path"] == str(synced):
                worked = re.search(r"= 0\b", call.text) is not None
                (trace.syncs if worked else trace.failed).append(Sync(call.began, call.ended))
        elif re.match(rf"TCP(v6)?:\[\S*:{port}->", found["file"]):
            sockets.add(found["file"])
            to = trace.received if found["name"] in _COMES else trace.sent
            to.append(Bytes(call.began, call.ended, _content(call.text[found.end() :])))
    if len(sockets) > 1:
        raise ValueError(f"more than one connection: {sockets}")
    # As they were made; calls are read in the order in which they ended.
    trace.sent.sort()
    return trace


def _content(text: str) -> bytes:
    parts = []
    for quoted, cut in _STRING.findall(text):
        if cut:
            raise ValueError(f"strace has cut a string: {text[:200]}")
        parts.append(codecs.decode(quoted, "unicode_escape").encode("latin-1"))
    return b"".join(parts)


def found_at(chunks: list[Bytes], wanted: bytes, *, first_byte: bool) -> list[Bytes]:
    """For each place where it is in the whole stream, the call that has its first byte, or its last."""
    whole = b"".join(chunk.content for chunk in chunks)
    owners = [chunk for chunk in chunks for _ in chunk.content]
    return [owners[m.start() if first_byte else m.end() - 1] for m in re.finditer(re.escape(wanted), whole)]


def too_early(trace: Trace, markers: Iterable[bytes], answer: bytes) -> list[str]:
    """Answers that began to leave before a sync was over that had begun after their request was read.

    One request at a time: the n-th answer belongs to the n-th marker, which is the end of a request.
    """
    answers, asked = found_at(trace.sent, answer, first_byte=True), list(markers)
    if len(answers) != len(asked):
        return [f"{len(answers)} answers to {len(asked)} requests"]
    complaints = []
    for marker, left in zip(asked, answers, strict=True):
        (read, *_) = found_at(trace.received, marker, first_byte=False)
        if not any(read.ended < sync.began and sync.ended < left.began for sync in trace.syncs):
            complaints.append(f"{marker!r} was read at line {read.ended}, answered at {left.began}: no sync between")
    return complaints
