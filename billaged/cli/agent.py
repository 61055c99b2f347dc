"""``billaged agent``: parses, builds the agent, runs it until it is told to stop."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import signal
import socket
import threading
from pathlib import Path
from typing import Any, Final

import click

from billaged.cli.target import Duration, target_from, target_options
from billaged.model.errors import StartError
from billaged.model.ids import why_not_id
from billaged.model.time import format_duration

_SIZE: Final = re.compile(r"(\d+)(B|KiB|MiB|GiB)?")
_SIZE_UNITS: Final = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_MIN_SPOOL_BYTES: Final = 4_096


class Size(click.ParamType[int]):
    """``256MiB``, ``1GiB`` or plain bytes; its value is bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is not a size; write it like 256MiB, 1GiB or 1048576", param, ctx)
        size_bytes = int(match[1]) * _SIZE_UNITS[match[2]]
        if size_bytes < _MIN_SPOOL_BYTES:
            self.fail(f"{value!r}: must be at least {_MIN_SPOOL_BYTES} bytes", param, ctx)
        return size_bytes


def _check_id(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if problem := why_not_id(value):
        raise click.BadParameter(f"{value!r} {problem}")
    return value


def _check_pattern(ctx: click.Context, param: click.Parameter, value: str | None) -> re.Pattern[str] | None:
    try:
        return None if value is None else re.compile(value)
    except re.error as error:
        raise click.BadParameter(f"{value!r} is not a regular expression: {error}") from error


def _default_spool_dir() -> Path:
    # An empty or relative XDG variable counts as unset, as its specification says.
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local/state") / "billaged/agent"


@click.command()
@click.option("--interval", "interval_ns", type=Duration(), default="1s", show_default=True, help="Between samples.")
@click.option(
    "--vm-id",
    default=lambda: f"host-{socket.gethostname()}",
    show_default="host-<hostname>",
    callback=_check_id,
    help="The VM that the whole host is billed as.",
)
@click.option("--customer-id", default="local", show_default=True, callback=_check_id, help="Who pays for it all.")
@click.option(
    "--instance-id",
    default=socket.gethostname,
    show_default="<hostname>",
    callback=_check_id,
    help="This agent's name in its heartbeats.",
)
@click.option("--pid", "pids", type=click.IntRange(1), multiple=True, help="Meter this process as a VM; repeatable.")
@click.option(
    "--match",
    "pattern",
    metavar="REGEX",
    callback=_check_pattern,
    help="Meter each process whose command line this finds as a VM, also those that start later.",
)
@click.option(
    "--host/--no-host",
    default=None,
    help="Meter the whole host as a VM. Default: yes, but not with --pid or --match, which would bill the same twice.",
)
@click.option(
    "--spool-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=_default_spool_dir,
    show_default="$XDG_STATE_HOME/billaged/agent",
    help="Where usage waits until the server has acknowledged it.",
)
@click.option("--spool-max", "spool_max_bytes", type=Size(), default="256MiB", show_default=True, help="Its bound.")
@click.option("--once", is_flag=True, help="Take one sample, send it with what still waits, and exit (1 if not taken).")
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@target_options
def agent(
    interval_ns: int,
    vm_id: str,
    customer_id: str,
    instance_id: str,
    pids: tuple[int, ...],
    pattern: re.Pattern[str] | None,
    host: bool | None,
    spool_dir: Path,
    spool_max_bytes: int,
    once: bool,
    verbose: bool,
    **target_values: Any,
) -> None:
    """Meter this machine and send it all to a billaged.

    The whole host is one VM: CPU time of all cores, memory in use, whole disks, all
    networks but loopback. With --pid and --match single processes are VMs (CPU time,
    resident memory, disk), named pid-<number>-<start>@<boot>.

    A start is sent only for what the agent saw starting, dated to when it really did; what ran
    before has none. An end is dated to when the process was last seen alive.

    Everything goes through a spool on disk and leaves it when the server has acknowledged it, so
    usage survives a server that is away and an agent that is killed. When the spool is full, samples
    are left out and the gap is reported; counters are cumulative, so what was used is still billed.
    What the server refuses for good is kept in refused.jsonl beside it; usage of a VM that its policy does
    not allow waits apart, and so does all of it while TLS files cannot be used. Ctrl-C and SIGTERM end it cleanly.

    \b
    Certificates from a SPIFFE agent:  --spiffe-socket PATH, renewed as the agent renews them
    Certificates from files:           --tls-ca FILE --tls-cert FILE --tls-key FILE, read again when they change
    Plaintext:                         none of these; for a billaged on this machine
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)-7s agent: %(message)s"
    )
    if importlib.util.find_spec("psutil") is None:
        raise StartError("billaged agent needs psutil, which is not installed.", "pip install 'billaged[agent]'")
    target = target_from(**target_values)
    from billaged.client.agent import Agent
    from billaged.client.backoff import Backoff
    from billaged.client.channel import BillingClient
    from billaged.client.clock import SystemClock
    from billaged.client.courier import Courier
    from billaged.client.host import BootMark, HostSource
    from billaged.client.metering import Metering
    from billaged.client.processes import ProcessSource
    from billaged.client.readings import Source
    from billaged.client.spool import Spool

    clock = SystemClock()
    single = bool(pids) or pattern is not None
    # Who waits for one sample to be sent is told at once what is wrong with the files.
    with BillingClient(target, is_patient=not once) as client:
        spool = Spool(spool_dir, spool_max_bytes)
        sources: list[Source] = []
        if host if host is not None else not single:
            sources.append(HostSource(vm_id, clock, BootMark(spool_dir / "boot", vm_id)))
        if single:
            sources.append(ProcessSource(pids, pattern, clock))
        if not sources:
            raise click.UsageError("--no-host leaves nothing to meter: give --pid or --match.")
        metering = Metering(sources, spool, customer_id, clock)
        courier = Courier(client, spool, instance_id, lambda: metering.active_vms, clock, Backoff())
        stop = threading.Event()
        runner = Agent(metering, courier, client, spool, clock, stop)
        if once:
            if not runner.once():
                raise click.exceptions.Exit(1)
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        log = logging.getLogger(__name__)
        what = ", ".join(
            ([f"this host as {vm_id}"] if len(sources) > single else [])
            + [f"process {pid}" for pid in pids]
            + ([f"processes that match {pattern.pattern!r}"] if pattern else [])
        )
        log.info("metering %s every %s, for %s", what, format_duration(interval_ns), customer_id)
        log.info("sending to %s, spooling in %s", client.target.address, spool_dir)
        runner.run(interval_ns)
        log.info("stopped")


# A file that is not there yet is one more that cannot be used yet: metering goes on without it.
for _option in agent.params:
    if isinstance(_option.type, click.Path) and _option.type.exists:
        _option.type = click.Path(dir_okay=False, path_type=Path)
