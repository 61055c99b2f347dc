"""Write constraints.txt: what the newest versions that setup.cfg allows resolve to, as one tested set.

    python scripts/refresh_constraints.py

Resolves in a throw-away environment, so that nothing left over in .venv slips in. Run the
tests with the result before committing it: `make ci` installs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# The exact versions that were tested together, for `make setup` and `make build`.
# Lower bounds live in setup.cfg; refresh this file with `make constraints`.
"""
# The installer itself comes with Python; ours is installed from its source.
UNPINNED = ("pip==", "billaged==")


def frozen() -> list[str]:
    """``name==version`` of all that billaged with all its extras needs, sorted."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [str(Path(folder, "bin", "python")), "-m", "pip", "--disable-pip-version-check"]
        environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        subprocess.run([*pip, "install", "--quiet", "--upgrade", "setuptools"], check=True, env=environment)
        own = f"{ROOT}[agent,otel,dev]"
        subprocess.run([*pip, "install", "--quiet", "--no-build-isolation", "-e", own], check=True, env=environment)
        listing = subprocess.run(
            [*pip, "freeze", "--all", "--exclude-editable"], check=True, env=environment, capture_output=True, text=True
        ).stdout
    return sorted((line for line in listing.splitlines() if not line.startswith(UNPINNED)), key=str.lower)


def main() -> int:
    pins = frozen()
    strange = [pin for pin in pins if "==" not in pin or "@" in pin]
    if strange:
        print(f"not a released version: {', '.join(strange)}", file=sys.stderr)
        return 1
    (ROOT / "constraints.txt").write_text(HEADER + "".join(f"{pin}\n" for pin in pins))
    print(f"wrote constraints.txt: {len(pins)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
