"""`make simulate`: days of a fleet's life in seconds, from a seed; see tests/simulation/command.py."""

from __future__ import annotations

import sys
from pathlib import Path

# Where pytest finds the tests' own modules.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from simulation.command import main

if __name__ == "__main__":
    # Its processes import this file again.
    sys.exit(main())
