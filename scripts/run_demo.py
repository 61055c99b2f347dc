"""`make run`: the daemon in development mode, and a host agent that meters this machine beside it.

Plaintext, loopback only, data in ./var. Settings in the environment are honoured, so
`make run UNKEY_BILLAGED_PORT=9081 UNKEY_BILLAGED_HTTP_PORT=9082` finds other ports.

Ctrl-C stops the agent, then the daemon, and exits 0. Where one of them ends by itself the
other is stopped and the exit code says so: 2 where the daemon could not start as it was
told (a port in use, a bad setting), 1 for everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import os
import signal
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS_MAX = 30.0
POLL_SECONDS = 0.1
# The daemon promises 10 s; the agent 2 s. Past these limits something is wrong, and it is killed.
DAEMON_STOP_SECONDS_MAX = 15.0
AGENT_STOP_SECONDS_MAX = 5.0
EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2

# Development mode is what this script is for: never reachable from elsewhere, never encrypted.
FORCED = {
    "UNKEY_BILLAGED_TLS_MODE": "disabled",
    "UNKEY_BILLAGED_ADDRESS": "127.0.0.1",
    "UNKEY_BILLAGED_HTTP_ADDRESS": "127.0.0.1",
    "UNKEY_BILLAGED_OTEL_PROMETHEUS_INTERFACE": "127.0.0.1",
}
# Left over in a shell from trying something else, they would lock its own agent out.
DROPPED = ("UNKEY_BILLAGED_POLICY_FILE", "UNKEY_BILLAGED_HTTP_TOKEN", "UNKEY_BILLAGED_HTTP_TOKEN_FILE")
DEFAULTS = {
    "UNKEY_BILLAGED_PORT": "8081",
    "UNKEY_BILLAGED_HTTP_PORT": "8082",
    "UNKEY_BILLAGED_DATA_DIR": str(ROOT / "var"),
    "UNKEY_BILLAGED_AGGREGATION_INTERVAL": "10s",
    "UNKEY_BILLAGED_LOG_FORMAT": "text",
}

INTRODUCTION = """\
billaged, metering this machine. Ctrl-C stops it; the next `make run` goes on from the same ledger.

  what you see   the daemon's log, a line for each summary every {interval}, and what the agent says
  data           {data}
  gRPC           127.0.0.1:{port}
  HTTP           http://127.0.0.1:{http_port}

Try in another terminal:
  curl http://127.0.0.1:{http_port}/stats
  export UNKEY_BILLAGED_DATA_DIR={data}
  .venv/bin/billaged vms
  .venv/bin/billaged usage vm {vm_id}
  .venv/bin/billaged bill --vm {vm_id} --period this-month
