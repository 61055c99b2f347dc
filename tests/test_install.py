"""scripts/install.sh, run for real into a staging root: what is there, and that it serves and runs commands."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkout import ROOT
from free_ports import free_port
from installed_machine import Machine, install, staged
from packaging.utils import canonicalize_name
from test_dashboards import grafana

from billaged import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged(tmp_path_factory).checkout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Not changed by the tests that look at it."""
    return staged(tmp_path_factory).machine


@pytest.fixture
def machine(installed: Machine, tmp_path: Path) -> Machine:
    """A copy to change."""
    return installed.copied_to(tmp_path / "root")


def test_it_says_what_it_did_not_do(tmp_path_factory: pytest.TempPathFactory) -> None:
    said = staged(tmp_path_factory).said
    assert "left out: the user billaged" in said
    assert "left out: the service" in said


def test_the_installed_command_runs_and_is_what_was_tested(installed: Machine) -> None:
    done = installed.run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"billaged {__version__}\n", "")
    [site] = installed.home.glob("current/lib/python3*/site-packages")
    there = {canonicalize_name(it.name): it.version for it in importlib.metadata.distributions(path=[str(site)])}
    pins = {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    }
    assert there.pop("billaged") == __version__
    assert "grpcio" in there
    # Neither an extra, nor what only the installation needed, nor a version nobody tested.
    assert there.keys().isdisjoint({"psutil", "pytest", "setuptools", "pip"})
    assert {name: pins.get(name) for name in there} == there


def test_nothing_knows_where_it_was_made(installed: Machine, checkout: Path) -> None:
    places = [str(installed.root).encode(), str(checkout).encode()]
    for path in installed.root.rglob("*"):
        if path.is_symlink():
            assert not path.readlink().is_relative_to(installed.root), path
        elif path.is_file():
            content = path.read_bytes()
            assert not any(place in content for place in places), path


def test_the_settings_are_all_there_and_only_for_the_service(installed: Machine) -> None:
    assert installed.settings.read_text() == (ROOT / "systemd" / "billaged.env.example").read_text()
    assert installed.settings.stat().st_mode & 0o777 == 0o640


def test_completion_is_that_of_the_command(installed: Machine) -> None:
    share = installed.root / "usr" / "local" / "share"
    files = {
        "bash": share / "bash-completion" / "completions" / "billaged",
        "zsh": share / "zsh" / "site-functions" / "_billaged",
        "fish": share / "fish" / "vendor_completions.d" / "billaged.fish",
    }
    for shell, file in files.items():
        assert file.read_text() == installed.run("completion", shell).stdout
    asked = {
        "PATH": "/usr/bin:/bin",
        "COMP_WORDS": "billaged us",
        "COMP_CWORD": "1",
        "_BILLAGED_COMPLETE": "bash_complete",
    }
    assert installed.run(environment=asked).stdout == "plain,usage\n"


def test_dashboards_and_alert_rules_are_there_and_can_be_imported(installed: Machine) -> None:
    there = installed.share / "billaged" / "dashboards"
    files = ["alerts.yml", *sorted(path.name for path in (ROOT / "dashboards").glob("billaged-*.json"))]
    assert sorted(path.name for path in there.iterdir()) == files
    for name in files:
        assert (there / name).read_bytes() == (ROOT / "dashboards" / name).read_bytes()
    with grafana() as server:
        where = {"GRAFANA_URL": server.url, "GRAFANA_TOKEN": "glsa_token"}
        done = installed.run(command="billaged-import-dashboards", environment=where)
    assert (done.returncode, done.stderr) == (0, "")
    assert [asked.body["dashboard"]["uid"] for asked in server.asked] == [
        json.loads((there / name).read_text())["uid"] for name in files[1:]
    ]


