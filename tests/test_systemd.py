"""What the service manager is told, over a real socket, by a real daemon: ready, alive, at its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from daemon_calls import DEADLINE_SECONDS, batch, until
from daemon_process import DaemonProcess
from intake_stages import metrics, stages

from billaged.chores import feed_watchdog
from billaged.telemetry.systemd import ServiceManager

WATCHDOG_SECONDS = 2.0


class Manager:
    """systemd's end of the socket."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def heard(self, within_seconds: float = 20.0) -> list[str] | None:
        """The next message's assignments; None where none comes in time."""
        self._listener.settimeout(within_seconds)
        try:
            return self._listener.recv(4096).decode().splitlines()
        except TimeoutError:
            return None

    def hears(self, wanted: str) -> list[str]:
        """The next message that has this assignment."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            if wanted in (message := self.heard() or []):
                return message
        pytest.fail(f"not heard: {wanted}")

    def hears_nothing(self, for_seconds: float) -> None:
        """Returns once nothing was said for so long."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.heard(for_seconds) is not None:
            assert time.monotonic() < deadline, "it goes on saying that it is alive"


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """Listens, as a service started now would find it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield Manager(listener)


@pytest.mark.parametrize("kind", ["file", "abstract"])
def test_each_message_is_one_datagram_of_assignments(tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "file" else f"@billaged-test-{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(10)
        listener.bind("\0" + name[1:] if kind == "abstract" else name)
        manager = ServiceManager(name)
        # Of a path with a byte that is no text.
        manager.waiting("waiting for an identity:\nnone\udcff", 12.5)
        manager.ready("serving")
        manager.alive()
        manager.stopping()
        received = [listener.recv(4096).decode().splitlines() for _ in range(4)]
    assert received == [
        ["STATUS=waiting for an identity: none\\udcff", "EXTEND_TIMEOUT_USEC=12500000"],
        ["READY=1", "STATUS=serving"],
        ["WATCHDOG=1"],
        ["STOPPING=1"],
    ]


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@nobody-listens-here"])
def test_nobody_who_listens_is_no_error(address: str) -> None:
    ServiceManager(address).ready("serving")


@pytest.mark.parametrize(
    ("microseconds", "process", "seconds"),
    [
        ("3000000", None, 3.0),
        ("3000000", "ours", 3.0),
        # A shell's that started us, and handed its environment on.
        ("3000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_whose_watchdog_it_is(
    manager: Manager,
    monkeypatch: pytest.MonkeyPatch,
    microseconds: str | None,
    process: str | None,
    seconds: float | None,
) -> None:
    # Known only here: what a test is called must not depend on the process that collects it.
    process = str(os.getpid()) if process == "ours" else process
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", process)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert ServiceManager().watchdog_seconds == seconds


def test_a_daemon_is_ready_when_it_serves_and_says_when_it_ends(tmp_path: Path, manager: Manager) -> None:
    with DaemonProcess(tmp_path / "var") as daemon:
        ready = manager.heard()
        assert ready is not None
        assert ready[0] == "READY=1"
        assert daemon.grpc_address.rpartition(":")[2] in ready[1]
        assert daemon.stop() == 0
        assert manager.heard() == ["STOPPING=1"]


@pytest.fixture
def watched(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Manager:
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_SECONDS * 1e6)))
    return manager


def test_a_daemon_without_work_is_alive(tmp_path: Path, watched: Manager) -> None:
    with DaemonProcess(tmp_path / "var"):
        began = time.monotonic()
        for _ in range(4):
            assert watched.hears("WATCHDOG=1") == ["WATCHDOG=1"]
        # The first is said at once, three more take three quarters of the time.
        assert time.monotonic() - began < WATCHDOG_SECONDS + 1


@pytest.mark.parametrize("file", ["journal.db", "ledger.db"], ids=["the journal writer", "the fold's thread"])
def test_a_daemon_in_which_one_thread_hangs_is_not_alive(tmp_path: Path, watched: Manager, file: str) -> None:
    """Another process's write lock: a commit waits for it, as it would for a disk that has stopped answering."""
    with (
        DaemonProcess(tmp_path / "var") as daemon,
        closing(sqlite3.connect(tmp_path / "var" / file, isolation_level=None)) as other,
        ThreadPoolExecutor() as pool,
    ):
        post = batch("vm-a", time.time_ns())
        daemon.call("SendMetricsBatch", post)
        watched.hears("WATCHDOG=1")
        other.execute("BEGIN IMMEDIATE")
        # The first one's commit hangs in the ledger, or its own in the journal; the other one waits behind it.
        sent = [
            pool.submit(daemon.call, "SendMetricsBatch", batch("vm-a", time.time_ns() + count)) for count in range(2)
        ]
        if file == "ledger.db":
            for one in sent:
                one.result(DEADLINE_SECONDS)
            # Acknowledged, so committed by its thread, while the fold's thread waits.
            pool.submit(daemon.call, "SendMetricsBatch", batch("vm-a", time.time_ns())).result(DEADLINE_SECONDS)
        watched.hears_nothing(WATCHDOG_SECONDS)
        daemon.wait_for(lambda line: "none was folded for" in line["message"], "why it is silent")
        assert daemon.get("/health").status_code == 200, "the event loop does not hang"
        other.execute("ROLLBACK")
        watched.hears("WATCHDOG=1")
        assert all(one.result(DEADLINE_SECONDS).success for one in sent)
        daemon.wait_for(lambda line: "gets on again" in line["message"], "that it is over")
        assert daemon.stop() == 0


