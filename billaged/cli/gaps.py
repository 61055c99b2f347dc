"""``billaged gaps``: what was not measured."""

from __future__ import annotations

import time
from pathlib import Path

import click

from billaged.cli.reading import (
    customer_option,
    data_dir_of,
    data_dir_option,
    format_option,
    load_settings,
    print_sheet,
    span_options,
)


@click.command()
@click.option("--vm", "vm_id", metavar="ID", help="Only this VM's.")
@customer_option
@span_options("the beginning", "no end")
@format_option
@data_dir_option
def gaps(
    vm_id: str | None,
    customer_id: str | None,
    from_text: str | None,
    to_text: str | None,
    form: str,
    data_dir: Path | None,
) -> None:
    """List gaps that overlap the span from --from up to --to, each in full.

    \b
    closed    accounted for as a gap: between two samples (step), from a start to the first
              sample (start), or from the last sample to a stop (stop); with the counters
              billed across it
    reported  a sender said that samples may be missing; what came of it is in the others
    pending   a running VM has been silent for longer than the gap threshold, until now
    """
    from billaged.ledger.database import FILE_NAME
    from billaged.ledger.reader import reading
    from billaged.ledger.views import Subject
    from billaged.reports.gaps import GAP_FIELDS, gap_lines, gap_record, gap_sheet
    from billaged.reports.sheet import as_csv, as_json
    from billaged.reports.span import bounded

    span = bounded(from_text, to_text)
    with reading(data_dir_of(load_settings(), data_dir) / FILE_NAME) as ledger:
        lines = gap_lines(ledger, Subject(vm_id, customer_id), span, time.time_ns())
    if form == "table":
        print_sheet(gap_sheet(lines))
        return
    records = [gap_record(line) for line in lines]
    click.echo(as_json(records) if form == "json" else as_csv(GAP_FIELDS, records))
