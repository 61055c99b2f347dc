"""``billaged bill``: what a VM or a customer is billed for a period, and what stands behind it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from billaged.cli.reading import (
    customer_option,
    data_dir_of,
    data_dir_option,
    format_option,
    load_settings,
    print_sheet,
)

if TYPE_CHECKING:
    from billaged.reports.bill import BillBy


@click.command()
@click.option("--vm", "vm_id", metavar="ID", help="This VM's; with --customer, only what was that customer's.")
@customer_option
@click.option(
    "--period",
    "period_text",
    required=True,
    metavar="PERIOD",
    help="2026-11, 2026-11-15, 2026-11-01..2026-11-15 (the last day is in it), this-month, last-month, today, "
    "yesterday; UTC.",
)
@click.option(
    "--by",
    type=click.Choice(["vm", "bucket"]),
    default="vm",
    show_default=True,
    help="bucket: also what was measured in each of the ledger's time buckets, VM by VM.",
)
@format_option
@data_dir_option
def bill(
    vm_id: str | None, customer_id: str | None, period_text: str, by: BillBy, form: str, data_dir: Path | None
) -> None:
    """Print the bill of a period, with every nanosecond accounted for.

    \b
    lifetime  what the sessions lived in the period: always measured + gap, to the nanosecond
    complete  how much of the lifetime was measured; rounded down, so 100 % is all of it
    pending   since the newest sample of a running VM: in no account yet, and in no number here

    Below are the gaps and anomalies that touch the period: a gap whole, and its part in the period with the part of
    its counters (in proportion to time); an anomaly with its time and the values that came. The usage is that of
    'billaged usage'.
    """
    if vm_id is None and customer_id is None:
        raise click.UsageError("Whose bill? Give --vm or --customer.")
    from billaged.ledger.database import FILE_NAME
    from billaged.ledger.reader import reading
    from billaged.ledger.views import Subject
    from billaged.reports.bill import bill as bill_of
    from billaged.reports.bill_sheets import bill_sheets
    from billaged.reports.bill_text import bill_csv, bill_json
    from billaged.reports.period import period
    from billaged.settings.kinds import printable

    settings = load_settings()
    span = period(period_text, time.time_ns())
    with reading(data_dir_of(settings, data_dir) / FILE_NAME) as ledger:
        made = bill_of(ledger, Subject(vm_id, customer_id), span, by, settings.score.weights(), time.time_ns())
    if form != "table":
        click.echo(bill_json(made) if form == "json" else bill_csv(made))
        return
    for number, (heading, sheet) in enumerate(bill_sheets(made)):
        click.echo(f"\n{printable(heading)}" if number else printable(heading))
        print_sheet(sheet)
