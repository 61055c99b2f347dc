"""The benchmarks run, each beside its baseline. How fast anything is, is not asked here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A line that each must print, and how many verdicts it gives.
EXPECTED = {
    "fold": ("plain loop (baseline)", 2),
    "interval": ("plain loop over the VMs (baseline)", 1),
    "memory": ("a dict with a list of 15 integers (baseline)", 1),
    "restart": ("nothing in the ledger (baseline)", 1),
    "gil": ("row by row, nothing beside it", 0),
    "rpc": ("empty handler, parsed messages (baseline)", 1),
    "latency": ("empty handler (baseline)", 1),
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_benchmark_prints_its_baseline_and_its_verdicts(name: str) -> None:
    baseline, verdicts = EXPECTED[name]
    done = bench("--tiny", name)
    assert done.returncode == 0, done.stderr
    assert baseline in done.stdout
    assert len(re.findall(r"^  target: .+: .+, (?:holds|MISSED)$", done.stdout, re.MULTILINE)) == verdicts, done.stdout
    # What is measured is a number of something, and not zero calls.
    assert re.search(r"[1-9][\d,.]* (?:/s|us|ms|s|B a VM)\b", done.stdout), done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_every_acknowledged_call_is_folded() -> None:
    """The load generator's word against the daemon's own count."""
    done = bench("--tiny", "rpc")
    found = re.search(r"acknowledged calls, samples folded +([\d,]+) +([\d,]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert found[1] == found[2] != "0"


def test_an_unknown_name_is_refused() -> None:
    done = bench("speed")
    assert done.returncode == 2
    assert "no such benchmark: speed" in done.stderr


def test_a_missed_target_fails_only_where_that_is_asked_for() -> None:
    # A group of ten samples cannot be folded at the price of a thousand's.
    assert bench("--tiny", "fold").returncode == 0
    assert bench("--tiny", "--check", "fold").returncode == 1
