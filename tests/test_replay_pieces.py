"""A start that takes long and is ended from outside has got on all the same."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from client_fixtures import ToldClock
from report_fixtures import GIB, DataDir, at, batch

from billaged.chores import replay_pieces
from billaged.ledger.backup import look_at
from billaged.model.records import FoldRules, Record, Tick
from billaged.model.time import NANOS

ROWS = 700
RECORDS: list[Record] = [
    FoldRules(),
    Tick(at("10:00:00"), 0, False),
    *(batch("a", (at("10:00:00") + second * NANOS, GIB, second)) for second in range(ROWS - 2)),
]


class Ended(Exception):
    """The service manager has ended the start."""


def replay(path: Path, piece_seconds: float, pieces: int | None = None) -> list[int]:
    """As a start does it, each piece taking so long; which rows it was told of."""
    clock = ToldClock()
    told: list[int] = []

    def tell(sequence: int) -> None:
        if len(told) == pieces:
            raise Ended
        told.append(sequence)
        # Some time of the piece that comes now.
        clock.monotonic_ns += int(piece_seconds * NANOS)

    with closing(DataDir(path)) as made:
        begun = made.aggregator.position
        aggregator = made.aggregator
        aggregator.replay(replay_pieces(made.journal.read(begun), aggregator, clock, tell))
    return told


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with closing(DataDir(tmp_path)) as made:
        made.put(*RECORDS, fold=False)
    return tmp_path


def test_quick_rows_are_replayed_many_at_once(directory: Path) -> None:
    assert replay(directory, 0) == [64, 64 + 128, 64 + 128 + 256, ROWS]
    assert look_at(directory / "ledger.db").position == ROWS


def test_a_start_goes_on_where_the_one_before_it_was_ended(directory: Path) -> None:
    with pytest.raises(Ended):
        replay(directory, 4, pieces=5)
    # Flushed after the third piece, when 12 s had gone.
    position = look_at(directory / "ledger.db").position
    assert position > 0
    assert replay(directory, 0)[0] == position + 64
    assert look_at(directory / "ledger.db").position == ROWS
