"""``billaged vms``: the VMs that the ledger knows."""

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
)


@click.command()
@customer_option
@click.option("--running/--all", default=False, help="Only VMs that run, or all (the default).")
@format_option
@data_dir_option
def vms(customer_id: str | None, running: bool, form: str, data_dir: Path | None) -> None:
    """List the VMs that the ledger knows, each with its newest session.

    'explicit' means that its start was announced, 'implicit' that its first sample began
    it. 'pending' is the time since a running VM's newest sample: it belongs to no account
    until the next sample, or a stop, says whether it was measured or a gap.

    Reads the ledger of the data directory; the daemon may run or not.
    """
    from billaged.ledger.database import FILE_NAME
    from billaged.ledger.reader import reading
    from billaged.ledger.views import Subject
    from billaged.reports.sheet import as_csv, as_json
    from billaged.reports.vms import VM_FIELDS, newest_sessions, vm_record, vm_sheet

    with reading(data_dir_of(load_settings(), data_dir) / FILE_NAME) as ledger:
        sessions = newest_sessions(ledger, Subject(customer_id=customer_id), running=running)
    now_ns = time.time_ns()
    if form == "table":
        print_sheet(vm_sheet(sessions, now_ns))
        return
    records = [vm_record(session, now_ns) for session in sessions]
    click.echo(as_json(records) if form == "json" else as_csv(VM_FIELDS, records))
