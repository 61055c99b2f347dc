"""``billaged ledger``: back up, restore and check the ledger's file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from billaged.cli.copying import json_option, print_made, print_restored, progress_bytes, rate_option
from billaged.cli.reading import data_dir_of, data_dir_option, format_option, load_settings, print_sheet, progress_bar

if TYPE_CHECKING:
    from billaged.reports.ledger_file import LedgerChecked


@click.group()
def ledger() -> None:
    """Back up, restore and check the ledger.

    'backup' and 'check' work while the daemon runs; 'restore' needs it down. For when the
    whole disk is gone there is 'billaged backup'.
    """


@ledger.command()
@click.option(
    "--to",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="A new file; - is stdout, by way of a copy in TMPDIR. Without it: backups/ in the data directory.",
)
@click.option(
    "--keep", type=click.IntRange(min=1), metavar="N", help="Keep only the N newest of those made without --to."
)
@rate_option
@json_option
@data_dir_option
def backup(to: Path | None, keep: int | None, rate_mib: int, as_json: bool, data_dir: Path | None) -> None:
    """Copy the ledger, as it is at one moment, into one file. The daemon may run.

    The file gets its name when all of it is on the disk. It can be restored beside the journal
    that the ledger was folded from, while that still has the rows since (UNKEY_BILLAGED_JOURNAL_RETENTION).
    ledger.db-wal grows meanwhile, by what the daemon commits.

    \b
    billaged ledger backup --keep 7
    billaged ledger backup --to /backup/ledger-$(date +%F).db
    """
    from billaged.backup.ledger import copy_beside, copy_to_file, copy_to_stream
    from billaged.ledger.copying import Pace

    if keep is not None and to is not None:
        raise click.UsageError("--keep is for backups made without --to.")
    settings = load_settings()
    directory, pace = data_dir_of(settings, data_dir), Pace(rate_mib << 20)
    spare_bytes = settings.storage.min_free_bytes
    with progress_bytes("copying the ledger") as told:
        if to is None:
            made = copy_beside(directory, keep, spare_bytes, pace, told)
        elif str(to) == "-":
            made = copy_to_stream(directory, sys.stdout.buffer, spare_bytes, pace, told)
        else:
            made = copy_to_file(directory, to, spare_bytes, pace, told)
    fields = {
        "backup": "-" if made.path is None else str(made.path),
        "bytes": made.bytes,
        "journal_id": made.found.journal_id,
        "ledger_position": made.found.position,
        "ledger_schema": made.found.schema,
    }
    print_made(fields, as_json=as_json, on_stderr=made.path is None)


@ledger.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="FILE")
@json_option
@data_dir_option
def restore(source: Path, as_json: bool, data_dir: Path | None) -> None:
    """Put a backup of the ledger in the ledger's place. The daemon must be down.

    Nothing is lost by it: at its next start the daemon folds what the journal has since, and the ledger
    is what it would have been. Before anything is replaced the file is read through, brought up to this
    version's schema, and compared with the journal: a start must be able to go on from it. What is
    replaced is kept, in the folder replaced-... of the data directory.

    \b
    systemctl stop billaged
    billaged ledger restore /var/lib/billaged/backups/ledger-20261121T030000Z.db
    systemctl start billaged
    """
    from billaged.backup.restore import restore_ledger

    directory = data_dir_of(load_settings(), data_dir)
    with progress_bytes("restoring the ledger") as told:
        done = restore_ledger(directory, source, told)
    print_restored(done, directory, as_json=as_json)


@ledger.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="[FILE]", required=False)
@format_option
@data_dir_option
def check(file: Path | None, form: str, data_dir: Path | None) -> None:
    """Check the ledger of the data directory, or the copy FILE.

    The daemon may run. Says its schema and position, then does what 'billaged verify --quick' does: the file's
    structure, every row, and the journal that it was folded from. Of a FILE all but the journal.

    Exit code 1 where something is wrong.
    """
    from billaged.reports.ledger_check.advice import failure
    from billaged.reports.ledger_check.paper import broken_lines, reach_lines, verdict_csv, verdict_sheet
    from billaged.reports.ledger_file import check_copy, check_ledger

    if file is not None:
        checked = check_copy(file, progress_bar)
    else:
        checked = check_ledger(data_dir_of(load_settings(), data_dir), progress_bar)
    if form == "csv":
        click.echo(verdict_csv(checked.verdict))
    elif form == "json":
        click.echo(_json(checked))
    else:
        print_made(_fields(checked), as_json=False)
        print_sheet(verdict_sheet(checked.verdict))
        for line in (*reach_lines(checked.verdict), *broken_lines(checked.verdict)):
            click.echo(line)
    sys.stdout.flush()
    if checked.verdict.broken:
        raise failure(checked.verdict, is_copy=file is not None)


def _fields(checked: LedgerChecked) -> dict[str, Any]:
    return {
        "ledger": str(checked.path),
        "schema": checked.found.schema,
        "journal_id": checked.found.journal_id,
        "position": checked.found.position,
    }


def _json(checked: LedgerChecked) -> str:
    from billaged.reports.ledger_check.paper import verdict_json

    return json.dumps({**_fields(checked), "verify": json.loads(verdict_json(checked.verdict))}, indent=2)
