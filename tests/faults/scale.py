"""How many of each fault are tried: a few by default, more in CI, all of them in ``make test-faults``."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from functools import cache
from typing import Final, TypeVar

import pytest

# Unset, "ci" or "full".
VARIABLE: Final = "BILLAGED_FAULTS"
_LEVELS: Final = {"": 0, "ci": 1, "full": 2}
# Repeats a run's random choices; without it each run has new ones, and says which.
SEED_VARIABLE: Final = "BILLAGED_FAULTS_SEED"

T = TypeVar("T")


def _level() -> int:
    name = os.environ.get(VARIABLE, "")
    if name not in _LEVELS:
        raise ValueError(f"{VARIABLE} is {name!r}; one of {', '.join(repr(known) for known in _LEVELS)}")
    return _LEVELS[name]


LEVEL: Final = _level()


def scaled(few: int, ci: int, full: int) -> int:
    return (few, ci, full)[LEVEL]


def some(cases: Sequence[T], few: Sequence[T], ci: int) -> list[T]:
    """All cases in a full run; in CI so many of them, from all over the list, always the same; else ``few``."""
    if LEVEL == 0:
        return list(few)
    count = scaled(0, min(ci, len(cases)), len(cases))
    return [cases[(2 * number + 1) * len(cases) // (2 * count)] for number in range(count)]


@cache
def base_seed() -> int:
    """For random moments: of this run, unless one is asked for. Workers of one run share it."""
    if (wanted := os.environ.get(SEED_VARIABLE)) is not None:
        return int(wanted)
    # pytest-xdist names a run alike for all its workers: test names with a seed in them must be the same in each.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    return random.Random(run).randrange(10**6) if run is not None else random.SystemRandom().randrange(10**6)


def needed(tool: str) -> str:
    """The tool's path. Without it a test is skipped, saying so; where fault tests are asked for by name, it fails."""
    if (path := shutil.which(tool)) is not None:
        return path
    message = f"{tool} is not installed"
    if LEVEL:
        pytest.fail(message)
    pytest.skip(message)
