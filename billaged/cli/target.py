"""The options that say which billaged to talk to, shared by the commands that do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from billaged.model.time import NANOS, parse_duration

if TYPE_CHECKING:
    from billaged.client.channel import Target

DEFAULT_ADDRESS: Final = "127.0.0.1:8081"

Command = TypeVar("Command", bound=Callable[..., Any])


class Duration(click.ParamType[int]):
    """A Go-style duration; its value is nanoseconds, more than none."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            nanos = parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if nanos <= 0:
            self.fail(f"{value!r}: must be longer than nothing", param, ctx)
        return nanos


_PEM: Final = click.Path(exists=True, dir_okay=False, path_type=Path)

_OPTIONS: Final = (
    click.option(
        "--address",
        metavar="HOST:PORT",
        default=DEFAULT_ADDRESS,
        show_default=True,
        help="Where billaged listens for gRPC; unix:PATH works too.",
    ),
    click.option("--tls-ca", type=_PEM, help="PEM file with the CAs to trust. Without it: the system's."),
    click.option("--tls-cert", type=_PEM, help="PEM file with this client's certificate chain (with --tls-key)."),
    click.option("--tls-key", type=_PEM, help="PEM file with this client's private key (with --tls-cert)."),
    click.option("--tls-server-name", metavar="NAME", help="The DNS name to expect in the server's certificate."),
    click.option(
        "--timeout",
        "timeout_ns",
        type=Duration(),
        default="10s",
        show_default=True,
        help="How long to wait for an answer.",
    ),
)


def target_options(command: Command) -> Command:
    """Add ``--address``, ``--timeout`` and the ``--tls-*`` options; ``target_from`` takes their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def target_from(
    address: str,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_server_name: str | None,
    timeout_ns: int,
) -> Target:
    """Plaintext unless a ``--tls-*`` option is given. Raises UsageError for half an identity."""
    from billaged.client.channel import Target, TlsFiles  # grpc takes its time to import

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together: give both, or neither.")
    wants_tls = any(value is not None for value in (tls_ca, tls_cert, tls_server_name))
    tls = TlsFiles(tls_ca, tls_cert, tls_key, tls_server_name) if wants_tls else None
    return Target(address, tls, timeout_ns / NANOS)
