"""``billaged usage``: what a VM or a customer used."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from billaged.cli.reading import (
    data_dir_of,
    data_dir_option,
    format_option,
    load_settings,
    print_sheet,
    span_options,
)

if TYPE_CHECKING:
    from billaged.reports.usage import By

_month_so_far: Final = span_options("the first of the month that --to lies in", "today, UTC")


@click.group()
def usage() -> None:
    """Report what a VM or a customer used, from --from up to --to.

    Usage is what the ledger's facts and corrections say for the buckets inside the span,
    and each gap's counters in proportion to its time inside the span. A span that cuts
    through a bucket with usage is refused: inside a bucket nothing finer is known.

    'gap' is time that was not measured: its memory is not in the numbers, its CPU time,
    disk and network are (their total is known, their times are not; 'cpu in gap' says
    how much). The score's memory is the mean over the time that was measured or a gap;
    a customer's score is the sum of its VMs'. So the scores of buckets and sessions do
    not add up to the total's. Its weights are those of UNKEY_BILLAGED_SCORE_* here.
    """


@usage.command()
@click.argument("vm_id", metavar="ID")
@_month_so_far
@click.option(
    "--by",
    type=click.Choice(["total", "session", "bucket"]),
    default="total",
    show_default=True,
    help="A line for each session, or for each of the ledger's time buckets.",
)
@format_option
@data_dir_option
def vm(vm_id: str, from_text: str | None, to_text: str | None, by: By, form: str, data_dir: Path | None) -> None:
    """What the VM ID used."""
    _report(vm_id, None, from_text, to_text, by, form, data_dir)


@usage.command()
@click.argument("customer_id", metavar="ID")
@_month_so_far
@click.option(
    "--by",
    type=click.Choice(["total", "vm", "bucket"]),
    default="total",
    show_default=True,
    help="A line for each VM, or for each of the ledger's time buckets.",
)
@format_option
@data_dir_option
def customer(
    customer_id: str, from_text: str | None, to_text: str | None, by: By, form: str, data_dir: Path | None
) -> None:
    """What all VMs of the customer ID used.

    A VM that changed hands counts with the sessions that were this customer's.
    """
    _report(None, customer_id, from_text, to_text, by, form, data_dir)


def _report(
    vm_id: str | None,
    customer_id: str | None,
    from_text: str | None,
    to_text: str | None,
    by: By,
    form: str,
    data_dir: Path | None,
) -> None:
    from billaged.ledger.database import FILE_NAME
    from billaged.ledger.reader import reading
    from billaged.ledger.views import Subject
    from billaged.reports.span import month_so_far
    from billaged.reports.usage import usage_report
    from billaged.reports.usage_text import usage_csv, usage_json, usage_sheet

    settings = load_settings()
    span = month_so_far(from_text, to_text, time.time_ns())
    with reading(data_dir_of(settings, data_dir) / FILE_NAME) as ledger:
        report = usage_report(ledger, Subject(vm_id, customer_id), span, by, settings.score.weights())
    if form == "table":
        print_sheet(usage_sheet(report))
    else:
        click.echo(usage_json(report) if form == "json" else usage_csv(report))