"""

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In a child: SIGTERM once this script is gone, however it went, so that nothing is left behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def start(environment: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    # A group of its own: the terminal's Ctrl-C reaches only this script, which stops each once and in order.
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "billaged", *arguments),
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        process_group=0,
        preexec_fn=die_with_parent,
    )


async def stop(name: str, process: asyncio.subprocess.Process, seconds_max: float) -> bool:
    """Whether it ended cleanly, after one SIGTERM and within the time."""
    if process.returncode is not None:
        return process.returncode == 0
    process.terminate()
    try:
        code = await asyncio.wait_for(process.wait(), seconds_max)
    except TimeoutError:
        say(f"the {name} did not stop within {seconds_max:.0f} s and was killed")
        process.kill()
        await process.wait()
        return False
    if code != 0:
        say(f"the {name} stopped with {outcome(code)}")
    return code == 0


def outcome(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_healthy(http_port: int) -> bool:
    # Straight to the port: a proxy named in the environment has no business here.
    connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=1)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            return response.status == 200 and b'"billaged"' in response.read()
        except (OSError, http.client.HTTPException):
            return False


async def healthy(daemon: asyncio.subprocess.Process, http_port: int, believe: bool) -> bool:
    """Wait until the daemon serves; False where it ended or took too long, or the answer is not to be believed."""
    deadline = asyncio.get_running_loop().time() + START_SECONDS_MAX
    while daemon.returncode is None and asyncio.get_running_loop().time() < deadline:
        if believe and await asyncio.to_thread(is_healthy, http_port):
            return daemon.returncode is None
        await asyncio.sleep(POLL_SECONDS)
    return False


async def first_of(*waits: asyncio.Task[object]) -> None:
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)


async def run(environment: dict[str, str]) -> int:
    port, http_port = int(environment["UNKEY_BILLAGED_PORT"]), int(environment["UNKEY_BILLAGED_HTTP_PORT"])
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    interruption: asyncio.Task[object] = asyncio.create_task(interrupted.wait())

    # On a taken port the health that answers would be somebody else's.
    taken = is_taken(http_port) or is_taken(port)
    daemon = await start(environment, "serve")
    daemon_end: asyncio.Task[object] = asyncio.create_task(daemon.wait())
    health: asyncio.Task[object] = asyncio.create_task(healthy(daemon, http_port, believe=not taken))
    await first_of(health, interruption)
    if interrupted.is_set():
        return EXIT_OK if await stop("daemon", daemon, DAEMON_STOP_SECONDS_MAX) else EXIT_FAILURE
    if daemon.returncode is not None:
        say(f"the daemon did not start ({outcome(daemon.returncode)}); its message is above")
        return daemon.returncode if daemon.returncode in (EXIT_FAILURE, EXIT_USAGE) else EXIT_FAILURE
    if not health.result():
        say(f"the daemon did not become healthy within {START_SECONDS_MAX:.0f} s")
        await stop("daemon", daemon, DAEMON_STOP_SECONDS_MAX)
        return EXIT_FAILURE

    spool = str(Path(environment["UNKEY_BILLAGED_DATA_DIR"]) / "agent")
    agent = await start(
        environment, "agent", "--interval", "1s", "--spool-dir", spool, "--address", f"127.0.0.1:{port}"
    )
    agent_end: asyncio.Task[object] = asyncio.create_task(agent.wait())
    await first_of(interruption, daemon_end, agent_end)
    asked = interrupted.is_set()
    for name, process in (("agent", agent), ("daemon", daemon)):
        if not asked and process.returncode is not None:
            say(f"the {name} ended by itself with {outcome(process.returncode)}; stopping the rest")
    clean = await stop("agent", agent, AGENT_STOP_SECONDS_MAX)
    clean = await stop("daemon", daemon, DAEMON_STOP_SECONDS_MAX) and clean
    if asked and clean:
        say("stopped; the ledger is in " + environment["UNKEY_BILLAGED_DATA_DIR"])
    return EXIT_OK if asked and clean else EXIT_FAILURE


def main() -> int:
    environment = {**DEFAULTS, **os.environ, **FORCED, "PYTHONUNBUFFERED": "1"}
    for name in [name for name in environment if name in DROPPED or name.startswith("BILLAGED_")]:
        del environment[name]
    for name in ("UNKEY_BILLAGED_PORT", "UNKEY_BILLAGED_HTTP_PORT"):
        if not environment[name].isdecimal() or environment[name] == "0":
            say(f"{name}={environment[name]}: make run needs a port's number, so that agent and daemon find each other")
            return EXIT_USAGE
    data = Path(environment["UNKEY_BILLAGED_DATA_DIR"])
    say(
        INTRODUCTION.format(
            interval=environment["UNKEY_BILLAGED_AGGREGATION_INTERVAL"],
            data=data,
            port=environment["UNKEY_BILLAGED_PORT"],
            http_port=environment["UNKEY_BILLAGED_HTTP_PORT"],
            vm_id=f"host-{socket.gethostname()}",
        )
    )
    return asyncio.run(run(environment))


if __name__ == "__main__":
    sys.exit(main())
