"""Write the settings' tables into docs/configuration.md, or check that they are fresh.

    python scripts/generate_configuration_docs.py            writes
    python scripts/generate_configuration_docs.py --check    exits 1 and says so where the page is stale

What stands outside the two markers is left as it is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from billaged.settings import Settings
from billaged.settings.coming import COMING
from billaged.settings.section import PREFIX

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN = "<!-- settings: written by scripts/generate_configuration_docs.py -->"
END = "<!-- settings: end -->"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def tables() -> str:
    settings = Settings()
    parts: list[str] = []
    for name, section in settings.sections.items():
        parts += [f"### {name}", "", type(section).__doc__ or "", ""]
        parts += ["| variable | default | values | meaning |", "|---|---|---|---|"]
        for line in settings.lines():
            if line.section == name:
                default = f"`{line.default}`" if line.default else "none"
                meaning = line.description + (" *Does nothing yet.*" if line.not_yet else "")
                parts.append(f"| `{line.name}` | {default} | {cell(line.values)} | {cell(meaning)} |")
        parts.append("")
    parts += ["### Names of coming versions", "", "Accepted; the log says at the start that they do nothing yet.", ""]
    parts += ["| variable | will be |", "|---|---|"]
    parts += [
        f"| `{PREFIX}{suffix}` | {cell(coming.description)}{' (secret)' if coming.secret else ''} |"
        for suffix, coming in COMING.items()
    ]
    return "\n".join(parts)


def renewed(page: str) -> str:
    """The page with today's tables between the markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page lacks a marker: {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where the page is stale")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (default: docs/configuration.md)")
    arguments = parser.parse_args()
    old = arguments.page.read_text(encoding="utf-8")
    new = renewed(old)
    if old == new:
        return 0
    if arguments.check:
        print(f"{arguments.page.name} is stale: run python scripts/generate_configuration_docs.py", file=sys.stderr)
        return 1
    arguments.page.write_text(new, encoding="utf-8")
    print(f"wrote: {arguments.page.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
