"""``billaged config``: the settings in force, and where each came from."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from billaged.settings import SettingLine, Settings
from billaged.settings.kinds import printable

HEADINGS: Final = ("name", "value", "from", "")
UNSET: Final = "(not set)"
NOTE: Final = "does nothing yet"


@click.group()
def config() -> None:
    """Look at the settings."""


@config.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "env"]),
    default="table",
    show_default=True,
    help="table: to read. json: a list of objects. env: NAME=value lines for a shell.",
)
def show(form: str) -> None:
    """Print each setting with its value in force and where it came from.

    Checks the environment as 'billaged serve' would: a wrong value or an unknown
    name is an error, exit code 2. Secrets are shown as ***.
    """
    lines = list(Settings.load(os.environ).lines())
    if form == "json":
        click.echo(as_json(lines))
    elif form == "env":
        # Bytes, because a path may hold some that are no text.
        click.echo(as_env(lines).encode("utf-8", "surrogateescape"))
    elif (console := Console()).is_terminal:
        console.print(as_table(lines))
    else:
        click.echo(as_columns(lines))


def as_json(lines: Sequence[SettingLine]) -> str:
    """A JSON list: name, value (null where not set), source, not_yet."""
    return json.dumps(
        [{"name": line.name, "value": line.value, "source": line.source, "not_yet": line.not_yet} for line in lines],
        indent=2,
    )


def as_env(lines: Sequence[SettingLine]) -> str:
    """``NAME=value`` lines, quoted for a shell; what has no value to give is a comment."""
    return "\n".join(
        f"# {line.name}={'' if line.value is None else line.value}"
        if line.value is None or line.secret
        else f"{line.name}={shlex.quote(line.value)}"
        for line in lines
    )


def as_columns(lines: Sequence[SettingLine]) -> str:
    """Aligned columns without frame or colour, one setting a line."""
    rows = [HEADINGS, *(_cells(line) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_table(lines: Sequence[SettingLine]) -> Table:
    """A table for a terminal; what the environment sets stands out."""
    table = Table(*HEADINGS, header_style="bold")
    section = lines[0].section
    for line in lines:
        if line.section != section:
            table.add_section()
            section = line.section
        style = "bold" if line.source == "environment" else ""
        # Text, not str: a value's brackets are no markup.
        table.add_row(*(Text(cell, style=style, overflow="fold") for cell in _cells(line)))
    return table


def _cells(line: SettingLine) -> tuple[str, str, str, str]:
    set_in_vain = line.not_yet and line.source == "environment"
    value = UNSET if line.value is None else printable(line.value)
    return line.name, value, line.source, NOTE if set_in_vain else ""
