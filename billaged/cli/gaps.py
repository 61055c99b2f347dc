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
@click.option("--open", "only_open", is_flag=True, help="Only what has no end yet, by instance and VM.")
def gaps(
    vm_id: str | None,
    customer_id: str | None,
    from_text: str | None,
    to_text: str | None,
    form: str,
    data_dir: Path | None,
    only_open: bool,
) -> None:
    """List gaps that overlap the span from --from up to --to, each in full, with the reasons for it.

    \b
    closed    accounted for as a gap: between two samples (step), from a start to the first
              sample (start), or from the last sample to a stop (stop); with the counters
              billed across it
    reported  a sender said that samples may be missing; what came of it is in the others
    pending   a running VM is silent: until now, nothing is known
    outside   a session ended unseen (missed_stop, vanished): from its end to the VM's next
              start, or until now

    \b
    silent_vm      its instance sends heartbeats, but the VM's samples do not come
    silent_host    no instance that lists the VM sends heartbeats
    vanished       no instance lists the VM any more
    billaged_down  billaged was not running, or refused
    reported       a sender said so
    no_samples     nothing else is known
    """
    from billaged.ledger.database import FILE_NAME
    from billaged.ledger.reader import reading
    from billaged.ledger.views import Subject
    from billaged.reports.gaps import (
        GAP_FIELDS,
        gap_json,
        gap_lines,
        gap_record,
        gap_sheet,
        open_gap_lines,
        open_gap_sheet,
    )
    from billaged.reports.sheet import as_csv, as_json
    from billaged.reports.span import bounded

    span = bounded(from_text, to_text)
    with reading(data_dir_of(load_settings(), data_dir) / FILE_NAME) as ledger:
        lines = gap_lines(ledger, Subject(vm_id, customer_id), span, time.time_ns())
    if only_open:
        lines = open_gap_lines(lines)
    if form == "table":
        print_sheet(open_gap_sheet(lines) if only_open else gap_sheet(lines))
    elif form == "json":
        click.echo(as_json([gap_json(line) for line in lines]))
    else:
        click.echo(as_csv(GAP_FIELDS, [gap_record(line) for line in lines]))
