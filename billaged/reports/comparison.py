"""Two ledgers side by side, row by row: the one that is there, and the one that its journal gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from billaged.ledger.dump import PROVED, Since
from billaged.ledger.reader import LedgerReader

_SHOWN_PER_TABLE: Final = 5

Row = tuple[Any, ...]
# Whether a row of the ledger that the fresh one lacks should be there; given that and the fresh ledger's next row.
_Missed = Callable[[Row, Row | None], bool]


class Difference(NamedTuple):
    """A row that is not the same. ``ledger`` and ``journal`` have the columns that differ; None where it is missing."""

    table: str
    key: dict[str, Any]
    ledger: dict[str, Any] | None
    journal: dict[str, Any] | None


class TableComparison(NamedTuple):
    """``rows`` of the ledger were compared, ``first`` has the first few of those ``differing``.

    ``earlier`` ones were final at the cut that the replay began at, and were not compared.
    """

    table: str
    rows: int
    earlier: int
    differing: int
    first: list[Difference]


def compare(ledger: LedgerReader, fresh: LedgerReader, cut: LedgerReader | None = None) -> list[TableComparison]:
    """Every derived table, in the order of its key.

    With a ``cut``, the snapshot that the fresh ledger was folded on from: what can have changed since, and
    whatever else is in it.
    """
    if cut is None:
        return [
            _compare(table, ledger.proved_rows(table), fresh.proved_rows(table), 0, lambda _mine, _next: True)
            for table in PROVED
        ]
    since = Since(cut.position.sequence, cut.closed_through_ns)
    return [
        _compare(
            table,
            ledger.proved_rows(table, since),
            fresh.proved_rows(table, since),
            ledger.count_earlier(table, since),
            _missed_since(table, cut, since),
        )
        for table in PROVED
    ]


def _missed_since(table: str, cut: LedgerReader, since: Since) -> _Missed:
    """The snapshot left out what cannot change any more; of the rest, each row has to be in the fresh ledger."""
    _, names, key_length = PROVED[table]
    if table == "sessions":
        # It has the highest ordinal of each VM: later sessions have higher ones.
        vm = names.index("vm_id")
        return lambda mine, following: following is None or following[vm] != mine[vm]
    if table in ("gaps", "silences"):
        known, sequence = _RisingKeys(cut.proved_rows(table), key_length), names.index("sequence")
        return lambda mine, _next: known.has(mine[:key_length]) or mine[sequence] > since.position
    return lambda _mine, _next: True


class _RisingKeys:
    """The keys of rows; they rise, and so do those that are asked for."""

    def __init__(self, rows: Iterator[Row], key_length: int) -> None:
        self._rows = rows
        self._key_length = key_length
        self._key: Row | None = ()

    def has(self, key: Row) -> bool:
        while self._key is not None and self._key < key:
            row = next(self._rows, None)
            self._key = None if row is None else row[: self._key_length]
        return self._key == key


def _compare(
    table: str, ledger: Iterator[Row], fresh: Iterator[Row], earlier: int, is_missed: _Missed
) -> TableComparison:
    _, names, key_length = PROVED[table]
    rows, differing, first = 0, 0, []
    for mine, anew, following in _side_by_side(ledger, fresh, key_length):
        if mine is not None and anew is None and not is_missed(mine, following):
            earlier += 1
            continue
        rows += mine is not None
        if mine != anew:
            differing += 1
            if differing <= _SHOWN_PER_TABLE:
                first.append(_difference(table, names, key_length, mine, anew))
    return TableComparison(table, rows, earlier, differing, first)


def _side_by_side(
    left: Iterator[Row], right: Iterator[Row], key_length: int
) -> Iterator[tuple[Row | None, Row | None, Row | None]]:
    """Rows of the same key together; None where one side lacks it. Both rise by key. Third, the right side's next."""
    mine, anew = next(left, None), next(right, None)
    while mine is not None or anew is not None:
        if anew is None or (mine is not None and mine[:key_length] < anew[:key_length]):
            yield mine, None, anew
            mine = next(left, None)
        elif mine is None or anew[:key_length] < mine[:key_length]:
            yield None, anew, anew
            anew = next(right, None)
        else:
            yield mine, anew, anew
            mine, anew = next(left, None), next(right, None)


def _difference(table: str, names: Sequence[str], key_length: int, mine: Row | None, anew: Row | None) -> Difference:
    one = mine if mine is not None else anew or ()
    key = dict(zip(names[:key_length], one, strict=False))
    if mine is None or anew is None:
        named = dict(list(zip(names, one, strict=True))[key_length:])
        return Difference(table, key, None if mine is None else named, None if anew is None else named)
    changed = [index for index, pair in enumerate(zip(mine, anew, strict=True)) if pair[0] != pair[1]]
    return Difference(
        table, key, {names[index]: mine[index] for index in changed}, {names[index]: anew[index] for index in changed}
    )
