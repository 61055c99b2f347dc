"""Build the wheel and build/billaged, one self-contained executable.

    python scripts/build_executable.py [--into build]

The executable is a shiv archive: this project's wheel with the `agent` extra and all
they need, taken from the environment the tests ran in and held against constraints.txt.
Nothing is downloaded. It runs with any CPython of the version and machine it was
built on, and unpacks itself once into ~/.shiv (or $SHIV_ROOT).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("agent",)
# What a build reads: from a copy, so that setuptools' own leavings stay out of the tree and of the next wheel.
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "billaged")

PREAMBLE = """\
import platform
import sys

built_for = {built_for!r}
running_on = ("%s %d.%d" % (platform.python_implementation(), *sys.version_info[:2]), sys.platform, platform.machine())
if running_on != built_for:
    sys.exit("billaged: this executable is for %s on %s %s, this is %s on %s %s" % (built_for + running_on))
"""


def python_name() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def build_wheel(into: Path, scratch: Path) -> Path:
    """The wheel of the tree as it is, in ``into``."""
    source = scratch / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(into), str(source))
    [wheel] = into.glob("billaged-*.whl")
    return wheel


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def needed_by(requirements: list[str], extras: set[str]) -> Iterator[Requirement]:
    """Those of a distribution's requirements that hold here, with these extras asked for."""
    for text in requirements:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield requirement


def runtime_closure(own: importlib.metadata.Distribution) -> dict[str, importlib.metadata.Distribution]:
    """Every installed distribution that billaged with EXTRAS needs to run, by canonical name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = list(needed_by(own.requires or [], set(EXTRAS)))
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found[name] = importlib.metadata.distribution(requirement.name)
        waiting.extend(needed_by(found[name].requires or [], set(extras)))
    return found


def pinned_versions() -> dict[str, str]:
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def copy_distribution(distribution: importlib.metadata.Distribution, site: Path) -> None:
    """Copy what the distribution installed into its site-packages; its scripts and bytecode stay behind."""
    for file in distribution.files or []:
        if file.is_absolute() or ".." in file.parts or "__pycache__" in file.parts:
            continue
        target = site / Path(*file.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path(str(distribution.locate_file(file))), target)


def collect_site(wheel: Path, site: Path) -> None:
    """Fill ``site`` with the wheel and all it needs at run time.

    Raises:
        SystemExit: an installed version is not the one in constraints.txt.
    """
    # Found by name and not by path, so that no path of this machine is noted down in the result.
    _, version, *_ = wheel.name.split("-")
    found_here = ["--no-index", "--find-links", str(wheel.parent)]
    pip("install", "--no-deps", "--no-compile", *found_here, "--target", str(site), f"billaged=={version}")
    shutil.rmtree(site / "bin", ignore_errors=True)
    [own] = importlib.metadata.distributions(name="billaged", path=[str(site)])
    pins = pinned_versions()
    closure = runtime_closure(own)
    strangers = [f"{name} {it.version}" for name, it in sorted(closure.items()) if pins.get(name) != it.version]
    if strangers:
        raise SystemExit(f"installed, but not what constraints.txt pins: {', '.join(strangers)}. Run 'make setup'.")
    for distribution in closure.values():
        copy_distribution(distribution, site)


def build_executable(site: Path, scratch: Path, target: Path) -> None:
    built_for = (
        f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}",
        sys.platform,
        platform.machine(),
    )
    preamble = scratch / "check_platform.py"
    preamble.write_text(PREAMBLE.format(built_for=built_for))
    options = ["--reproducible", "--compressed", "--preamble", str(preamble), "--site-packages", str(site)]
    # Without the machine's own packages: a library would find one of them, of another age, and try to use it.
    shebang = f"/usr/bin/env -S {python_name()} -S"
    command = [sys.executable, "-m", "shiv", *options, "-c", "billaged", "-p", shebang, "-o", str(target)]
    subprocess.run(command, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / "build", help="folder for the results (default: build)")
    into: Path = parser.parse_args().into
    into.mkdir(parents=True, exist_ok=True)
    for old in into.glob("billaged-*.whl"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        wheel = build_wheel(into, scratch)
        site = scratch / "site"
        collect_site(wheel, site)
        executable = into / "billaged"
        build_executable(site, scratch, executable)
    size_mib = executable.stat().st_size / 2**20
    print(f"built {wheel}")
    print(f"built {executable} ({size_mib:.0f} MiB, needs {python_name()})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
