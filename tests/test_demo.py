"""`make run`: its script, with the real daemon and the real agent on free ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from free_ports import free_port

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_SECONDS = 60.0
VM_ID = f"host-{socket.gethostname()}"

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UNKEY_BILLAGED_")}
    return {
        **clean,
        "UNKEY_BILLAGED_PORT": str(free_port()),
        "UNKEY_BILLAGED_HTTP_PORT": str(free_port()),
        "UNKEY_BILLAGED_OTEL_PROMETHEUS_PORT": "0",
        "UNKEY_BILLAGED_DATA_DIR": str(tmp_path / "var"),
        "UNKEY_BILLAGED_AGGREGATION_INTERVAL": "1s",
    }


@contextmanager
def demo(environment: dict[str, str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("wb") as file:
        command = [sys.executable, str(ROOT / "scripts" / "run_demo.py")]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        # Its children die with it, which is one of its promises.
        if process.poll() is None:
            process.kill()
        process.wait()


def until(process: subprocess.Popen[bytes], output: Path, found: Callable[[], Any]) -> Any:
    """What ``found`` gives once it is true, looked for while the process lives."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if result := found():
            return result
        with suppress(subprocess.TimeoutExpired):  # the pause between two looks
            process.wait(timeout=0.05)
    pytest.fail(f"waited in vain; exit code {process.poll()}, output:\n{output.read_text()}")


def active_vms(environment: dict[str, str]) -> int:
    url = f"http://127.0.0.1:{environment['UNKEY_BILLAGED_HTTP_PORT']}/stats"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(json.load(response)["active_vms"])
    except (urllib.error.URLError, ConnectionError):
        return 0


def has_summary(output: Path) -> bool:
    """Whether the daemon has logged what this machine used."""
    _, _, log = output.read_text().partition("Try in another terminal")
    return f"{VM_ID} of local" in log and "score" in log


def child(process: subprocess.Popen[bytes], command: str) -> psutil.Process | None:
    """The demo's own ``billaged serve`` or ``billaged agent``."""
    for candidate in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):
            if command in candidate.cmdline():
                return candidate
    return None


def test_control_c_stops_both_and_a_second_run_goes_on(environment: dict[str, str], tmp_path: Path) -> None:
    for turn in ("first", "second"):
        output = tmp_path / turn
        with demo(environment, output) as process:
            until(process, output, lambda: active_vms(environment))
            until(process, output, lambda: has_summary(output))  # noqa: B023
            children = psutil.Process(process.pid).children()
            assert len(children) == 2
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0, output.read_text()
            assert not any(each.is_running() for each in children)
        assert "Traceback" not in output.read_text()
    assert (tmp_path / "var").stat().st_mode & 0o777 == 0o700
    listed = subprocess.run(
        [sys.executable, "-m", "billaged", "vms"], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count(VM_ID) == 1, "one session over both runs"


@pytest.mark.parametrize("victim", ["agent", "serve"])
def test_when_one_dies_the_other_is_stopped(environment: dict[str, str], tmp_path: Path, victim: str) -> None:
    output = tmp_path / "output"
    with demo(environment, output) as process:
        until(process, output, lambda: active_vms(environment))
        found = until(process, output, lambda: child(process, victim))
        children = psutil.Process(process.pid).children()
        found.kill()
        assert process.wait(timeout=30) == 1, output.read_text()
        assert not any(each.is_running() for each in children)
    name = {"agent": "agent", "serve": "daemon"}[victim]
    assert f"the {name} ended by itself with signal SIGKILL" in output.read_text()


@pytest.mark.parametrize("setting", ["UNKEY_BILLAGED_PORT", "UNKEY_BILLAGED_HTTP_PORT"])
def test_a_port_in_use_is_named_and_exits_2(environment: dict[str, str], tmp_path: Path, setting: str) -> None:
    output = tmp_path / "output"
    with socket.create_server(("127.0.0.1", int(environment[setting]))), demo(environment, output) as process:
        assert process.wait(timeout=DEADLINE_SECONDS) == 2, output.read_text()
    assert setting in output.read_text()
    assert "Traceback" not in output.read_text()


def test_a_port_that_is_no_number_exits_2(environment: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "output"
    with demo({**environment, "UNKEY_BILLAGED_PORT": "any"}, output) as process:
        assert process.wait(timeout=DEADLINE_SECONDS) == 2
    assert "UNKEY_BILLAGED_PORT=any" in output.read_text()
