"""``billaged serve``: the daemon."""

from __future__ import annotations

import os
import signal
import sys

import click


@click.command()
def serve() -> None:
    """Run the daemon until SIGTERM or Ctrl-C.

    All settings come from UNKEY_BILLAGED_* variables; 'billaged config show' prints
    what is in force. For a first try without certificates:

    \b
        UNKEY_BILLAGED_TLS_MODE=disabled UNKEY_BILLAGED_ADDRESS=127.0.0.1 \\
        UNKEY_BILLAGED_DATA_DIR=./var billaged serve
    """
    _stand_in_for_closed_streams()
    # Until there is something to read again: by default it would end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # gRPC's core writes lines of its own beside the log, one for each failed handshake.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from billaged import daemon
    from billaged.cli.allocator import give_large_blocks_back
    from billaged.settings import Settings
    from billaged.telemetry import logs

    settings = Settings.load(os.environ)
    style = settings.log.format
    if style == "auto":
        style = "text" if sys.stdout.isatty() else "json"
    logs.configure(
        settings.log.level, style, levels=settings.log.levels_by_logger(), audit_file=settings.log.audit_file
    )
    # The thread that waits for the interpreter's lock gets it sooner: a busy event loop
    # would else hold up the journal writer by 5 ms each time it wants it back.
    sys.setswitchinterval(0.0005)
    give_large_blocks_back()
    daemon.serve(settings, readable_log=style == "text")


def _stand_in_for_closed_streams() -> None:
    """A file of the daemon's must not get the number that a library writes its last words to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), "w", encoding="utf-8"))
