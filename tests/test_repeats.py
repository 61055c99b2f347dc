"""What anybody who can connect may cause to be logged is not logged each time."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import pytest
from daemon_process import DaemonProcess

from billaged.telemetry.repeats import Repeats


def test_a_line_is_said_once_a_second_with_how_often_it_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 0.1, 0.2, 0.9, 1.1, 1.2))
    monkeypatch.setattr("billaged.telemetry.repeats.time.monotonic", lambda: next(clock))
    repeats = Repeats()

    def said(text: str) -> int | None:
        record = logging.LogRecord("billaged.web", logging.WARNING, "", 0, text, (), None)
        return getattr(record, "repeated", 0) if repeats.filter(record) else None

    assert [said("a"), said("a"), said("b"), said("a"), said("a"), said("a")] == [0, None, 0, None, 2, None]


def test_errors_are_all_said_and_what_is_kept_is_bounded() -> None:
    repeats = Repeats()
    for _ in range(3):
        assert repeats.filter(logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "broken", (), None))
    for number in range(1_000):
        for _ in range(2):
            repeats.filter(logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, f"line {number}", (), None))
    assert len(repeats._said_at) <= 256
    assert len(repeats._repeated) <= 256


def test_a_stranger_cannot_fill_the_log(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "var") as daemon:
        host, port = daemon.http_url.removeprefix("http://").split(":")
        address, began = (host, int(port)), time.monotonic()
        for _ in range(200):
            with socket.create_connection(address) as stranger:
                stranger.sendall(b"no request\r\n\r\n")
                assert stranger.recv(100).startswith(b"HTTP/1.1 400")
        seconds = time.monotonic() - began
        assert daemon.stop() == 0
    lines = [line for line in daemon.log if line["message"].startswith("Invalid HTTP request")]
    assert 1 <= len(lines) <= 2 + seconds
    assert len(lines) == 1 or any(line.get("repeated") for line in lines)
