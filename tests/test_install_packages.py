"""What else is made of a staged installation: a Debian package, a container's image."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from checkout import ROOT
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


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg-deb: not a Debian")
def test_the_debian_package_holds_the_same(checkout: Path, installed: Machine, tmp_path: Path) -> None:
    try:
        subprocess.run(
            ["/usr/bin/python3", "-c", "import sys, venv, ensurepip; assert sys.version_info >= (3, 11)"], check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the distribution's own Python is older than 3.11, or has no venv")
    built = subprocess.run(
        [checkout / "packaging" / "build_deb.sh", "--into", tmp_path, "--from", installed.root],
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [package] = tmp_path.glob("billaged_*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path / "root"], check=True)
    subprocess.run(["dpkg-deb", "--control", package, tmp_path / "control"], check=True)
    root, control = tmp_path / "root", tmp_path / "control"
    for command, said in (("billaged", f"billaged {__version__}\n"), ("billaged-import-dashboards", "usage: ")):
        flag = "--version" if command == "billaged" else "--help"
        link = (root / "usr" / "bin" / command).readlink()
        done = subprocess.run([f"{root}{link}", flag], capture_output=True, text=True)
        assert done.stdout.startswith(said), done
    assert (root / "usr" / "lib" / "systemd" / "system" / "billaged.service").exists()
    dashboards = (root / "usr" / "share" / "billaged" / "dashboards").readlink()
    assert Path(f"{root}{dashboards}", "alerts.yml").exists()
    assert (root / "usr" / "share" / "zsh" / "vendor-completions" / "_billaged").exists()
    pages = root / "usr" / "share" / "doc" / "billaged"
    assert {"copyright", "changelog.gz", "operations.md"} <= {path.name for path in pages.iterdir()}
    assert (control / "conffiles").read_text() == "/etc/billaged/billaged.env\n/etc/logrotate.d/billaged\n"
    subprocess.run(["md5sum", "--check", "--quiet", control / "md5sums"], cwd=root, check=True)
    for script in ("postinst", "prerm", "postrm"):
        subprocess.run(["/bin/sh", "-n", control / script], check=True)
    listed = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}
    assert listed.startswith("drwxr-xr-x"), "the package's root has the mode of /"
    if shutil.which("lintian") is not None:
        # Debian's own archive takes no zstd; dpkg does.
        known = ["--suppress-tags", "malformed-deb-archive", "--fail-on", "error", "--allow-root"]
        done = subprocess.run(["lintian", *known, package], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


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
