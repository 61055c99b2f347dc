"""Errors as a terminal sees them: a line on stderr and an exit code, never a traceback.

Exit codes:

    0   it worked
    1   it failed: the server refused, the storage cannot be used, a commit failed, no identity came
    2   it could not begin: a wrong argument, a wrong setting, a port in use

An error that is none of ours is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from billaged.model.errors import (
    EXIT_FAILURE,
    EXIT_USAGE,
    BillagedError,
    Broken,
    DurabilityLost,
    IdentityUnavailable,
    SettingError,
    StartError,
    StorageError,
)

# The first class that fits counts, so the special stand before the general.
_EXIT_CODES: tuple[tuple[type[BillagedError], int], ...] = (
    (SettingError, EXIT_USAGE),
    (StorageError, EXIT_FAILURE),
    (DurabilityLost, EXIT_FAILURE),
    (IdentityUnavailable, EXIT_FAILURE),
    (Broken, EXIT_FAILURE),
    (StartError, EXIT_USAGE),
    (BillagedError, EXIT_FAILURE),
)


def exit_code(error: BillagedError) -> int:
    """The exit code an error stands for."""
    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


@contextmanager
def exit_codes() -> Iterator[None]:
    """Run the body; end the process where it raises one of our errors. Also a decorator.

    Each line of the message (which has the hint in it) is a line on stderr,
    ``billaged: error: ...``.

    Raises:
        SystemExit: instead of any ``BillagedError``, with 1 or 2 as the module says.
    """
    try:
        yield
    except BillagedError as error:
        from billaged.settings.kinds import printable

        for line in str(error).splitlines() or [type(error).__name__]:
            click.echo(f"billaged: error: {printable(line)}", err=True)
        sys.exit(exit_code(error))
