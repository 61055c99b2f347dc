"""Points into the past that take the fold long: it is seen to get on, and whoever looks is answered meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from report_fixtures import GIB, DataDir, at, batch

from billaged.aggregator import engine as fold
from billaged.aggregator.worker import Aggregator
from billaged.model.records import FoldRules, JournalEntry, Record, Tick, VmStarted
from billaged.model.time import NANOS
from billaged.wire import codec

KEPT, STARTS = 1_000, 40
FIRST_NS = at("00:00:00")


def entries_after(position: int, *records: Record) -> list[JournalEntry]:
    return [
        JournalEntry(sequence, codec.kind_of(record), at("23:00:00"), "", b"", record, b"")
        for sequence, record in enumerate(records, position + 1)
    ]


@pytest.fixture
def with_a_saw(tmp_path: Path) -> Iterator[Aggregator]:
    """A VM with many kept instants whose counters fall again and again: each walk over them is step by step."""
    chance = random.Random(1)
    with closing(DataDir(tmp_path)) as made:
        made.put(FoldRules(), Tick(at("23:00:00"), 0, False))
        made.put(batch("vm", (FIRST_NS, GIB, 1)), batch("vm", (at("22:00:00"), GIB, 2)))
        saw = [(FIRST_NS + (20 * n + 20) * NANOS, GIB, chance.randrange(NANOS)) for n in range(KEPT)]
        made.put(batch("vm", *saw))
        yield made.aggregator


def test_a_slow_fold_is_seen_to_get_on_and_can_be_looked_at(with_a_saw: Aggregator) -> None:
    aggregator, position = with_a_saw, with_a_saw.position
    starts = [VmStarted("vm", "acme", FIRST_NS + (20 * n + 30) * NANOS) for n in range(STARTS)]
    aggregator.start()
    began = time.monotonic()
    aggregator.put(entries_after(position, *starts))
    looks, folded, longest_seconds = set(), set(), 0.0
    while aggregator.folded_entries < STARTS:
        looked = time.monotonic()
        assert aggregator.status().known_vms == 1
        assert aggregator.running_by_customer() == {"acme": 1}
        longest_seconds = max(longest_seconds, time.monotonic() - looked)
        looks.add(aggregator.progress)
        folded.add(aggregator.folded_entries)
        assert time.monotonic() - began < 60
    aggregator.stop()
    took_seconds = time.monotonic() - began
    print(f"{STARTS} starts in {took_seconds:.1f} s, {len(looks)} values of progress, a look {longest_seconds:.2f} s")
    # More often than entries are done: also within what is folded at once.
    assert len(looks) > STARTS // 4
    assert len(folded) > 1
    assert longest_seconds < took_seconds / 4
    assert aggregator.status().position == position + STARTS


def test_running_out_of_memory_is_not_the_entrys_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = fold.compute, iter(range(100))

    def compute(*arguments: object, **named: object) -> object:
        if next(calls) == 1:
            raise MemoryError
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(fold, "compute", compute)
    with closing(DataDir(tmp_path)) as made:
        made.put(batch("vm", (at("10:00:00"), GIB, 1)))
        position = made.aggregator.position
        with pytest.raises(MemoryError):
            made.put(batch("vm", (at("10:05:00"), GIB, 2)))
        assert made.aggregator.status().dead_letters_seen == 0
        assert made.aggregator.position == position
