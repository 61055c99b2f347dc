"""``billaged certs``: certificates for trying mTLS."""

from __future__ import annotations

import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from billaged.cli.target import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from billaged.identity.development.folder import Line

DEFAULT_CLIENTS: Final = ("metald", "operator")
_PREFIX: Final = "UNKEY_BILLAGED_"
_NAME: Final = "billaged"


class Checked(click.ParamType[str]):
    """A name that a function of ``identity.development.wish`` takes."""

    def __init__(self, name: str, function: str) -> None:
        self.name = name
        self._function = function

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from billaged.identity.development import wish  # cryptography takes its time to import

        check: Callable[[str], str] = getattr(wish, self._function)
        try:
            return check(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group()
def certs() -> None:
    """Make certificates."""


@certs.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default="./certs",
    show_default=True,
    help="Where they are written; made with mode 0700 where it is missing.",
)
@click.option(
    "--name",
    "names",
    metavar="DNS",
    type=Checked("name", "server_name"),
    multiple=True,
    help="Another DNS name or IP address that the server is called by; repeat it for each. It has localhost, "
    "billaged, this machine's name, 127.0.0.1 and ::1.",
)
@click.option(
    "--client",
    "clients",
    metavar="NAME",
    type=Checked("client", "client_name"),
    multiple=True,
    default=DEFAULT_CLIENTS,
    show_default=True,
    help="A client, spiffe://dev.billaged/NAME; repeat it for each.",
)
@click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=30,
    show_default=True,
    help="How long server and clients hold. A new CA holds a year, or this if it is longer.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Make the server's and these clients' anew, whatever is there. The CA only if it has expired, "
    "policy.toml never: delete them yourself.",
)
def dev(directory: Path, names: tuple[str, ...], clients: tuple[str, ...], days: int, force: bool) -> None:
    """Make a CA, a server and clients to try mTLS with. For development only.

    Prints the commands to go on with. What is there and good is kept, so that
    `billaged certs dev --client another` adds a client; what is in the way is an
    error, exit code 2, and nothing is written.
    """
    from billaged.identity.development.folder import make
    from billaged.identity.development.wish import Wish

    directory = directory.absolute()  # the commands may be run elsewhere
    wish = Wish(directory, names, clients, timedelta(days=days), force)
    lines = make(wish, socket.gethostname(), datetime.now(UTC))
    for text in (*report(directory, lines), *advice(directory, clients)):
        click.echo(text)


def report(directory: Path, lines: Sequence[Line]) -> Iterator[str]:
    """What was made, what was kept."""
    yield "For development only: whoever can read ca.key can be everybody. Trust this CA nowhere else."
    yield ""
    yield f"In {directory}:"
    files = [" ".join(line.files) for line in lines]
    for line, names in zip(lines, files, strict=True):
        until = f", until {line.valid_until:%Y-%m-%d}" if line.valid_until else ""
        verb = "made" if line.made else "kept"
        yield f"  {verb}  {names.ljust(max(map(len, files)))}  {line.meaning}{until}"


def advice(directory: Path, clients: Sequence[str]) -> Iterator[str]:
    """The commands to try next, each block ready for a shell."""
    policy = directory / "policy.toml"
    yield from _policy_advice(policy, clients)
    # Each as the one whom the policy lets do it, if that one is at hand.
    sender = "metald" if "metald" in clients else clients[0]
    reader = "operator" if "operator" in clients else clients[0]
    settings = {
        "TLS_MODE": "file",
        "TLS_CERT_FILE": directory / "server.pem",
        "TLS_KEY_FILE": directory / "server.key",
        "TLS_CA_FILE": directory / "ca.pem",
        "POLICY_FILE": policy,
        "DATA_DIR": "./var-tls",
    }
    yield from ("", "The daemon:", "")
    for name, value in settings.items():
        yield f"export {_PREFIX}{name}={_quoted(value)}"
    program = _program()
    yield f"{program} serve"
    yield from ("", f"In another shell: a heartbeat to it, as {sender}:", "")
    yield f"{program} send heartbeat --instance-id host-1 --address {DEFAULT_ADDRESS} \\"
    yield _client_options(directory, sender, "--tls-ca", "--tls-cert", "--tls-key")
    yield from ("", f"Its services, as {reader}, with grpcurl:", "")
    yield f"grpcurl {_client_options(directory, reader, '-cacert', '-cert', '-key').lstrip()} {DEFAULT_ADDRESS} list"


def _policy_advice(path: Path, clients: Sequence[str]) -> Iterator[str]:
    from billaged.identity.development.wish import spiffe_id
    from billaged.identity.development.written import rule
    from billaged.identity.policy import Need
    from billaged.identity.policy_file import PolicyError, load

    try:
        policy = load(path)
    except PolicyError as error:
        # The certificates are made; what is wrong with the policy is the daemon's to refuse.
        yield from ("", *str(error).splitlines())
        return
    for client in clients:
        if not policy.grants_for(spiffe_id(client), Need(None)):
            yield from ("", f"{path.name} allows {spiffe_id(client)} nothing. To change that, add:", "", rule(client))


def _program() -> str:
    """What a shell calls this program: its name only where that finds this very one, as a new clone's does not."""
    called = Path(sys.argv[0]).absolute()
    if called.name != _NAME or not called.is_file():
        return f"{_quoted(sys.executable)} -m {_NAME}"
    found = shutil.which(_NAME)
    return _NAME if found is not None and called.samefile(found) else _quoted(called)


def _client_options(directory: Path, client: str, ca: str, cert: str, key: str) -> str:
    files = ((ca, "ca.pem"), (cert, f"{client}.pem"), (key, f"{client}.key"))
    return "  " + " ".join(f"{option} {_quoted(directory / name)}" for option, name in files)


def _quoted(value: object) -> str:
    return shlex.quote(str(value))
