"""``billaged verify``: whether the ledger holds what it must, row by row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from billaged.cli.reading import (
    data_dir_of,
    data_dir_option,
    format_option,
    load_settings,
    print_sheet,
    progress_bar,
)

if TYPE_CHECKING:
    from billaged.reports.ledger_check.verdict import Scope


@click.command()
@click.option("--vm", "vm_id", metavar="ID", help="Only this VM's rows.")
@click.option(
    "--customer",
    "customer_id",
    metavar="ID",
    help="Only rows of VMs that this customer has or had, with all they have.",
)
@click.option("--quick", is_flag=True, help="Do not fold the journal anew, which takes the longest.")
@click.option(
    "--ledger-only", is_flag=True, help="Neither read the journal nor fold it anew: for a copy of a ledger.db."
)
@format_option
@data_dir_option
def verify(
    vm_id: str | None, customer_id: str | None, quick: bool, ledger_only: bool, form: str, data_dir: Path | None
) -> None:
    """Check the whole ledger, and say which row breaks which invariant.

    \b
    file        SQLite finds nothing wrong with the file
    values      each value is of its type, and one that billaged writes
    lifetime    measured + gap = life, to the nanosecond, session by session
    order       starts, samples and ends follow each other; one newest session a VM
    overlap     no two sessions of a VM overlap, no two gaps of a session
    stop        no usage and no gap before a start or after an end
    sums        facts + corrections + gaps = totals, session by session
    buckets     measured + gap = life in each bucket; nothing negative
    memory      memory x time is no more than the peak over the measured time
    owner       facts, corrections and gaps have their session's customer
    references  rows name sessions and journal rows that there are
    silences    a silence ends after it starts; open ones are of running VMs
    tallies     the tallies are what the rows add up to
    journal     the journal is whole, as 'billaged journal verify' says
    replay      the journal gives this ledger, as 'billaged journal replay' says

    Reads the data directory only; the daemon may run. With --vm or --customer file, tallies, journal and replay,
    which are of the whole ledger, are not checked.

    Exit code 1 where a row breaks an invariant; the first ones of each are shown.
    """
    from billaged.ledger.views import Subject
    from billaged.reports.ledger_check.advice import failure
    from billaged.reports.ledger_check.paper import broken_lines, reach_lines, verdict_csv, verdict_json, verdict_sheet
    from billaged.reports.ledger_check.verdict import verdict

    directory = data_dir_of(load_settings(), data_dir)
    scope: Scope = "ledger" if ledger_only else "quick" if quick else "all"
    found = verdict(directory, Subject(vm_id, customer_id), scope, progress_bar)
    if form == "table":
        print_sheet(verdict_sheet(found))
        for line in (*reach_lines(found), *broken_lines(found)):
            click.echo(line)
    else:
        click.echo(verdict_json(found) if form == "json" else verdict_csv(found))
    sys.stdout.flush()
    if found.broken:
        raise failure(found)
