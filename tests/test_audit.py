"""The audit log: who was denied what and why, in lines that no caller can forge or flood."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from billaged.model.time import NANOS
from billaged.telemetry.audit import Audit

REMOTE = "ipv4:192.0.2.1:41234"


class Told:
    """An audit log with a clock of its own, and what it says."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now_ns = 0
        self.audit = Audit(lambda: self.now_ns)
        self._caplog = caplog

    def lines(self) -> list[Any]:
        found = [record for record in self._caplog.records if record.name == "billaged.audit"]
        self._caplog.clear()
        return found


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    caplog.set_level(logging.INFO, "billaged.audit")
    return Told(caplog)


def test_a_denial_is_a_line(told: Told) -> None:
    told.audit.deny("forbidden", "spiffe://example.org/a", "SendHeartbeat", "no rule matches the identity", REMOTE)
    [line] = told.lines()
    assert (line.outcome, line.identity, line.method) == ("forbidden", "spiffe://example.org/a", "SendHeartbeat")
    assert (line.reason, line.remote) == ("no rule matches the identity", REMOTE)


def test_the_same_again_is_said_once_a_second_with_how_often(told: Told) -> None:
    for _ in range(1000):
        told.audit.deny("forbidden", "a", "SendHeartbeat", "why", REMOTE)
    told.audit.deny("forbidden", "b", "SendHeartbeat", "why", REMOTE)
    assert [(line.identity, hasattr(line, "repeated")) for line in told.lines()] == [("a", False), ("b", False)]
    told.now_ns = NANOS
    told.audit.deny("forbidden", "a", "SendHeartbeat", "why", REMOTE)
    [line] = told.lines()
    assert line.repeated == 999
    assert told.audit.denied == {"forbidden": 1002}, "each counts"


def test_nothing_a_caller_chooses_ends_a_line_or_fills_one(told: Told) -> None:
    told.audit.deny("forbidden", "a\nlevel=info\x1b[2J", "SendHeartbeat", "VM " + "x" * 10_000, REMOTE)
    [line] = told.lines()
    assert line.identity == "a?level=info?[2J"
    assert len(line.reason) == 255


def test_ten_thousand_different_denials_are_forgotten_again_but_not_uncounted(told: Told) -> None:
    for number in range(10_000):
        told.now_ns += NANOS // 1000
        told.audit.deny("forbidden", f"caller-{number}", "SendHeartbeat", "why", REMOTE)
        told.audit.deny("forbidden", f"caller-{number}", "SendHeartbeat", "why", REMOTE)
    lines = told.lines()
    said = sum(1 for line in lines if hasattr(line, "identity"))
    summed_up = sum(line.repeated for line in lines if not hasattr(line, "identity"))
    assert said == 10_000
    assert 0 < summed_up <= 10_000
    assert len(told.audit._said_ns) <= 4096 and len(told.audit._repeated) <= 4096
    assert told.audit.denied["forbidden"] == 20_000
