"""A sheet of cells, and its ways onto paper: columns of text, a table for a terminal, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from billaged.settings.kinds import printable

# A line for programs: exact values by name. None is an empty cell in CSV, null in JSON.
Record = Mapping[str, str | int | bool | None]


class Column(NamedTuple):
    heading: str
    # Numbers stand to the right.
    number: bool = False


class Sheet(NamedTuple):
    """Rows for people. ``total`` is a last row, set apart."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    total: Sequence[str] | None = None


def as_columns(sheet: Sheet) -> str:
    """Aligned columns without frame or colour, as wide as they are: for files and pipes."""
    rows = [_headings(sheet), *_cells(sheet)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(sheet.columns))]
    lines = []
    for row in rows:
        cells = zip(sheet.columns, row, widths, strict=True)
        lines.append(
            "  ".join(cell.rjust(width) if column.number else cell.ljust(width) for column, cell, width in cells)
        )
    return "\n".join(line.rstrip() for line in lines)


def as_table(sheet: Sheet) -> Table:
    """A table for a terminal that is wide enough."""
    table = Table(header_style="bold", box=SIMPLE_HEAD)
    for column, heading in zip(sheet.columns, _headings(sheet), strict=True):
        table.add_column(Text(heading), justify="right" if column.number else "left", no_wrap=True)
    cells = _cells(sheet)
    for row in cells[: len(sheet.rows)]:
        # Text, not str: brackets are no markup.
        table.add_row(*map(Text, row))
    for row in cells[len(sheet.rows) :]:
        table.add_section()
        table.add_row(*map(Text, row), style="bold")
    return table


def as_blocks(sheet: Sheet) -> str:
    """A block of lines for each row, for a terminal too narrow for its columns; empty cells are left out."""
    headings = _headings(sheet)
    width = max(map(len, headings))
    blocks = []
    for row in _cells(sheet):
        named = [(heading, cell) for heading, cell in zip(headings, row, strict=True) if cell]
        blocks.append("\n".join(f"{heading.ljust(width)}  {cell}" for heading, cell in named))
    return "\n\n".join(blocks)


def _headings(sheet: Sheet) -> list[str]:
    # What it is about may be one.
    return [printable(column.heading) for column in sheet.columns]


def _cells(sheet: Sheet) -> list[list[str]]:
    """All rows, the total as the last. A file that was changed may hold anything: nothing of it acts on a terminal."""
    rows = sheet.rows if sheet.total is None else [*sheet.rows, sheet.total]
    return [[printable(cell) for cell in row] for row in rows]


def as_csv(names: Sequence[str], records: Sequence[Record]) -> str:
    """One header line, then a line for each record; yes and no are 1 and 0.

    Ids stand as they are, for programs read this: none is marked as text for a spreadsheet. One may
    begin with @ or -, which a spreadsheet takes for a formula; but with the letters, digits and
    ``._:/@-`` that ids have, no formula can call anything: it shows a number or an error in its place.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: int(value) if isinstance(value, bool) else value for name, value in record.items()})
    return text.getvalue().rstrip("\n")


def as_json(value: object) -> str:
    return json.dumps(value, indent=2)
