"""The daemon as its users have it: ``python -m billaged serve``, a process of its own on free ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
import httpx
from daemon_calls import DEADLINE_SECONDS, call
from google.protobuf.message import Message

from billaged.ledger.database import open_for_reading
from billaged.ledger.dump import dump

ROOT = Path(__file__).resolve().parent.parent

LogLine = dict[str, Any]


class DaemonFailed(Exception):
    """It ended, or did not do in time what was waited for; the message has its whole output."""


class Ended(NamedTuple):
    """A process that could not go on."""

    exit_code: int
    stdout: str
    stderr: str


def environment(data_dir: Path | None, settings: Mapping[str, str]) -> dict[str, str]:
    """Plaintext on loopback, any free ports; ``settings`` are names without their prefix, and win."""
    base = {
        "PORT": "0",
        "HTTP_PORT": "0",
        "OTEL_PROMETHEUS_PORT": "0",
        "ADDRESS": "127.0.0.1",
        "TLS_MODE": "disabled",
        "LEDGER_FLUSH_INTERVAL": "10ms",
    }
    if data_dir is not None:
        base["DATA_DIR"] = str(data_dir)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UNKEY_")}
    return clean | {f"UNKEY_BILLAGED_{name}": value for name, value in (base | dict(settings)).items()}


def fails_to_start(data_dir: Path | None, **settings: str) -> Ended:
    """Run a daemon that is expected to end by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "billaged", "serve"],
        env=environment(data_dir, settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class DaemonProcess:
    """A running daemon. Leaving its context kills what is still there.

    Its log lines come in by a thread, so that waiting for one is waiting, not asking again and again.
    """

    def __init__(
        self,
        data_dir: Path | None,
        settings: Mapping[str, str] | None = None,
        *,
        umask: int = -1,
        under: Sequence[str] = (),
    ) -> None:
        """``under`` is a command that runs the command that follows it."""
        self.data_dir = data_dir
        self._process = subprocess.Popen(
            [*under, sys.executable, "-m", "billaged", "serve"],
            env=environment(data_dir, settings or {}),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            umask=umask,
        )
        # Guards the lines below; told of each new one and of the end.
        self._news = threading.Condition()
        self._lines: list[LogLine] = []
        self._other: list[str] = []
        self._streams_open = 2
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self._process.stdout, self._process.stderr)
        ]
        for reader in self._readers:
            reader.start()
        try:
            serving = self.wait_for(lambda line: line["message"] == "serving", "serving")
        except BaseException:
            self.kill()
            raise
        self.grpc_address = str(serving["grpc"])
        self.http_url = f"http://{serving['http']}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    # --- its log -----------------------------------------------------------------

    def _read(self, stream: Any) -> None:
        with stream:
            for text in stream:
                with self._news:
                    try:
                        self._lines.append(json.loads(text))
                    except ValueError:
                        self._other.append(text)
                    self._news.notify_all()
        with self._news:
            self._streams_open -= 1
            self._news.notify_all()

    @property
    def log(self) -> list[LogLine]:
        """The log lines so far."""
        with self._news:
            return list(self._lines)

    @property
    def other_output(self) -> str:
        """What it printed that is no log line: a healthy daemon prints none."""
        with self._news:
            return "".join(self._other)

    def wait_for(self, wanted: Callable[[LogLine], bool], what: str) -> LogLine:
        """The first log line that is wanted.

        Raises:
            DaemonFailed: it did not come in time, or never will.
        """
        deadline = time.monotonic() + DEADLINE_SECONDS
        looked_at = 0
        with self._news:
            while True:
                for line in self._lines[looked_at:]:
                    if wanted(line):
                        return line
                looked_at = len(self._lines)
                left = deadline - time.monotonic()
                if left <= 0 or not self._streams_open:
                    output = "\n".join(map(str, self._lines)) + "".join(self._other)
                    raise DaemonFailed(f"no log line: {what}; exit code {self._process.poll()}, output:\n{output}")
                self._news.wait(left)

    def summaries(self, **fields: object) -> list[LogLine]:
        """The VM summaries logged so far that have these fields."""
        return [line for line in self.log if is_summary(line, **fields)]

    # --- its end -----------------------------------------------------------------

    def ended(self) -> bool:
        """Whether there is no such process any more."""
        return self._process.poll() is not None

    def streams_closed(self) -> bool:
        """Whether it will never print anything again."""
        with self._news:
            return not self._streams_open

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, within_seconds: float = 10.0) -> int:
        """Ask it to end; its exit code.

        Raises:
            subprocess.TimeoutExpired: it took longer than a stop may.
        """
        self.send_signal(number)
        return self.wait(within_seconds)

    def wait(self, within_seconds: float = DEADLINE_SECONDS) -> int:
        """Its exit code, once it has ended and all it printed is read."""
        code = self._process.wait(within_seconds)
        for reader in self._readers:
            reader.join(DEADLINE_SECONDS)
        return code

    def kill(self) -> None:
        """End it as a power cut would, as far as a process goes."""
        if self._process.poll() is None:
            self._process.kill()
        self.wait()

    # --- talking to it -----------------------------------------------------------

    @contextmanager
    def channel(self, *options: tuple[str, int]) -> Iterator[grpc.Channel]:
        # Each its own connection: gRPC would share one between channels that are alike.
        with grpc.insecure_channel(self.grpc_address, [("grpc.use_local_subchannel_pool", 1), *options]) as channel:
            yield channel

    def call(self, method: str, request: Message | bytes, service: str = "billing.v1.BillingService") -> Message:
        """One RPC on a connection of its own. Raises grpc.RpcError."""
        with self.channel() as channel:
            return call(channel, method, request, service)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.http_url + path, timeout=DEADLINE_SECONDS)

    def post(self, method: str, body: Any, service: str = "billing.v1.BillingService") -> httpx.Response:
        return httpx.post(f"{self.http_url}/{service}/{method}", json=body, timeout=DEADLINE_SECONDS)

    def stats(self) -> dict[str, Any]:
        answer = self.get("/stats")
        answer.raise_for_status()
        return dict(answer.json())

    def ledger(self) -> dict[str, list[tuple[Any, ...]]]:
        return ledger_of(self.data_dir)


def is_summary(line: LogLine, **fields: object) -> bool:
    """Whether a log line is a VM's summary with these fields."""
    return line["message"] == "vm usage summary" and all(line[name] == value for name, value in fields.items())


def ledger_of(data_dir: Path | None) -> dict[str, list[tuple[Any, ...]]]:
    """The canonical dump of a data directory's ledger, whoever writes it."""
    if data_dir is None:
        raise DaemonFailed("a daemon without a data directory has no ledger")
    engine = open_for_reading(data_dir / "ledger.db")
    try:
        return dump(engine)
    finally:
        engine.dispose()
