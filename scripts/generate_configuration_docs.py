"""Write the settings' tables into docs/configuration.md, or check that they are fresh.

    python scripts/generate_configuration_docs.py            writes
    python scripts/generate_configuration_docs.py --check    exits 1 and says so where the page is stale

What stands outside the two markers is left as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from generated import between, keep_fresh

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


def main() -> int:
    return keep_fresh(
        __doc__,
        "scripts/generate_configuration_docs.py",
        "page",
        PAGE,
        lambda page: between(page, BEGIN, END, tables()),
    )


if __name__ == "__main__":
    sys.exit(main())
