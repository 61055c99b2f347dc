"""What `make build` makes, run as a stranger would run it: without this project's environment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from free_ports import free_port

from billaged import __version__

ROOT = Path(__file__).resolve().parent.parent
BASE_PYTHON = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
DEADLINE_SECONDS = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the executable."""
    folder = tmp_path_factory.mktemp("build")
    script = ROOT / "scripts" / "build_executable.py"
    done = subprocess.run([sys.executable, str(script), "--into", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def bare_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A machine with Python and nothing of ours: neither .venv, nor PYTHONPATH, nor settings."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path_factory.mktemp("home")), "PYTHONNOUSERSITE": "1"}


def run(command: list[str], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


def test_the_wheel_holds_every_file_of_the_package(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    expected = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "billaged").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    # What is easily lost, for it is no Python module:
    assert {"billaged/py.typed", "billaged/wire/billing/v1/billing_pb2.pyi"} <= held
    assert "billaged/ledger/migrations/script.py.mako" in held


def test_the_wheel_installs_and_runs(built: Path, bare_environment: dict[str, str], tmp_path: Path) -> None:
    [wheel] = built.glob("*.whl")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True)
    libraries = Path(pytest.__file__).parent.parent
    environment = {**bare_environment, "PYTHONPATH": f"{site}:{libraries}"}
    where = run([str(BASE_PYTHON), "-c", "import billaged; print(billaged.__file__)"], environment, tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(site)
    done = run([str(BASE_PYTHON), "-m", "billaged", "version"], environment, tmp_path)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["billaged", __version__], "")


def test_the_executable_needs_only_python(built: Path, bare_environment: dict[str, str], tmp_path: Path) -> None:
    done = run([str(BASE_PYTHON), str(built / "billaged"), "version", "--json"], bare_environment, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["version"] == __version__
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    for name, version in told["libraries"].items():
        assert f"{name}=={version}" in pins, "the executable holds what was tested, the agent's psutil included"


def test_the_executable_starts_under_its_own_name(built: Path, bare_environment: dict[str, str]) -> None:
    environment = {**bare_environment, "PATH": f"{BASE_PYTHON.parent}:/usr/bin:/bin"}
    done = run([str(built / "billaged"), "version"], environment, built)
    assert (done.returncode, done.stdout.split()) == (0, ["billaged", __version__])


def test_the_executable_holds_no_path_of_this_machine(built: Path) -> None:
    archive = zipfile.ZipFile(built / "billaged")
    records = [name for name in archive.namelist() if name.endswith((".pth", "direct_url.json"))]
    assert records == []
    own = b"".join(archive.read(name) for name in archive.namelist() if "/billaged" in name)
    assert str(ROOT).encode() not in own
    assert str(built).encode() not in own


@contextmanager
def serving(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, killed at the end if it is still there; what it printed is in ``folder/output``."""
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_until_healthy(process: subprocess.Popen[bytes], http_port: int, output: Path) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/health", timeout=5) as response:
                assert json.load(response)["version"] == __version__
                return
        except (urllib.error.URLError, ConnectionError):
            with suppress(subprocess.TimeoutExpired):  # the pause between two looks
                process.wait(timeout=0.05)
    pytest.fail(f"not healthy: {output.read_text()}")


def test_the_executable_serves_meters_and_stops(built: Path, bare_environment: dict[str, str], tmp_path: Path) -> None:
    port, http_port = free_port(), free_port()
    environment = {
        **bare_environment,
        "UNKEY_BILLAGED_TLS_MODE": "disabled",
        "UNKEY_BILLAGED_ADDRESS": "127.0.0.1",
        "UNKEY_BILLAGED_PORT": str(port),
        "UNKEY_BILLAGED_HTTP_PORT": str(http_port),
        "UNKEY_BILLAGED_OTEL_PROMETHEUS_PORT": "0",
        "UNKEY_BILLAGED_DATA_DIR": str(tmp_path / "data"),
    }
    executable = [str(BASE_PYTHON), str(built / "billaged")]
    with serving([*executable, "serve"], environment, tmp_path) as daemon:
        wait_until_healthy(daemon, http_port, tmp_path / "output")
        agent = ["agent", "--once", "--vm-id", "vm-a", "--spool-dir", str(tmp_path / "spool")]
        sent = run([*executable, *agent, "--address", f"127.0.0.1:{port}"], bare_environment, tmp_path)
        assert sent.returncode == 0, sent.stderr
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=30) == 0, (tmp_path / "output").read_text()
    listed = run([*executable, "vms"], environment, tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "vm-a" in listed.stdout
