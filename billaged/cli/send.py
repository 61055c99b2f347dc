"""``billaged send``: one request of each kind, from flags or JSON."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TextIO

import click
from google.protobuf.json_format import MessageToJson, Parse, ParseError
from google.protobuf.message import Message

from billaged.cli.target import TARGET_NAMES, Command, target_from, target_options
from billaged.client.methods import METHODS
from billaged.client.plain import plain
from billaged.model.records import Kind
from billaged.model.time import INT64_MAX, NANOS, parse_instant
from billaged.wire.billing.v1 import billing_pb2 as pb

if TYPE_CHECKING:
    from billaged.client.channel import Target


class Instant(click.ParamType[int]):
    """RFC 3339, ``now``, or nanoseconds since the epoch; its value is the nanoseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value == "now":
            return time.time_ns()
        try:
            nanos = int(value) if _INTEGER.fullmatch(value) else parse_instant(value)
        except ValueError as error:
            self.fail(f"{error}, now, or nanoseconds since the epoch", param, ctx)
        return _fit(self, nanos, param, ctx)


class Int64(click.ParamType[int]):
    """A whole number that the wire can carry. Whether it makes sense is the server's to say."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not _INTEGER.fullmatch(str(value)):
            self.fail(f"{value!r} is not a whole number", param, ctx)
        return _fit(self, int(value), param, ctx)


def _fit(kind: click.ParamType[int], value: int, param: click.Parameter | None, ctx: click.Context | None) -> int:
    if not -INT64_MAX - 1 <= value <= INT64_MAX:
        kind.fail(f"{value} does not fit 64 bits", param, ctx)
    return value


_INTEGER: Final = re.compile(r"-?[0-9]{1,30}")
INT64: Final = Int64()
INSTANT: Final = Instant()


def _request_options(command: Command) -> Command:
    for option in (
        click.option("--lines", is_flag=True, help="With --json: one message a line; stops at the first that fails."),
        click.option(
            "--json",
            "json_file",
            metavar="FILE|-",
            type=click.File(encoding="utf-8"),
            help="The request in protobuf's JSON form, from a file or standard input, instead of the flags.",
        ),
    ):
        command = option(command)
    return target_options(command)


@click.group()
def send() -> None:
    """Send one request to a billaged and print its response as JSON.

    A request is answered once it is durable. Exit code 1 if the server refuses it or
    cannot be reached: `billaged: error: INVALID_ARGUMENT: vm_id: must not be empty`.
    Plaintext, unless --spiffe-socket or --tls-ca says how the connection is secured.

    \b
    billaged send metrics --vm-id vm-1 --customer-id acme --cpu-time-nanos 1000000000 --memory-usage-bytes 1048576
    echo '{"vmId": "vm-1", "stopTime": "1795255200000000000"}' | billaged send stopped --json -
    """


@send.command()
@click.option("--vm-id", help="The VM.")
@click.option("--customer-id", help="Who pays for it.")
@click.option("--timestamp", type=INSTANT, default="now", show_default=True, help="When the sample was taken.")
@click.option("--cpu-time-nanos", type=INT64, default=0, help="CPU time of all cores since the VM's boot.")
@click.option("--memory-usage-bytes", type=INT64, default=0, help="Memory in use at that time.")
@click.option("--disk-read-bytes", type=INT64, default=0, help="Read since the VM's boot.")
@click.option("--disk-write-bytes", type=INT64, default=0, help="Written since the VM's boot.")
@click.option("--network-rx-bytes", type=INT64, default=0, help="Received since the VM's boot.")
@click.option("--network-tx-bytes", type=INT64, default=0, help="Sent since the VM's boot.")
@_request_options
@click.pass_context
def metrics(ctx: click.Context, /, **options: Any) -> None:
    """One sample of a VM, or with --json a batch of them."""

    def build(vm_id: str, customer_id: str, timestamp: int, **values: Any) -> Message:
        sample = pb.VMMetrics(**values)
        sample.timestamp.seconds, sample.timestamp.nanos = divmod(timestamp, NANOS)
        return pb.SendMetricsBatchRequest(vm_id=vm_id, customer_id=customer_id, metrics=[sample])

    _send(ctx, Kind.METRICS, build, ("vm_id", "customer_id"), options)


@send.command()
@click.option("--instance-id", help="The host agent that is alive.")
@click.option("--active-vm", "active_vms", multiple=True, help="A VM that it runs; repeat it for each.")
@_request_options
@click.pass_context
def heartbeat(ctx: click.Context, /, **options: Any) -> None:
    """A host agent is alive and runs these VMs."""
    _send(ctx, Kind.HEARTBEAT, pb.SendHeartbeatRequest, ("instance_id",), options)


@send.command()
@click.option("--vm-id", help="The VM.")
@click.option("--customer-id", help="Who pays for it.")
@click.option("--start-time", type=INSTANT, default="now", show_default=True, help="When it started.")
@_request_options
@click.pass_context
def started(ctx: click.Context, /, **options: Any) -> None:
    """A VM has started."""
    _send(ctx, Kind.STARTED, pb.NotifyVmStartedRequest, ("vm_id", "customer_id"), options)


@send.command()
@click.option("--vm-id", help="The VM.")
@click.option("--stop-time", type=INSTANT, default="now", show_default=True, help="When it stopped.")
@_request_options
@click.pass_context
def stopped(ctx: click.Context, /, **options: Any) -> None:
    """A VM has stopped."""
    _send(ctx, Kind.STOPPED, pb.NotifyVmStoppedRequest, ("vm_id",), options)


@send.command()
@click.option("--vm-id", help="The VM.")
@click.option("--last-sent", type=INSTANT, help="When the last sample before the gap was taken.")
@click.option("--resume-time", type=INSTANT, default="now", show_default=True, help="When sampling went on.")
@_request_options
@click.pass_context
def gap(ctx: click.Context, /, **options: Any) -> None:
    """Samples of a VM may be missing between two times."""
    _send(ctx, Kind.POSSIBLE_GAP, pb.NotifyPossibleGapRequest, ("vm_id", "last_sent"), options)


def _send(
    ctx: click.Context,
    kind: Kind,
    build: Callable[..., Message],
    required: tuple[str, ...],
    options: dict[str, Any],
) -> None:
    target = target_from(**{name: options.pop(name) for name in TARGET_NAMES})
    json_file: TextIO | None = options.pop("json_file")
    lines: bool = options.pop("lines")
    if lines and json_file is None:
        raise click.UsageError("--lines says how to read --json: give that too.")
    if json_file is not None:
        given = [name for name in options if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError(f"--json holds the whole request: leave out {_flag(given[0])}.")
        requests = _requests_from(json_file, METHODS[kind].request, lines)
    else:
        for name in required:
            if options[name] is None:
                raise click.UsageError(f"Missing option {_flag(name)} (or --json).")
        try:
            requests = iter([("", build(**options))])
        except ValueError as error:  # bytes that are no UTF-8, which a shell can pass
            raise click.UsageError(str(error)) from error
    # What is said of the identity while it is waited for, or renewed under a long --lines.
    logging.basicConfig(level=logging.WARNING, format="billaged: warning: %(message)s")
    _send_all(target, kind, requests)


def _send_all(target: Target, kind: Kind, requests: Iterator[tuple[str, Message]]) -> None:
    from billaged.client.channel import BillingClient  # after target_from, which says how loud grpc may be
    from billaged.client.failure import CallFailed

    place = ""
    with BillingClient(target) as client:
        try:
            client.wait_for_identity()
            for place, request in requests:
                _print(client.call(kind, request.SerializeToString()), indent=None if place else 2)
        except CallFailed as failure:
            for line in filter(None, (f"{place}{failure}", failure.hint)):
                click.echo(f"billaged: error: {line}", err=True)
            raise click.exceptions.Exit(1) from failure


def _print(response: Message, indent: int | None) -> None:
    if said := getattr(response, "message", ""):
        response.message = plain(said)  # type: ignore[attr-defined]
    click.echo(MessageToJson(response, indent=indent, always_print_fields_with_no_presence=True))
    if not getattr(response, "success", False):
        raise click.exceptions.Exit(1)


def _requests_from(file: TextIO, message_type: type[Message], lines: bool) -> Iterator[tuple[str, Message]]:
    if not lines:
        yield "", _parse(file.read(), message_type, "")
        return
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield f"line {number}: ", _parse(line, message_type, f"line {number}: ")


def _parse(text: str, message_type: type[Message], place: str) -> Message:
    try:
        return Parse(text, message_type())
    except ParseError as error:
        raise click.UsageError(f"{place}not a {message_type.DESCRIPTOR.name} in JSON: {error}") from error


def _flag(name: str) -> str:
    return "--active-vm" if name == "active_vms" else "--" + name.replace("_", "-")