async def test_a_daemon_whose_event_loop_hangs_is_not_alive(tmp_path: Path, watched: Manager) -> None:
    async with stages(tmp_path) as s:
        task = asyncio.create_task(feed_watchdog(ServiceManager(), s.intake, s.fold))
        assert await asyncio.to_thread(watched.heard) == ["WATCHDOG=1"]
        # On the event loop itself, which does nothing else meanwhile.
        assert watched.heard(WATCHDOG_SECONDS) is None
        assert await asyncio.to_thread(watched.heard) == ["WATCHDOG=1"]
        await _cancelled(task)


async def test_a_daemon_that_is_slow_is_alive(
    tmp_path: Path, watched: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    async with stages(tmp_path) as s:
        s.journal.gate.clear()
        waiting = [s.submit(metrics("vm-0"))]
        task = asyncio.create_task(feed_watchdog(ServiceManager(), s.intake, s.fold))
        assert await asyncio.to_thread(watched.heard) == ["WATCHDOG=1"]
        for count in range(1, 6):
            await _eventually(lambda count=count: s.journal.at_gate == count)
            waiting.append(s.submit(metrics(f"vm-{count}")))
            # One commit through the gate; the one that came meanwhile waits there next.
            s.journal.gate.set()
            s.journal.gate.clear()
            await _eventually(lambda count=count: s.fold.folded_entries >= count)
            assert s.intake.in_flight, "it is never without work"
            assert await asyncio.to_thread(watched.heard) == ["WATCHDOG=1"]
        s.journal.gate.set()
        await asyncio.gather(*waiting)
        await _cancelled(task)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _eventually(found: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, found, "what the test waits for")


def test_what_the_watchdog_ends_says_where_it_was(tmp_path: Path, manager: Manager) -> None:
    with DaemonProcess(tmp_path / "var", under=["prlimit", "--core=0"]) as daemon:
        daemon.send_signal(signal.SIGABRT)
        assert daemon.wait() == -signal.SIGABRT
        for thread in ("intake/writer.py", "aggregator/worker.py", "asyncio/runners.py"):
            assert thread in daemon.other_output


def test_a_long_replay_asks_for_more_time(tmp_path: Path, manager: Manager) -> None:
    with DaemonProcess(tmp_path / "var") as daemon:
        manager.hears("READY=1")
        with closing(sqlite3.connect(tmp_path / "var" / "ledger.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            daemon.call("SendMetricsBatch", batch("vm-a", time.time_ns()))
            daemon.kill()
    with DaemonProcess(tmp_path / "var"):
        replaying = manager.heard()
        assert replaying is not None
        assert replaying[0].startswith("STATUS=replaying the journal: at row ")
        assert replaying[1] == "EXTEND_TIMEOUT_USEC=120000000"
        manager.hears("READY=1")
