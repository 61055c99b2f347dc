"""``billaged journal``: whether the journal is whole, and whether the ledger follows from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from billaged.cli.reading import data_dir_of, data_dir_option, load_settings, print_pairs, progress_bar

if TYPE_CHECKING:
    from billaged.reports.replay import Comparison, Difference
    from billaged.reports.verify import Verification


@click.group()
def journal() -> None:
    """Verify the journal, or compute the ledger anew from it.

    Both only read the data directory; the daemon may run or not.
    """


@journal.command()
@data_dir_option
def verify(data_dir: Path | None) -> None:
    """Read the whole journal and check it.

    The file's structure, that no row is missing, that each row can be decoded, and that
    the ledger beside it was folded from it. Whether it was folded right is what
    'billaged journal replay' says.

    Exit code 1 where something is wrong; the first bad row is named on stderr.
    """
    from billaged.reports.errors import ProofFailed
    from billaged.reports.verify import verify as run

    directory = data_dir_of(load_settings(), data_dir)
    with progress_bar("verifying rows") as progress:
        found = run(directory, progress)
    print_pairs(_verification(found))
    if found.problems:
        more = found.bad_rows - 1
        raise ProofFailed("\n".join(found.problems) + (f"\nand {more:,} more bad rows" if more > 0 else ""))
    click.echo("the journal is whole")


@journal.command()
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep the recomputed ledger in this new file. Without it: a temporary one (TMPDIR says where).",
)
@data_dir_option
def replay(into: Path | None, data_dir: Path | None) -> None:
    """Compute the ledger anew from the journal and compare it with the real one.

    Folds every journal row that the ledger covers into a fresh file and compares all
    tables row by row. The journal must reach back to its first row.

    Exit code 1 where a row differs; the first ones of each table are shown.
    """
    from billaged.reports.errors import ProofFailed
    from billaged.reports.replay import replay as run

    directory = data_dir_of(load_settings(), data_dir)
    with progress_bar("folding rows") as progress:
        compared = run(directory, into, progress)
    print_pairs(_comparison(compared))
    if into is not None:
        click.echo(f"the recomputed ledger is in {into}")
    if compared.equal:
        click.echo("equal")
        return
    for table in compared.tables:
        for difference in table.first:
            click.echo(_difference(difference))
        if table.differing > len(table.first):
            click.echo(f"{table.table}: and {table.differing - len(table.first):,} more")
    sys.stdout.flush()
    rows = sum(table.differing for table in compared.tables)
    raise ProofFailed(f"the ledger is not what its journal gives: {rows:,} rows differ.")


def _verification(found: Verification) -> list[tuple[str, str]]:
    from billaged.model.time import format_instant

    pairs = [
        ("journal", str(found.path)),
        ("journal id", found.journal_id),
        ("rows", f"{found.rows:,}, from {found.pruned + 1:,} to {found.end:,}"),
    ]
    if found.first_received_ns is not None and found.last_received_ns is not None:
        span = f"{format_instant(found.first_received_ns)} to {format_instant(found.last_received_ns)}"
        pairs.append(("received", span))
    for kind, count in sorted(found.by_kind.items()):
        pairs.append((kind.name.lower(), f"{count:,}"))
    return [*pairs, ("ledger", f"folded up to {found.ledger_position:,}")]


def _comparison(compared: Comparison) -> list[tuple[str, str]]:
    pairs = [("journal", f"{compared.position:,} rows")]
    for table in compared.tables:
        differing = f", {table.differing:,} differ" if table.differing else ""
        pairs.append((table.table, f"{table.rows:,} rows{differing}"))
    return pairs


def _difference(difference: Difference) -> str:
    key = ", ".join(f"{name}={value}" for name, value in difference.key.items())
    head = f"{difference.table}: {key}:"
    if difference.ledger is None:
        return f"{head} is not in the ledger"
    if difference.journal is None:
        return f"{head} does not follow from the journal"
    changes = (f"{name} is {value}, should be {difference.journal[name]}" for name, value in difference.ledger.items())
    return f"{head} {'; '.join(changes)}"
