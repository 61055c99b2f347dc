"""``billaged journal``: whether the journal is whole, and whether the ledger follows from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from billaged.cli.begin_anew import begin_anew
from billaged.cli.reading import data_dir_of, data_dir_option, load_settings, print_pairs, print_sheet, progress_bar

if TYPE_CHECKING:
    from billaged.intake.journal import Head
    from billaged.reports.comparison import Difference, TableComparison
    from billaged.reports.cuts import CutView
    from billaged.reports.findings import Verification
    from billaged.reports.replay import Comparison


class HeadType(click.ParamType["Head"]):
    """A head as 'billaged journal head' prints it."""

    name = "SEQUENCE:HEX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Head:
        from billaged.intake.chain import parse_head

        try:
            return parse_head(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group()
def journal() -> None:
    """Verify the journal's chain, print its head, list its cuts, or compute the ledger anew from it.

    All but 'begin-anew' only read the data directory; the daemon may run or not.
    """


journal.add_command(begin_anew)


@journal.command()
@click.option(
    "--head",
    "heads",
    type=HeadType(),
    multiple=True,
    help="A head that was kept elsewhere ('billaged journal head', or the audit log): the row that it stands for must"
    " be there, and the same. May be given several times.",
)
@data_dir_option
def verify(heads: tuple[Head, ...], data_dir: Path | None) -> None:
    """Read the whole journal and its segments and check them.

    The file's structure, that no row is missing, that each row can be decoded and goes on
    from the one before it by its chain, and that the ledger beside it was folded from it.
    Whether it was folded right is what 'billaged journal replay' says.

    Exit code 1 where something is wrong; the first bad rows are named on stderr.
    """
    from billaged.reports.errors import ProofFailed
    from billaged.reports.ledger_check.advice import after_verification
    from billaged.reports.verify import verify as run

    directory = data_dir_of(load_settings(), data_dir)
    with progress_bar("verifying rows") as progress:
        found = run(directory, progress, heads)
    print_pairs(_verification(found))
    if found.problems:
        click.echo(after_verification(found))
        sys.stdout.flush()
        more = found.more_bad_rows
        raise ProofFailed("\n".join(found.problems) + (f"\nand {more:,} more bad rows" if more > 0 else ""))
    lost = any(story.rows_lost for story in found.begun_anew)
    click.echo("the journal is whole, but for the rows that are lost" if lost else "the journal is whole")


@journal.command()
@click.option("--json", "as_json", is_flag=True, help="For programs: journal_id, sequence and chain.")
@data_dir_option
def head(as_json: bool, data_dir: Path | None) -> None:
    """Print the head of the journal's chain, for keeping elsewhere.

    It stands for every row up to now: 'billaged journal verify --head' finds out later
    whether any of them was changed or is missing. Says nothing about whether the journal
    is whole now.
    """
    from contextlib import closing

    from billaged.intake.journal_file import JournalFile
    from billaged.intake.sqlite import FILE_NAME

    with closing(JournalFile(data_dir_of(load_settings(), data_dir) / FILE_NAME)) as file:
        found = file.head()
        if as_json:
            fields = {"journal_id": file.journal_id, "sequence": found.sequence, "chain": found.chain.hex()}
            click.echo(json.dumps(fields))
        else:
            click.echo(str(found))


@journal.command()
@click.option(
    "--from",
    "begin_after",
    type=click.IntRange(min=0),
    metavar="SEQUENCE",
    help="Begin at this cut ('billaged journal cuts'), 0 for the first row. Without it: the first row, or where that"
    " is not there any more the oldest cut that can be used.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep the recomputed ledger in this new file. Begins at the first row, and needs no ledger to compare with."
    " Without it: a temporary one (TMPDIR says where).",
)
@data_dir_option
def replay(begin_after: int | None, into: Path | None, data_dir: Path | None) -> None:
    """Compute the ledger anew from the journal, and compare.

    Folds every journal row that the ledger covers into a fresh file and compares all
    tables row by row. From a cut on it folds the rows after it, and compares what can have
    changed since: what was final at the cut is counted, and not compared.

    A ledger that is lost, damaged or of an earlier version: stop the daemon, then

    \b
    billaged journal replay --into /var/lib/billaged/anew.db
    billaged ledger restore /var/lib/billaged/anew.db

    Exit code 1 where a row differs; the first ones of each table are shown.
    """
    from billaged.ledger.checked import RESTORE_OR_FOLD
    from billaged.reports.errors import ProofFailed
    from billaged.reports.replay import replay as run
    from billaged.settings.kinds import printable

    if into is not None and begin_after:
        raise click.UsageError("--into keeps a whole ledger: it begins at the first row, not at a cut.")
    directory = data_dir_of(load_settings(), data_dir)
    with progress_bar("folding rows") as progress:
        compared = run(directory, into, progress, begin_after)
    print_pairs(_comparison(compared))
    if into is not None:
        click.echo(f"the recomputed ledger is in {into}")
    for problem in compared.problems:
        click.echo(problem)
    for table in compared.tables:
        for difference in table.first:
            click.echo(printable(_difference(difference)))
        if table.differing > len(table.first):
            click.echo(f"{table.table}: and {table.differing - len(table.first):,} more")
    if compared.equal:
        click.echo("equal" if compared.not_compared is None else f"compared with nothing: {compared.not_compared}")
        return
    sys.stdout.flush()
    if compared.differing:
        what_next = (
            "'billaged journal verify' says what is wrong with the journal." if compared.problems else RESTORE_OR_FOLD
        )
        raise ProofFailed(f"the ledger is not what its journal gives: {compared.differing:,} rows differ. {what_next}")
    raise ProofFailed("the journal was changed. 'billaged journal verify' says more.")


@journal.command()
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="json: exact."
)
@data_dir_option
def cuts(form: str, data_dir: Path | None) -> None:
    """List the cuts, at which a replay can begin.

    A cut is a journal row at which a snapshot of the ledger was taken. A replay can begin at each that has all rows
    after it, in the journal or its segments; 0 is before the first row. 'all there' means that these reach back to it:
    whether each row is there is what 'billaged journal verify' says. The chain is the journal's at that row.
    """
    from billaged.model.time import format_instant
    from billaged.reports.cuts import cuts_of
    from billaged.reports.sheet import Column, Sheet

    found = cuts_of(data_dir_of(load_settings(), data_dir))
    times = ["" if cut.made_ns is None else format_instant(cut.made_ns) for cut in found]
    if form == "json":
        listed = [
            {
                "sequence": cut.position,
                "made": time or None,
                "chain": cut.chain.hex() or None,
                "bytes": cut.bytes,
                "whole": cut.whole,
                "own": cut.is_own,
            }
            for cut, time in zip(found, times, strict=True)
        ]
        click.echo(json.dumps(listed))
        return
    columns = [Column("sequence", number=True), Column("made"), Column("bytes", number=True), Column("rows after it")]
    rows = [
        [
            str(cut.position),
            time or "the beginning",
            f"{cut.bytes:,}",
            _rows_after(cut),
            cut.chain.hex(),
        ]
        for cut, time in zip(found, times, strict=True)
    ]
    print_sheet(Sheet([*columns, Column("chain")], rows))


def _rows_after(cut: CutView) -> str:
    if not cut.is_own:
        return "of another journal"
    return "all there" if cut.whole else "missing"


def _verification(found: Verification) -> list[tuple[str, str]]:
    from billaged.model.time import format_instant
    from billaged.reports.findings import begun_anew_named

    pairs = [
        ("journal", str(found.path)),
        ("journal id", found.journal_id),
        ("rows", f"{found.rows:,}, from {found.pruned + 1:,} to {found.end:,}"),
    ]
    if found.segments:
        pairs.append(("segments", f"{found.segment_rows:,} rows in {found.segments:,}"))
    if found.beginning.after:
        pairs.append(("chain", f"begins after row {found.beginning.after:,}: rows up to there prove nothing"))
    pairs += [("begun anew", begun_anew_named(story)) for story in found.begun_anew]
    if found.first_received_ns is not None and found.last_received_ns is not None:
        span = f"{format_instant(found.first_received_ns)} to {format_instant(found.last_received_ns)}"
        pairs.append(("received", span))
    for kind, count in sorted(found.by_kind.items()):
        pairs.append((kind.name.lower(), f"{count:,}"))
    position = found.ledger_position
    pairs.append(("ledger", "cannot be read" if position is None else f"folded up to {position:,}"))
    return [*pairs, ("head", str(found.head))] if found.head is not None and not found.problems else pairs


def _comparison(compared: Comparison) -> list[tuple[str, str]]:
    if compared.begun_after:
        after = compared.begun_after
        pairs = [("journal", f"rows {after + 1:,} to {compared.position:,}, from the cut at {after:,}")]
    else:
        pairs = [("journal", f"{compared.position:,} rows")]
    return pairs + [(table.table, _table(table)) for table in compared.tables]


def _table(table: TableComparison) -> str:
    differing = f", {table.differing:,} differ" if table.differing else ""
    earlier = f"; {table.earlier:,} that were final at the cut not compared" if table.earlier else ""
    return f"{table.rows:,} rows{differing}{earlier}"


def _difference(difference: Difference) -> str:
    key = ", ".join(f"{name}={value}" for name, value in difference.key.items())
    head = f"{difference.table}: {key}:"
    if difference.ledger is None:
        return f"{head} is not in the ledger"
    if difference.journal is None:
        return f"{head} does not follow from the journal"
    changes = (f"{name} is {value}, should be {difference.journal[name]}" for name, value in difference.ledger.items())
    return f"{head} {'; '.join(changes)}"
