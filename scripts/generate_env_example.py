"""Write systemd/billaged.env.example from the settings, or check that it is fresh.

    python scripts/generate_env_example.py            writes
    python scripts/generate_env_example.py --check    exits 1 and says so where the file is stale

It is what a fresh installation finds as /etc/billaged/billaged.env.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from generated import keep_fresh

from billaged.settings import SettingLine, Settings
from billaged.settings.coming import COMING
from billaged.settings.section import PREFIX

FILE = Path(__file__).resolve().parent.parent / "systemd" / "billaged.env.example"
WIDTH = 110
HEAD = """\
# The settings of billaged, read by billaged.service and billaged-command@.service as root before they start.
# After a change: systemctl restart billaged. What would be in force, and what is wrong with it, says
#   sudo sh -c 'set -a; . /etc/billaged/billaged.env; billaged config show'
#
# A line is NAME=value. What stands behind #UNKEY_ is the default: take the # away to change it. Values with spaces,
# quotes or backslashes go between "double quotes". Durations: 250ms, 60s, 15m, 1h30m. Sizes: 512KiB, 256MiB, 4GiB.
#
# To begin with, choose how callers and billaged prove who they are, and say who may do what:
#
#   a SPIFFE agent (the default)   {prefix}SPIFFE_SOCKET
#   certificates from files        {prefix}TLS_MODE=file, and the three {prefix}TLS_..._FILE
#   only to try it, on loopback    {prefix}TLS_MODE=disabled, {prefix}ADDRESS=127.0.0.1
#   with either of the first two   {prefix}POLICY_FILE (`billaged policy example` prints one to begin with)
#
# This file is written once. An upgrade whose settings differ puts the new one beside it, as billaged.env.new.
"""


def comment(text: str) -> Iterator[str]:
    """``text`` as comment lines. None ends in a backslash, with which systemd would go on in the next line."""
    for line in textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}".rstrip("\\ ")


def assignment(line: SettingLine) -> str:
    """The default, as a comment; systemd reads what is between double quotes like a shell does."""
    value = line.default or ""
    if any(character in value for character in " \t\"'\\$`#;"):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        value = f'"{escaped}"'
    return f"#{line.name}={value}"


def example() -> str:
    """The whole file."""
    settings = Settings()
    parts = [HEAD.format(prefix=PREFIX)]
    for name, section in settings.sections.items():
        parts += ["", f"### {name}: {' '.join((type(section).__doc__ or '').split())}"]
        for line in settings.lines():
            if line.section == name:
                default = "" if line.default else " Not set by default."
                later = " Does nothing yet." if line.not_yet else ""
                parts += ["", *comment(f"{line.description}{default}{later} Takes: {line.values}."), assignment(line)]
    if COMING:
        parts += ["", "### Names of coming versions: accepted, and without effect yet.", ""]
        parts += [text for suffix, it in COMING.items() for text in comment(f"{PREFIX}{suffix}: {it.description}.")]
    return "\n".join(parts) + "\n"


def main() -> int:
    return keep_fresh(__doc__, "scripts/generate_env_example.py", "file", FILE, lambda _: example())


if __name__ == "__main__":
    sys.exit(main())
