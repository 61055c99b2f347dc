"""scripts/install.sh again and from a newer checkout: what changes at once, what stays, what is taken back."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkout import copy_to, edit, make_next_version
from installed_machine import Machine, install, staged

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


def test_installing_again_changes_nothing(checkout: Path, machine: Machine) -> None:
    machine.settings.write_text("# mine\n")
    before = machine.files()
    done = install(checkout, "--prefix", machine.root)
    assert "as before" in done.stdout
    assert machine.files() == before
    assert machine.settings.read_text() == "# mine\n"
    # The example is the one that these settings were made from: there is nothing to compare with.
    assert sorted(path.name for path in machine.settings.parent.iterdir()) == ["billaged.env", "commands"]


def test_an_upgrade_switches_at_once_keeps_settings_and_can_be_taken_back(checkout: Path, machine: Machine) -> None:
    newer = copy_to(machine.root.parent / "newer", checkout)
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
