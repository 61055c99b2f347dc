"""What the commands that back up and restore share: the pace, progress in bytes, and saying what was done."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click
from rich.console import Console

if TYPE_CHECKING:
    from billaged.backup.restore import Restored

_RATE_MIB: Final = 64

rate_option: Final = click.option(
    "--rate",
    "rate_mib",
    type=click.IntRange(min=0),
    metavar="MIB",
    default=_RATE_MIB,
    show_default=True,
    help="Most MiB to copy in a second, so that the daemon answers as before; 0 is as fast as it goes.",
)
json_option: Final = click.option("--json", "as_json", is_flag=True, help="Say what was done as JSON, for programs.")


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Who is asked to end in the middle leaves no large files behind: the body is left as by an exception."""

    def end(number: int, _frame: object) -> None:
        # As a shell calls a process that a signal has ended.
        sys.exit(128 + number)

    # What is ignored (nohup) stays so.
    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bytes(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's stderr, for bytes done of all; nothing elsewhere. SIGTERM ends the body cleanly."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True)),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    )
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with _cleaning_up(), bar:
        task = bar.add_task(label, total=None)

        def told(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield told


def opened(path: Path) -> IO[bytes]:
    """
    Raises:
        StorageError: it cannot be read.
    """
    from billaged.model.errors import StorageError

    try:
        return path.open("rb")
    except OSError as error:
        raise StorageError(f"there is no backup to read at {path}: {error.strerror}.") from error


def print_made(fields: Mapping[str, Any], *, as_json: bool, on_stderr: bool = False) -> None:
    """Names and values, a pair a line or as JSON; what is None is for programs only."""
    if as_json:
        click.echo(json.dumps(fields), err=on_stderr)
        return
    width = max(map(len, fields))
    for name, value in fields.items():
        if value is not None:
            text = f"{value:,}" if type(value) is int else str(value)
            click.echo(f"{name.replace('_', ' ').ljust(width)}  {text}", err=on_stderr)


def print_restored(done: Restored, data_dir: Path, *, as_json: bool) -> None:
    set_aside = None if done.set_aside is None else str(done.set_aside)
    print_made({"data_dir": str(data_dir), **done._asdict(), "set_aside": set_aside}, as_json=as_json)
    if not as_json:
        behind = done.journal_position - done.ledger_position
        click.echo(f"start the daemon: it folds the {behind:,} rows that the ledger has not yet")
