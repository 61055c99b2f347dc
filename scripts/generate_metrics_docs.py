"""Write the table of metrics into docs/metrics.md, or check that it is fresh.

    python scripts/generate_metrics_docs.py            writes
    python scripts/generate_metrics_docs.py --check    exits 1 and says so where the page is stale

What stands outside the two markers is left as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from billaged.telemetry.metrics.catalog import ACTIVE_VMS_BY_CUSTOMER, METRICS, RECORDS_BY_VM
from billaged.telemetry.metrics.collector import DaemonCollector

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
BEGIN = "<!-- metrics: written by scripts/generate_metrics_docs.py -->"
END = "<!-- metrics: end -->"


def rows() -> Iterator[str]:
    labels = {metric.name: ", ".join(f"`{label}`" for label in metric.labels) for metric in METRICS}
    for metric in (RECORDS_BY_VM, ACTIVE_VMS_BY_CUSTOMER):
        labels[metric.name] = ", ".join(f"(`{label}`)" for label in metric.labels)
    for family in DaemonCollector(lambda: ()).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield f"| `{name}` | {family.type} | {labels.get(name, '')} | {family.documentation} |"


def renewed(page: str) -> str:
    """The page with today's table between the markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page lacks a marker: {BEGIN} or {END}")
    table = "\n".join(["| metric | type | labels | meaning |", "|---|---|---|---|", *rows()])
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where the page is stale")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (default: docs/metrics.md)")
    arguments = parser.parse_args()
    old = arguments.page.read_text(encoding="utf-8")
    new = renewed(old)
    if old == new:
        return 0
    if arguments.check:
        print(f"{arguments.page.name} is stale: run python scripts/generate_metrics_docs.py", file=sys.stderr)
        return 1
    arguments.page.write_text(new, encoding="utf-8")
    print(f"wrote: {arguments.page.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
