"""The processes that are measured: the real daemon and the servers it is compared with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
ROOT = Path(__file__).resolve().parent.parent
# Not the system's place for temporary files: that may be memory, where a sync costs nothing.
_SCRATCH = ROOT / "build"


class Running(NamedTuple):
    """A server that is ready. ``seconds`` from the start of its process to that moment."""

    pid: int
    port: int
    http_port: int
    seconds: float

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/stats", timeout=10) as response:
            found: dict[str, Any] = json.load(response)
        return found

    def settle(self) -> int:
        """The samples folded so far, once nothing waits any more and all of it is in the ledger.

        Raises:
            RuntimeError: that moment does not come.
        """
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            stats = self.stats()
            if stats["queue_depth"] == 0 and stats["journal"]["lag"] == 0:
                return int(stats["samples"])
            time.sleep(0.05)
        raise RuntimeError(f"the daemon does not come to rest: {stats}")


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for data, on the disk that this project is on."""
    _SCRATCH.mkdir(exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="bench-", dir=_SCRATCH))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def sync_milliseconds(directory: Path) -> float:
    """What an append with fdatasync takes here, the median of 50."""
    taken = []
    with (directory / "sync").open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    return sorted(taken)[25] * 1e3


def daemon(directory: Path) -> Any:
    """``billaged serve`` with its defaults, on free ports, with its data there. A context manager."""
    environment = {
        "UNKEY_BILLAGED_TLS_MODE": "disabled",
        "UNKEY_BILLAGED_ADDRESS": "127.0.0.1",
        "UNKEY_BILLAGED_PORT": "0",
        "UNKEY_BILLAGED_HTTP_PORT": "0",
        "UNKEY_BILLAGED_OTEL_PROMETHEUS_PORT": "0",
        "UNKEY_BILLAGED_DATA_DIR": str(directory / "data"),
        "UNKEY_BILLAGED_LOG_FORMAT": "json",
        # The load of a whole fleet comes from one address here.
        "UNKEY_BILLAGED_REQUESTS_PER_SECOND": "0",
        "UNKEY_BILLAGED_SAMPLES_PER_SECOND": "0",
    }
    return _server(["-m", "billaged", "serve"], directory, environment, _daemon_ports)


def empty_server(handler: str, directory: Path) -> Any:
    """A server of ``bench.empty`` with this handler. A context manager."""
    return _server(["-m", "bench.empty", handler], directory, {}, lambda line: (int(line["port"]), 0))


def _daemon_ports(line: dict[str, Any]) -> tuple[int, int]:
    return int(line["grpc"].rpartition(":")[2]), int(line["http"].rpartition(":")[2])


@contextmanager
def _server(
    arguments: list[str], directory: Path, environment: dict[str, str], ports: Callable[[dict[str, Any]], Any]
) -> Iterator[Running]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("UNKEY_BILLAGED_")}
    log = directory / f"{arguments[-1]}.log"
    began = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=inherited | environment, stdout=file, stderr=file, cwd=ROOT
        )
    try:
        line = _serving_line(process, log)
        seconds = time.perf_counter() - began
        port, http_port = ports(line)
        yield Running(process.pid, port, http_port, seconds)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        finally:
            process.kill()


def _serving_line(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """The log line with which a server says where it listens.

    Raises:
        RuntimeError: it ended or said nothing.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for text in log.read_text().splitlines(keepends=True):
            if text.endswith("\n") and '"serving"' in text:
                line: dict[str, Any] = json.loads(text)
                return line
        time.sleep(0.005)
    raise RuntimeError(f"the server did not start:\n{log.read_text()}")
