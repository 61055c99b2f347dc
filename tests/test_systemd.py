"""What the service manager is told, over a real socket, by a real daemon."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from daemon_process import DaemonProcess

from billaged.telemetry.systemd import ServiceManager


@pytest.mark.parametrize("kind", ["file", "abstract"])
def test_each_message_is_one_datagram_of_assignments(tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "file" else f"@billaged-test-{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(10)
        listener.bind("\0" + name[1:] if kind == "abstract" else name)
        manager = ServiceManager(name)
        manager.waiting("waiting for an identity:\nnone", 12.5)
        manager.ready("serving")
        manager.stopping()
        received = [listener.recv(4096).decode().splitlines() for _ in range(3)]
    assert received == [
        ["STATUS=waiting for an identity: none", "EXTEND_TIMEOUT_USEC=12500000"],
        ["READY=1", "STATUS=serving"],
        ["STOPPING=1"],
    ]


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@nobody-listens-here"])
def test_nobody_who_listens_is_no_error(address: str) -> None:
    ServiceManager(address).ready("serving")


def test_a_daemon_is_ready_when_it_serves_and_says_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(20)
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with DaemonProcess(tmp_path / "var") as daemon:
            ready = listener.recv(4096).decode().splitlines()
            assert ready[0] == "READY=1"
            assert daemon.grpc_address.rpartition(":")[2] in ready[1]
            assert daemon.stop() == 0
            assert listener.recv(4096).decode() == "STOPPING=1"
