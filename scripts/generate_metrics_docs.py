"""Write the table of metrics into docs/metrics.md, or check that it is fresh.

    python scripts/generate_metrics_docs.py            writes
    python scripts/generate_metrics_docs.py --check    exits 1 and says so where the page is stale

What stands outside the two markers is left as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from generated import between, keep_fresh

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


def table() -> str:
    return "\n".join(["| metric | type | labels | meaning |", "|---|---|---|---|", *rows()])


def main() -> int:
    return keep_fresh(
        __doc__, "scripts/generate_metrics_docs.py", "page", PAGE, lambda page: between(page, BEGIN, END, table())
    )


if __name__ == "__main__":
    sys.exit(main())
