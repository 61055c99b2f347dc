"""``billaged journal begin-anew``: a journal that is lost goes on behind its ledger."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from billaged.cli.copying import json_option, print_made
from billaged.cli.reading import data_dir_of, data_dir_option, load_settings

if TYPE_CHECKING:
    from billaged.backup.begin_anew import Begun, Plan


@click.command("begin-anew")
@click.option("--yes", is_flag=True, help="Do not ask. Needed where nobody can be asked.")
@json_option
@data_dir_option
def begin_anew(yes: bool, as_json: bool, data_dir: Path | None) -> None:
    """Go on in a new journal, behind a ledger that is whole. The daemon must be down.

    For a journal that is lost, or lacks rows at its end that the ledger has folded: a start refuses it, and no backup
    has a newer one. Nothing that is billed changes, and no row of the old file that can be read and that the ledger has
    not folded is given up: where there are such rows, it refuses. The new journal has the old one's id and begins after
    the row that the ledger has come to, with its chain. A snapshot of the ledger becomes the cut that replays begin at
    from now on.

    What it costs: the rows before are not there to replay, and what they gave can only be held against itself.
    'billaged verify' and 'billaged journal verify' say from then on which rows these are, and each start logs it
    (logger billaged.audit). The old files are kept, in the folder replaced-... of the data directory.

    \b
    systemctl stop billaged
    billaged verify --ledger-only
    billaged journal begin-anew
    systemctl start billaged
    """
    from billaged.backup.begin_anew import begin_anew as run

    def agreed(plan: Plan) -> bool:
        for line in _told(plan):
            click.echo(line, err=True)
        if yes:
            return True
        if not sys.stdin.isatty():
            raise click.UsageError("nothing has changed. Give --yes to do it where nobody can be asked.")
        return click.confirm("Begin a new journal?", err=True)

    begun = run(data_dir_of(load_settings(), data_dir), agreed)
    if begun is None:
        raise click.Abort
    print_made(_made(begun), as_json=as_json)


def _told(plan: Plan) -> list[str]:
    story = plan.begun.story
    lines = [f"the journal cannot go on: {plan.why}. The ledger has folded it up to row {story.after:,}."]
    if story.rows_lost:
        lines.append(f"rows {story.first_lost:,} to {story.after:,} will not be there to replay any more")
    if story.rows_unbilled:
        lines.append(
            f"rows {story.after + 1:,} to {story.given:,} were acknowledged and are nowhere: they will not be billed"
        )
    if not plan.end_known:
        lines.append(
            f"nobody can tell how far it went: rows after {story.after:,}, if any were acknowledged, will not be billed"
        )
    if plan.rows_there:
        lines.append(f"the {plan.rows_there:,} rows in its file are taken for what the ledger has folded")
    return lines


def _made(begun: Begun) -> dict[str, str | int | None]:
    story = begun.story
    return {
        "journal_id": begun.journal_id,
        "begins_after": story.after,
        "head": str(begun.head),
        "rows_lost": story.rows_lost,
        "first_lost": story.first_lost if story.rows_lost else None,
        "rows_unbilled": story.rows_unbilled,
        "set_aside": story.set_aside or None,
    }
