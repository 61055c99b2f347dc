"""The units and the settings' file as they are in the tree: what systemd thinks of them, and that they are complete."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from billaged.settings import Settings
from billaged.settings.coming import COMING
from billaged.settings.section import PREFIX

ROOT = Path(__file__).resolve().parent.parent
UNITS = ROOT / "systemd"
EXAMPLE = UNITS / "billaged.env.example"
SERVICES = sorted(UNITS.glob("*.service"))

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze on the PATH"
)


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60)


def lines_of(unit: Path) -> list[str]:
    return [line for line in unit.read_text().splitlines() if line and not line.startswith("#")]


@needs_systemd_analyze
@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_the_sandbox_is_tight(unit: Path) -> None:
    # In tenths, and the limit itself is allowed.
    done = analyze("security", "--offline=true", "--threshold=19", "--no-pager", unit)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_systemd_analyze
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    """With programs that exist, since it looks for them too; templates as one of their instances."""
    program = tmp_path / "billaged"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    named = []
    for unit in sorted(UNITS.iterdir()):
        if unit.suffix in (".service", ".timer"):
            target = tmp_path / unit.name
            target.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={program}", unit.read_text(), flags=re.M))
            named.append(tmp_path / unit.name.replace("@", "@some-name"))
    done = analyze("verify", "--man=no", *named)
    # A machine's own units may have faults of their own.
    assert not [line for line in done.stderr.splitlines() if "billaged" in line]


@needs_systemd_analyze
def test_the_timer_names_a_time() -> None:
    [when] = [line for line in lines_of(UNITS / "billaged-command@.timer") if line.startswith("OnCalendar=")]
    assert analyze("calendar", when.removeprefix("OnCalendar=")).returncode == 0


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_nothing_is_required_that_is_not_needed(unit: Path) -> None:
    assert not [line for line in lines_of(unit) if line.startswith(("Requires=", "BindsTo=", "Requisite="))]


def test_the_service_is_watched_and_ends_with_what_a_restart_cannot_heal() -> None:
    lines = lines_of(UNITS / "billaged.service")
    for line in ("Type=notify", "Restart=on-failure", "RestartPreventExitStatus=2", "StateDirectory=billaged"):
        assert line in lines
    assert any(line.startswith("WatchdogSec=") for line in lines)
    assert "EnvironmentFile=-/etc/billaged/billaged.env" in lines


def test_the_commands_are_as_confined_as_the_daemon() -> None:
    def sandbox(name: str) -> list[str]:
        lines = lines_of(UNITS / name)
        return lines[lines.index("NoNewPrivileges=yes") : lines.index("SystemCallErrorNumber=EPERM")]

    assert sandbox("billaged-command@.service") == sandbox("billaged.service")


def test_what_is_written_has_a_folder_of_its_own() -> None:
    daemon, command = (lines_of(UNITS / name) for name in ("billaged.service", "billaged-command@.service"))
    assert {"LogsDirectory=billaged", "LogsDirectoryMode=0700"} <= set(daemon)
    assert "StateDirectory=billaged billaged-reports billaged-backups" in command
    rotated = (UNITS / "billaged.logrotate").read_text()
    assert "\n/var/log/billaged/audit.log {\n" in rotated
    # What the rotated file is made as is what the daemon would make.
    assert "create 0600 billaged billaged\n" in rotated
    assert {"User=billaged", "Group=billaged"} <= set(daemon)


def test_the_settings_file_is_fresh(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "generate_env_example.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stale = tmp_path / "billaged.env.example"
    stale.write_text(EXAMPLE.read_text().replace("8081", "8083"))
    done = subprocess.run([sys.executable, script, "--check", "--file", stale], capture_output=True, text=True)
    assert (done.returncode, "is stale" in done.stderr) == (1, True)


def test_the_settings_file_has_every_setting_with_its_default() -> None:
    text = EXAMPLE.read_text()
    given = dict(re.findall(rf"^#({PREFIX}\w+)=(.*)$", text, re.M))
    assert set(given) == {line.name for line in Settings().lines()}
    # As it is, it sets nothing; with all its # taken away, it changes nothing.
    assert not [line for line in text.splitlines() if line and not line.startswith("#")]
    defaults = {name: shlex.split(value)[0] for name, value in given.items() if value}
    loaded = Settings.load(defaults)
    assert {name: section.model_dump() for name, section in loaded.sections.items()} == {
        name: section.model_dump() for name, section in Settings().sections.items()
    }
    assert all(f"{PREFIX}{name}" in text for name in COMING)
    # systemd would take the next line for the rest of such a comment.
    assert not [line for line in text.splitlines() if line.endswith("\\")]