@contextmanager
def served(machine: Machine, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """billaged.service's command with the settings of the file, as soon as it says that it is ready."""
    with machine.settings.open("a") as file:
        file.writelines(f'UNKEY_BILLAGED_{name}="{value}"\n' for name, value in settings.items())
    environment = machine.environment("billaged.service")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(60)
        listener.bind(str(machine.root / "notify"))
        with (machine.root / "output").open("wb") as output:
            process = subprocess.Popen(
                machine.exec_start("billaged.service"),
                env=environment | {"NOTIFY_SOCKET": str(machine.root / "notify")},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            while b"READY=1" not in listener.recv(4096):
                pass
            yield process, environment
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def test_it_serves_with_the_settings_of_its_file_and_runs_commands(machine: Machine) -> None:
    port, http_port = free_port(), free_port()
    settings = {
        "TLS_MODE": "disabled",
        "ADDRESS": "127.0.0.1",
        "PORT": str(port),
        "HTTP_PORT": str(http_port),
        "DATA_DIR": str(machine.data),
    }
    with served(machine, **settings) as (process, environment):
        # The same process: the service manager kills and signals the one it started.
        assert b"billaged" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        health = subprocess.run(health_check(machine), env=environment, capture_output=True, text=True)
        assert health.returncode == 0, health.stderr
        for seconds in (1, 2):
            sent = machine.run(
                *("send", "metrics", "--vm-id", "vm-a", "--customer-id", "acme corp".replace(" ", "-")),
                *("--cpu-time-nanos", f"{seconds}000000000", "--address", f"127.0.0.1:{port}"),
            )
            assert sent.returncode == 0, sent.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, (machine.root / "output").read_text()
    unhealthy = subprocess.run(health_check(machine), env=environment, capture_output=True)
    assert unhealthy.returncode != 0

    def command(output: str, text: str) -> subprocess.CompletedProcess[str]:
        """billaged-command@.service's command. $COMMAND is split as systemd does it, quotes respected."""
        program, argument = machine.exec_start("billaged-command@.service")
        assert argument == "$COMMAND"
        reports = machine.root / "reports"
        reports.mkdir(exist_ok=True)
        return subprocess.run(
            [program, *shlex.split(text)],
            env=machine.environment(
                "billaged-command@.service", COMMAND=text, **({"OUTPUT": output} if output else {})
            ),
            cwd=reports,
            capture_output=True,
            text=True,
        )

    written = command("acme-%Y.json", 'bill --customer "acme-corp" --period this-month --format json')
    assert (written.returncode, written.stderr) == (0, "")
    [report] = (machine.root / "reports").iterdir()
    assert re.fullmatch(r"acme-\d{4}\.json", report.name)
    assert written.stdout == f"wrote {report.name}\n"
    assert json.loads(report.read_text())["customer_id"] == "acme-corp"
    assert "vm-a" in command("", "vms").stdout
    # A failed one leaves neither half a report nor the last one changed.
    before = report.read_bytes()
    assert command(report.name, "bill --customer acme-corp --period never").returncode == 2
    assert [path.read_bytes() for path in (machine.root / "reports").iterdir()] == [before]
    assert command("", "").returncode == 2


def health_check(machine: Machine) -> list[str]:
    """The Containerfile's, in this root."""
    text = (ROOT / "Containerfile").read_text()
    [words] = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.M)
    program, *arguments = json.loads(words)
    return [str(machine.root) + program, *arguments]


def test_every_program_of_the_units_is_installed(installed: Machine) -> None:
    for unit in installed.units.glob("*.service"):
        assert os.access(installed.exec_start(unit.name)[0], os.X_OK), unit


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["--help"], 0, "Usage:"),
        (["--nonsense"], 2, "unknown option --nonsense"),
        (["--prefix"], 1, "--prefix needs a value"),
        (["--prefix", "{scratch}", "--user", "a b"], 1, "no name of a user"),
        (["--prefix", "{scratch}", "--python", "/bin/false"], 1, "/bin/false is no Python"),
        (["--prefix", "{scratch}", "--rollback"], 1, "no previous release"),
        (["--package"], 1, "needs"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, arguments: list[str], exit_code: int, said: str) -> None:
    done = install(ROOT, *[it.format(scratch=tmp_path / "root") for it in arguments], check=False)
    assert done.returncode == exit_code
    assert said in done.stdout + done.stderr


def test_root_is_asked_for() -> None:
    """As somebody else, whoever runs the tests; the script comes by way of stdin, for they may not read the tree."""
    script = (ROOT / "scripts" / "install.sh").read_bytes()
    who = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(["/bin/sh"], input=script, capture_output=True, cwd="/", **who)
    assert (done.returncode, b"needs root" in done.stderr) == (1, True), done.stderr
