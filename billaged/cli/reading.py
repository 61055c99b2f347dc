"""What the commands that read share: where the data is, the format of the answer, progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from rich.console import Console

from billaged.model.errors import SettingError

if TYPE_CHECKING:
    from billaged.reports.sheet import Sheet
    from billaged.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

# Wider than any table.
_ANY_WIDTH: Final = 100_000

data_dir_option: Final = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIRECTORY",
    help="The daemon's data directory. Without it: UNKEY_BILLAGED_DATA_DIR, then /var/lib/billaged.",
)

format_option: Final = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="table: to read, rounded. json, csv: exact integers, for programs.",
)

customer_option: Final = click.option("--customer", "customer_id", metavar="ID", help="Only this customer's.")


def span_options(default_from: str, default_to: str) -> Callable[[Command], Command]:
    """``--from`` and ``--to`` as ``from_text`` and ``to_text``; what they mean is ``reports.span``'s to say."""

    def add(command: Command) -> Command:
        command = click.option(
            "--to",
            "to_text",
            metavar="TIME",
            help=f"Its end, which is not in it; a date without a time includes that day. Default: {default_to}.",
        )(command)
        return click.option(
            "--from",
            "from_text",
            metavar="TIME",
            help=f"Beginning of the span: RFC 3339 or a date, UTC where no offset is given. Default: {default_from}.",
        )(command)

    return add


def load_settings() -> Settings:
    from billaged.settings import Settings

    return Settings.load(os.environ)


def data_dir_of(settings: Settings, given: Path | None) -> Path:
    """The directory to read, as given or as set.

    Raises:
        SettingError: nothing is on disk to read.
    """
    if given is not None:
        return given
    if settings.storage.store == "memory":
        raise SettingError(
            "UNKEY_BILLAGED_STORE is memory: that daemon keeps its ledger to itself.",
            "Give --data-dir to read another one's; watch summaries with WatchSummaries.",
        )
    return settings.storage.data_dir


def print_sheet(sheet: Sheet) -> None:
    """A table on a terminal, where it fits; aligned columns for a file or a pipe, where lines may be long."""
    from billaged.reports.sheet import as_blocks, as_columns, as_table

    console = Console()
    if not console.is_terminal:
        click.echo(as_columns(sheet))
        return
    table = as_table(sheet)
    wanted = console.measure(table, options=console.options.update(max_width=_ANY_WIDTH)).maximum
    if wanted <= console.width:
        console.print(table)
    else:
        # Cells cut or folded into scraps cannot be read.
        click.echo(as_blocks(sheet))


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and values, one pair a line."""
    from billaged.settings.kinds import printable

    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name.ljust(width)}  {printable(value)}")


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's stderr, for what may take long; nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield tell
