"""Files of the repository that are generated: written anew, or checked. What the generate_* scripts share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def between(page: str, begin: str, end: str, content: str) -> str:
    """The page with this content between two markers; what stands outside them is left as it is."""
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise SystemExit(f"the page lacks a marker: {begin} or {end}")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def keep_fresh(description: str | None, script: str, noun: str, path: Path, renewed: Callable[[str], str]) -> int:
    """Run a script's command line: write the file where it is stale, or with --check only say so.

    Args:
        description: the script's own, for --help.
        script: its path, for what to do next.
        noun: ``page`` or ``file``: its option's name, too.
        path: the file, where the option names no other one.
        renewed: from what the file holds ("" where there is none) to what it should.

    Returns:
        The exit code: 1 where the file is stale and was only checked.
    """
    where = path.relative_to(Path(__file__).resolve().parent.parent)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help=f"write nothing, exit 1 where the {noun} is stale")
    parser.add_argument(f"--{noun}", dest="path", type=Path, default=path, help=f"the {noun} (default: {where})")
    arguments = parser.parse_args()
    target: Path = arguments.path
    old = target.read_text(encoding="utf-8") if target.exists() else ""
    new = renewed(old)
    if old == new:
        return 0
    if arguments.check:
        print(f"{target.name} is stale: run python {script}", file=sys.stderr)
        return 1
    target.write_text(new, encoding="utf-8")
    print(f"wrote: {target.name}")
    return 0
