"""``billaged version``."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Final

import click

from billaged import __version__

# What a bug report wants to know beside the version.
_LIBRARIES: Final = ("grpcio", "protobuf", "numpy", "SQLAlchemy", "uvloop", "psutil")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, with the versions that a bug report wants.")
def version(as_json: bool) -> None:
    """Print the version."""
    if not as_json:
        click.echo(f"billaged {__version__}")
        return
    libraries = {name: _installed(name) for name in _LIBRARIES}
    click.echo(
        json.dumps(
            {
                "service": "billaged",
                "version": __version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "libraries": libraries,
            },
            indent=2,
        )
    )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
