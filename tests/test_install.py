"""scripts/install.sh, run for real into a staging root: installed, served from, upgraded, rolled back, removed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkout import ROOT, copy_to, edit, make_next_version, needs_index
from free_ports import free_port
from packaging.utils import canonicalize_name

from billaged import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def install(checkout: Path, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [checkout / "scripts" / "install.sh", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


class Machine:
    """A staging root, which stands for /."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "opt" / "billaged"
        self.settings = root / "etc" / "billaged" / "billaged.env"
        self.units = root / "etc" / "systemd" / "system"
        self.data = root / "var" / "lib" / "billaged"

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """The installed command, as somebody without this project's environment has it."""
        return subprocess.run(
            [self.root / "usr" / "local" / "bin" / "billaged", *arguments],
            env=dict(environment or {"PATH": "/usr/bin:/bin"}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def current(self) -> str:
        return str((self.home / "current").readlink())

    @property
    def releases(self) -> set[str]:
        return {f"releases/{path.name}" for path in (self.home / "releases").iterdir()}

    def files(self) -> dict[str, tuple[int, int]]:
        """Everything there is, with what would tell that it was written again."""
        return {
            str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in (self.home / "releases").rglob("*")
        }

    def exec_start(self, unit: str) -> list[str]:
        """The words of a unit's ExecStart, in this root."""
        [line] = [line for line in (self.units / unit).read_text().splitlines() if line.startswith("ExecStart=")]
        program, *arguments = line.removeprefix("ExecStart=").split()
        return [str(self.root) + program, *arguments]

    def environment(self, unit: str, **more: str) -> dict[str, str]:
        """What systemd would give to a unit: PATH, Environment=, then the settings' file."""
        found = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        for line in (self.units / unit).read_text().splitlines():
            if line.startswith("Environment="):
                name, _, value = line.removeprefix("Environment=").partition("=")
                found[name] = value
        for line in self.settings.read_text().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.partition("=")
                [found[name]] = shlex.split(value)
        return found | more


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_index()
    return copy_to(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def installed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Installed once, and not changed by the tests that only look at it."""
    machine = Machine(tmp_path_factory.mktemp("root"))
    done = install(checkout, "--prefix", machine.root)
    # It says what it did not do.
    assert "left out: the user billaged" in done.stdout
    assert "left out: the service" in done.stdout
    return machine


@pytest.fixture
def machine(installed: Machine, tmp_path: Path) -> Machine:
    """A copy to change. That it runs at all shows that nothing in it knows where it was made."""
    shutil.copytree(installed.root, tmp_path / "root", symlinks=True)
    return Machine(tmp_path / "root")


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


def test_installing_again_changes_nothing(checkout: Path, machine: Machine) -> None:
    machine.settings.write_text("# mine\n")
    before = machine.files()
    done = install(checkout, "--prefix", machine.root)
    assert "as before" in done.stdout
    assert machine.files() == before
    assert machine.settings.read_text() == "# mine\n"
    # The example is the one that these settings were made from: there is nothing to compare with.
    assert sorted(path.name for path in machine.settings.parent.iterdir()) == ["billaged.env", "commands"]


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


def test_an_upgrade_switches_at_once_keeps_settings_and_can_be_taken_back(checkout: Path, machine: Machine) -> None:
    newer = copy_to(machine.root.parent / "newer")
    make_next_version(newer, "99.1")
    old = machine.current
    machine.settings.write_text("UNKEY_BILLAGED_TLS_MODE=disabled\n")
    machine.data.mkdir(parents=True)
    (machine.data / "ledger.db").write_text("all that was billed")

    # What cannot run does not become the current one, and leaves nothing behind.
    edit(newer / "billaged" / "daemon.py", "import asyncio\n", "import asyncio\nimport nothing_that_is_installed\n")
    failed = install(newer, "--prefix", machine.root, check=False)
    assert failed.returncode == 1
    assert "nothing_that_is_installed" in failed.stderr
    assert (machine.current, machine.releases) == (old, {old})
    edit(newer / "billaged" / "daemon.py", "import asyncio\nimport nothing_that_is_installed\n", "import asyncio\n")

    done = install(newer, "--prefix", machine.root)
    assert machine.current.startswith("releases/99.1-")
    assert machine.run("--version").stdout == "billaged 99.1\n"
    assert machine.releases == {old, machine.current}
    assert machine.settings.read_text() == "UNKEY_BILLAGED_TLS_MODE=disabled\n"
    beside = machine.settings.with_name("billaged.env.new")
    assert beside.read_text() == (newer / "systemd" / "billaged.env.example").read_text()
    assert "billaged.env.new" in done.stdout

    install(newer, "--prefix", machine.root, "--rollback")
    assert (machine.current, machine.run("--version").stdout) == (old, f"billaged {__version__}\n")
    install(newer, "--prefix", machine.root, "--rollback")
    assert machine.run("--version").stdout == "billaged 99.1\n"

    # Everything that an installation makes is removed by --uninstall; nothing else is.
    made = {str(path.relative_to(machine.root)) for path in machine.root.rglob("*") if not path.is_dir()}
    done = install(newer, "--prefix", machine.root, "--uninstall")
    left = {str(path.relative_to(machine.root)) for path in machine.root.rglob("*") if not path.is_dir()}
    assert left == {"etc/billaged/billaged.env", "etc/billaged/billaged.env.new", "var/lib/billaged/ledger.db"}
    assert len(made) > 1000
    assert "Still there" in done.stdout
    # And once more is no error.
    install(newer, "--prefix", machine.root, "--uninstall")
    assert install(checkout, "--prefix", machine.root, "--rollback", check=False).returncode == 1


def test_the_units_have_the_user_that_was_asked_for(checkout: Path, machine: Machine) -> None:
    def users() -> set[str]:
        units = [unit.read_text() for unit in machine.units.glob("*.service")]
        return {line for unit in units for line in unit.splitlines() if line.startswith(("User=", "Group="))}

    assert users() == {"User=billaged", "Group=billaged"}
    install(checkout, "--prefix", machine.root, "--user", "meter")
    assert users() == {"User=meter", "Group=meter"}
    # An upgrade asks nobody again.
    install(checkout, "--prefix", machine.root)
    assert users() == {"User=meter", "Group=meter"}


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


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg-deb: not a Debian")
def test_the_debian_package_holds_the_same(checkout: Path, tmp_path: Path) -> None:
    try:
        subprocess.run(
            ["/usr/bin/python3", "-c", "import sys, venv, ensurepip; assert sys.version_info >= (3, 11)"], check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the distribution's own Python is older than 3.11, or has no venv")
    built = subprocess.run(
        [checkout / "packaging" / "build_deb.sh", "--into", tmp_path], capture_output=True, text=True, timeout=800
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [package] = tmp_path.glob("billaged_*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path / "root"], check=True)
    subprocess.run(["dpkg-deb", "--control", package, tmp_path / "control"], check=True)
    done = subprocess.run([tmp_path / "root" / "usr" / "bin" / "billaged", "--version"], capture_output=True, text=True)
    assert done.stdout == f"billaged {__version__}\n"
    assert (tmp_path / "root" / "usr" / "lib" / "systemd" / "system" / "billaged.service").exists()
    assert (tmp_path / "control" / "conffiles").read_text() == "/etc/billaged/billaged.env\n"
    for script in ("postinst", "prerm", "postrm"):
        subprocess.run(["/bin/sh", "-n", tmp_path / "control" / script], check=True)
    listed = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}
    assert listed.startswith("drwxr-xr-x"), "the package's root has the mode of /"


def test_the_containerfile_says_what_works(checkout: Path, installed: Machine) -> None:
    """No engine is needed for this: its files are there, its steps are those that the tests above have run."""
    text = (ROOT / "Containerfile").read_text()
    steps = [line for line in text.splitlines() if line and not line.startswith("#")]
    allowed = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"]
    for step in steps:
        if step.startswith("COPY ") and "--from" not in step:
            for source in step.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert source in allowed, f"{source} is kept out of the build by .dockerignore"
    script = re.search(r"^RUN (scripts/install\.sh .*)$", text, re.M)
    assert script is not None
    helped = install(checkout, "--help").stdout
    assert all(f"\n  {option} " in helped for option in re.findall(r"--[a-z]+", script[1]))
    # The last stage runs as nobody in particular, by number, so that Kubernetes can see it.
    last = text.rpartition("\nFROM ")[2]
    user = re.search(r"^USER (\d+):(\d+)$", last, re.M)
    assert user is not None
    assert int(user[1]) > 0
    assert last.index("USER ") < last.index("ENTRYPOINT ")
    [program] = json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", last, re.M)[1])
    arguments = json.loads(re.search(r"^CMD (\[.*\])$", last, re.M)[1])
    assert [str(installed.root) + program, *arguments] == installed.exec_start("billaged.service")
