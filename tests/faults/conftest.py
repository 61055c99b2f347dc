"""Leaves out, where only a few faults are asked for, what else would be a list of skipped tests in each run."""

from __future__ import annotations

import pytest

from faults.scale import LEVEL


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if LEVEL:
        return
    left_out = [item for item in items if item.get_closest_marker("more_faults")]
    if left_out:
        items[:] = [item for item in items if item not in set(left_out)]
        config.hook.pytest_deselected(items=left_out)
