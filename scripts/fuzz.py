"""`make fuzz`: a million mutated messages to a real daemon; see tests/fuzz/run.py."""

from __future__ import annotations

import sys
from pathlib import Path

# Where pytest finds the tests' own modules.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fuzz.run import main

sys.exit(main())
