"""``python -m bench``: run the benchmarks and print what they find.

Everything stays on loopback and in one directory under ``build/``, which is removed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

from bench import fold, gil, memory, restart, rpc
from bench.report import Report

# As quick as they can be and still run all of it; their numbers mean nothing.
_TINY_RPC = rpc.Size(vms=8, rounds=2, turns=1)
_TINY_FOLD = fold.Size(vms=(10, 20), groups=3, interval_vms=20, intervals=2)

Benchmark = Callable[[Report, bool], None]

BENCHMARKS: dict[str, Benchmark] = {
    "fold": lambda report, tiny: fold.fold(report, _TINY_FOLD if tiny else fold.Size()),
    "interval": lambda report, tiny: fold.interval(report, _TINY_FOLD if tiny else fold.Size()),
    "memory": lambda report, tiny: memory.memory(report, memory.Size(50) if tiny else memory.Size()),
    "restart": lambda report, tiny: restart.restart(report, restart.Size(50, 1) if tiny else restart.Size()),
    "gil": lambda report, tiny: gil.gil(report, gil.Size(1) if tiny else gil.Size()),
    "rpc": lambda report, tiny: rpc.rpc(report, _TINY_RPC if tiny else rpc.Size()),
    "latency": lambda report, tiny: rpc.latency(report, _TINY_RPC if tiny else rpc.Size()),
}


def main() -> int:
    """Returns 1 where ``--check`` was given and a target was missed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} or all (default)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that it runs, not how fast")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    arguments = parser.parse_args()
    names = arguments.names or ["all"]
    if unknown := set(names) - BENCHMARKS.keys() - {"all"}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    report = Report()
    _describe(report)
    for name in BENCHMARKS if "all" in names else names:
        began = time.perf_counter()
        BENCHMARKS[name](report, arguments.tiny)
        report.line(f"{name} took", f"{time.perf_counter() - began:.0f} s")
    report.summary()
    return int(arguments.check and report.missed)


def _describe(report: Report) -> None:
    cores = len(os.sched_getaffinity(0))
    report.title(f"{cores} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}")
    libraries = ("grpcio", "protobuf", "uvloop", "numpy", "SQLAlchemy")
    found = ", ".join(f"{name} {version(name)}" for name in libraries)
    report.title(f"{found}, SQLite {sqlite3.sqlite_version}")


if __name__ == "__main__":
    sys.exit(main())
