"""What is true of the fleet, which only the simulation knows: which counter each sample read, and from where on."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from auditor.events import Sample


class Stream(NamedTuple):
    """The counters of a VM on one host: they never fall. ``boot`` is the stream that they stood at zero in;
    where that is another one, ``begun`` is what they showed when the VM came from there."""

    number: int
    boot: int
    begun: tuple[int, ...]


class Truth:
    def __init__(self) -> None:
        self.streams: defaultdict[str, list[Stream]] = defaultdict(list)
        # By VM and sample: two streams may show the same, all zeros say, and then either will do.
        self._read: dict[tuple[str, Sample], Stream] = {}
        self._failed: dict[str, Stream] = {}
        # The first stream after a start, by VM and the start's time.
        self._started: dict[tuple[str, int], Stream] = {}

    def begin(self, vm_id: str) -> Stream:
        """From zero."""
        number = len(self.streams[vm_id])
        return self._add(vm_id, Stream(number, number, (0,) * 5))

    def carry_on(self, vm_id: str, before: Stream, counters: tuple[int, ...]) -> Stream:
        """On another host."""
        return self._add(vm_id, Stream(len(self.streams[vm_id]), before.boot, counters))

    def _add(self, vm_id: str, stream: Stream) -> Stream:
        self.streams[vm_id].append(stream)
        return stream

    def sampled(self, vm_id: str, stream: Stream, sample: Sample) -> None:
        self._read.setdefault((vm_id, sample), stream)

    def failed_read(self, vm_id: str, sample: Sample) -> None:
        """Belongs to no boot: a stream of its own that stands at zero."""
        stream = self._failed.get(vm_id)
        if stream is None:
            stream = self._failed[vm_id] = self.begin(vm_id)
        self._read.setdefault((vm_id, sample), stream)

    def failed_reads_of(self, vm_id: str) -> Stream | None:
        """None where no read failed."""
        return self._failed.get(vm_id)

    def started(self, vm_id: str, start_ns: int, stream: Stream) -> None:
        self._started.setdefault((vm_id, start_ns), stream)

    def stream_of(self, vm_id: str, sample: Sample) -> Stream:
        return self._read[vm_id, sample]

    def stream_of_start(self, vm_id: str, start_ns: int) -> Stream:
        return self._started[vm_id, start_ns]
