"""The options that say which billaged to talk to, shared by the commands that do."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

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


class SocketPath(click.Path):
    """A unix socket, as a path or as SPIFFE_ENDPOINT_SOCKET has it; whether it is there shows later."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = _SCHEME.sub("", str(value))
        if not path:
            self.fail("must not be empty", param, ctx)
        return super().convert(path, param, ctx)


def _check_domain(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    name = value.removeprefix("spiffe://")
    if not _DOMAIN.fullmatch(name):
        raise click.BadParameter(f"{value!r} is not a trust domain; write it like example.org")
    return name


# The daemon's: both may run under one environment.
_OTHERS_PREFIX: Final = "BILLAGED_OTEL_"
_SCHEME: Final = re.compile(r"^unix:(//)?")
_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_PEM: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILE_NAMES: Final = ("tls_ca", "tls_cert", "tls_key")


def _option(flag: str, **parameters: Any) -> Callable[[Command], Command]:
    # Not the daemon's prefix: these say where to send, and both may run under one environment.
    envvar = "BILLAGED_" + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, envvar=envvar, show_envvar=True, **parameters)


_OPTIONS: Final = (
    _option(
        "--address",
        metavar="HOST:PORT",
        default=DEFAULT_ADDRESS,
        show_default=True,
        help="Where billaged listens for gRPC; unix:PATH works too.",
    ),
    _option("--tls-ca", type=_PEM, help="PEM file with the CAs to trust. Without it: the system's."),
    _option("--tls-cert", type=_PEM, help="PEM file with this client's certificate chain (with --tls-key)."),
    _option("--tls-key", type=_PEM, help="PEM file with this client's private key (with --tls-cert)."),
    _option(
        "--tls-server-name",
        metavar="NAME",
        help="The DNS name to expect in the server's certificate. Default: the host; with --spiffe-socket: billaged.",
    ),
    _option(
        "--spiffe-socket",
        metavar="PATH",
        type=SocketPath(),
        help="Certificate and CAs from the SPIFFE agent behind this socket.",
    ),
    _option(
        "--spiffe-trust-domain",
        metavar="NAME",
        callback=_check_domain,
        help="The trust domain that the server is in. Default: this client's own.",
    ),
    _option(
        "--allow-plaintext",
        is_flag=True,
        help="Consent to plaintext to another machine; without it, that takes TLS.",
    ),
    _option(
        "--timeout",
        type=Duration(),
        default="10s",
        show_default=True,
        help="How long to wait for an answer, and before that for an identity.",
    ),
)
TARGET_NAMES: Final = (
    "address",
    *_FILE_NAMES,
    "tls_server_name",
    "spiffe_socket",
    "spiffe_trust_domain",
    "allow_plaintext",
    "timeout",
)


def target_options(command: Command) -> Command:
    """Add ``--address``, ``--timeout`` and what secures the connection; ``target_from`` takes the ``TARGET_NAMES``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def target_from(
    address: str,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_server_name: str | None,
    spiffe_socket: Path | None,
    spiffe_trust_domain: str | None,
    allow_plaintext: bool,
    timeout: int,
) -> Target:
    """Plaintext unless a ``--tls-*`` or ``--spiffe-*`` option is given, and then on this machine only.

    Raises:
        UsageError: they do not go together, or a variable is none of ours.
    """
    _refuse_unknown_variables()
    # The core writes what went wrong past every log; what matters of it is in the failed call's details.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from billaged.client.channel import Target  # grpc takes its time to import
    from billaged.client.tls import SPIFFE_SERVER_NAME, SpiffeAgent, Tls, TlsFiles

    files = {"--tls-ca": tls_ca, "--tls-cert": tls_cert, "--tls-key": tls_key}
    given = [flag for flag, path in files.items() if path is not None]
    tls: Tls | None = None
    if spiffe_socket is not None:
        if given:
            raise click.UsageError(
                f"{_said('--spiffe-socket')} and {_said(given[0])} exclude each other: "
                "certificates come from the SPIFFE agent or from files."
            )
        tls = SpiffeAgent(spiffe_socket, tls_server_name or SPIFFE_SERVER_NAME, spiffe_trust_domain)
    elif spiffe_trust_domain is not None:
        raise click.UsageError(f"{_said('--spiffe-trust-domain')} needs --spiffe-socket.")
    elif (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together: give both, or neither.")
    elif given or tls_server_name is not None:
        tls = TlsFiles(tls_ca, tls_cert, tls_key, tls_server_name)
    if tls is None and not allow_plaintext and not _is_here(address):
        raise click.UsageError(
            f"{_said('--address')} is {address}: usage would go there in plaintext, to whoever answers. Give"
            " --spiffe-socket, or --tls-ca with --tls-cert and --tls-key; where plaintext is meant, --allow-plaintext."
        )
    return Target(address, tls, timeout / NANOS)


def _refuse_unknown_variables() -> None:
    """A slip in the name of one that asks for TLS must not end in plaintext. Raises UsageError."""
    known = ["BILLAGED_" + name.upper() for name in TARGET_NAMES]
    for name in sorted(os.environ):
        if name.startswith("BILLAGED_") and not name.startswith(_OTHERS_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"the names are {', '.join(known)}"
            raise click.UsageError(f"{name}: unknown variable; {advice}")


def _is_here(address: str) -> bool:
    """Whether only this machine answers at an address as gRPC takes it."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = re.sub(r"^(ipv4:|ipv6:|dns:///?)", "", address)
    if (not host.startswith("[") and host.count(":") == 1) or host.startswith("["):
        host = host.rpartition(":")[0] if not host.endswith("]") else host
    host = host.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _said(flag: str) -> str:
    """The option, and the variable where that was what set it: nobody looks for it in a shell's history."""
    context = click.get_current_context(silent=True)
    name = flag.removeprefix("--").replace("-", "_")
    if context is None or context.get_parameter_source(name) is not ParameterSource.ENVIRONMENT:
        return flag
    return f"{flag} (from BILLAGED_{name.upper()})"
