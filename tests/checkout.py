"""A checkout of its own to install from, and whether there is an index to install from."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What an installation is made from.
NEEDED = (
    "setup.cfg",
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "Makefile",
    "CHANGELOG.md",
    "billaged",
    "dashboards",
    "docs",
    "scripts",
    "systemd",
    "packaging",
)


def copy_to(folder: Path, tree: Path = ROOT) -> Path:
    """A tree as it is now: what others edit meanwhile stays out of it."""
    for name in NEEDED:
        if (tree / name).is_dir():
            shutil.copytree(tree / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, folder / name)
    return folder


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name}: {old!r}"
    file.write_text(text.replace(old, new))


def make_next_version(checkout: Path, version: str) -> None:
    """A newer checkout, whose example of the settings is another one as well."""
    module = checkout / "billaged" / "__init__.py"
    module.write_text(re.sub(r'^__version__ = ".*"$', f'__version__ = "{version}"', module.read_text(), flags=re.M))
    with (checkout / "systemd" / "billaged.env.example").open("a") as example:
        example.write(f"# new in {version}\n")


@functools.cache
def _index_problem() -> str:
    [pin] = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("click==")]
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--quiet", "--retries", "0", "--timeout", "20"]
        done = subprocess.run([*pip, "download", "--no-deps", "--dest", folder, pin], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def needs_index() -> None:
    """Skip where nothing can be installed from; in CI that is a failure."""
    if problem := _index_problem():
        if os.environ.get("CI"):
            pytest.fail(f"no package index: {problem}")
        pytest.skip(f"no package index to install from: {problem}")
