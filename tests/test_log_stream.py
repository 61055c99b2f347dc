"""Where the log goes: whoever reads it may hang or go away, and the daemon does neither."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from daemon_calls import SECOND, batch, call, until
from daemon_process import ROOT, environment
from free_ports import free_port
from grpc import insecure_channel

from billaged.telemetry.log_stream import LogStream


class Pipe(NamedTuple):
    reader: int
    logger: logging.Logger


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A logger that writes the bare message into a pipe, and waits for its reader for 0.2 s."""
    reader, writer = os.pipe()
    logger = logging.Logger("test")
    logger.addHandler(LogStream(writer, wait_seconds=0.2))
    yield Pipe(reader, logger)
    os.close(writer)
    os.close(reader)


def read_all(reader: int) -> str:
    os.set_blocking(reader, False)
    read = b""
    try:
        while part := os.read(reader, 1 << 20):
            read += part
    except BlockingIOError:
        return read.decode()
    return read.decode()


def test_what_nobody_reads_is_dropped_soon_and_counted(pipe: Pipe) -> None:
    began = time.monotonic()
    for number in range(5_000):
        pipe.logger.info("%d %s", number, "x" * 100)
    # One wait in full, and the next ones take a tenth of the time that passes.
    assert time.monotonic() - began < 5.0
    lines = read_all(pipe.reader).splitlines()
    pipe.logger.info("read again")
    lines += read_all(pipe.reader).splitlines()
    assert lines[-1] == "read again"
    numbers = [int(line.split()[0]) for line in lines if line.endswith("x" * 100)]
    assert numbers == list(range(len(numbers)))
    said = [line for line in lines if "were dropped" in line]
    assert said == [f"{5_000 - len(numbers)} lines of the log were dropped before this one: nobody read it"]
    assert len(lines) == len(numbers) + 2


def test_a_line_that_was_begun_is_written_to_its_end(pipe: Pipe) -> None:
    pipe.logger.info("a" * 300_000)
    pipe.logger.info("dropped")
    read = read_all(pipe.reader)
    assert 0 < len(read) < 300_000
    while "read again" not in read:
        pipe.logger.info("read again")
        read += read_all(pipe.reader)
    lines = read.splitlines()
    assert lines[0] == "a" * 300_000
    assert "were dropped" in lines[1] and lines[2] == "read again"


def test_a_slow_reader_gets_every_line(pipe: Pipe) -> None:
    lines: list[str] = []

    def read() -> None:
        with os.fdopen(os.dup(pipe.reader), buffering=256) as stream:
            for line in stream:
                lines.append(line)
                if line == "end\n":
                    return

    reading = threading.Thread(target=read)
    reading.start()
    for number in range(3_000):
        pipe.logger.info("%d %s", number, "x" * 100)
    pipe.logger.info("end")
    reading.join(30)
    assert [line.split()[0] for line in lines] == [*map(str, range(3_000)), "end"]


def test_a_reader_that_has_gone_is_said_once_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    logger = logging.Logger("test")
    logger.addHandler(LogStream(writer))
    os.close(reader)
    for _ in range(100):
        logger.info("to nobody")
    os.close(writer)
    assert capfd.readouterr().err == "billaged: the log cannot be written: Broken pipe\n"


class Serving(NamedTuple):
    process: subprocess.Popen[bytes]
    grpc: str
    http: str


@pytest.fixture(params=["unread", "closed"])
def serving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    """A daemon whose stdout nobody reads, or that has none."""
    grpc_port, http_port = free_port(), free_port()
    settings = {"PORT": str(grpc_port), "HTTP_PORT": str(http_port), "AGGREGATION_INTERVAL": "1s"}
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    command = [sys.executable, "-m", "billaged", "serve"]
    if request.param == "closed":
        command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
    process = subprocess.Popen(command, env=environment(tmp_path / "var", settings), cwd=ROOT, stdout=writer)
    os.close(writer)
    try:
        yield Serving(process, f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{http_port}")
    finally:
        process.kill()
        process.wait()
        os.close(reader)


def test_a_daemon_whose_log_nobody_reads_answers_and_stops(serving: Serving) -> None:
    def healthy() -> bool:
        assert serving.process.poll() is None
        try:
            return httpx.get(f"{serving.http}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    until(healthy, "it serves")
    with insecure_channel(serving.grpc) as channel:
        # What is no request is a line of the event loop's.
        for number in range(100):
            with socket.create_connection(("127.0.0.1", int(serving.http.rpartition(":")[2]))) as stranger:
                stranger.sendall(b"nonsense\r\n\r\n")
                stranger.settimeout(30)
                assert stranger.recv(4096).startswith(b"HTTP/1.1 400")
            if not number % 10:
                call(channel, "SendMetricsBatch", batch(f"vm-{number}", time.time_ns() - SECOND))
    assert healthy()
    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(20) == 0
