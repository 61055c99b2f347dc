"""An anomaly's detail for people: what the values are of, in their units."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from billaged.model.records import COUNTER_FIELDS
from billaged.reports.units import human_bytes, human_duration, human_instant, human_seconds

# As tables of usage call them.
_NAMES: Final = dict(zip(COUNTER_FIELDS, ("cpu", "read", "written", "received", "sent"), strict=True))


def detail_text(detail: str) -> str:
    """``memory 1.00 GiB, cpu 2,100.00 s``. What is none of the fold's is shown as it is: a report is no check."""
    try:
        parts = _parts(json.loads(detail))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return detail
    return ", ".join(parts)


def _parts(detail: Mapping[str, Any]) -> list[str]:
    parts = []
    for name, value in detail.items():
        if name == "values":
            memory_bytes, *counters = value
            parts += [f"memory {human_bytes(memory_bytes)}", *_amounts(counters)]
        elif name == "amounts":
            parts += _amounts(value)
        elif name == "counters":
            parts += [
                f"{_NAMES[counter]} {_text(counter, was)} to {_text(counter, is_now)}"
                for counter, (was, is_now) in value.items()
            ]
        elif name == "step_ns":
            parts.append(f"within {human_duration(value)}")
        elif name in ("end_ns", "sample_ns"):
            parts.append(f"{name.removesuffix('_ns')} at {human_instant(value)}")
        elif name == "customer_id" and value.isprintable():
            parts.append(f"customer {value}")
        else:
            raise KeyError(name)
    return parts


def _amounts(amounts: Sequence[int]) -> list[str]:
    """Those that are something: most VMs are read of one or two."""
    named = list(zip(COUNTER_FIELDS, amounts, strict=True))
    return [f"{_NAMES[name]} {_text(name, amount)}" for name, amount in named if amount]


def _text(counter: str, amount: int) -> str:
    return human_seconds(amount) if counter == "cpu_time_ns" else human_bytes(amount)
