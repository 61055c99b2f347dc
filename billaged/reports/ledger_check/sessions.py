"""A VM's sessions and gaps, held against each other: lifetimes, order, overlaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from itertools import pairwise
from typing import Final

from billaged.model.quantity import REST_PER_MIB_SECOND
from billaged.model.records import COUNTER_FIELDS
from billaged.reports.ledger_check import invariants as law
from billaged.reports.ledger_check import words
from billaged.reports.ledger_check.findings import Findings, Key
from billaged.reports.ledger_check.rows import GapRow, SessionRow

_AMOUNTS: Final = (*COUNTER_FIELDS, "memory_mib_seconds", "measured_ns", "gap_ns", "samples", "memory_peak_bytes")


def key_of(row: SessionRow | GapRow) -> Key:
    key: Key = {"vm_id": row.vm_id, "ordinal": row.ordinal}
    return key | {"start_ns": row.start_ns} if isinstance(row, GapRow) else key


def check_vm(
    sessions: Sequence[SessionRow], gaps: Sequence[GapRow], damaged: Set[int], position: int, findings: Findings
) -> None:
    """All of a VM's sessions, in the order of time, and its gaps, by session in the order of time.

    ``damaged`` are the ordinals of sessions that are there beside these, but say nothing.
    """
    findings.hold(len(sessions), law.VALUES, law.LIFETIME, law.ORDER, law.OVERLAP, law.SUMS, law.MEMORY)
    findings.hold(len(gaps), law.VALUES, law.OVERLAP, law.STOP, law.OWNER, law.REFERENCES)
    gap_ns: Counter[int] = Counter()
    for gap in gaps:
        gap_ns[gap.ordinal] += gap.end_ns - gap.start_ns
    for session in sessions:
        _check_values(session, findings)
        _check_life(session, findings)
        if session.gap_ns != gap_ns[session.ordinal]:
            problem = f"gap_ns is {session.gap_ns}, but its gaps sum to {gap_ns[session.ordinal]}"
            findings.broke(law.SUMS, "sessions", key_of(session), problem)
    _check_follow(sessions, findings)
    if not damaged:
        _check_numbers(sessions, findings)
    by_ordinal = {session.ordinal: session for session in sessions}
    for gap in gaps:
        if gap.ordinal not in damaged:
            _check_gap(gap, by_ordinal.get(gap.ordinal), position, findings)
    for before, after in pairwise(gaps):
        if before.ordinal == after.ordinal and after.start_ns < before.end_ns:
            problem = f"it starts before the gap from {before.start_ns} ends, at {before.end_ns}"
            findings.broke(law.OVERLAP, "gaps", key_of(after), problem)


def _check_values(session: SessionRow, findings: Findings) -> None:
    problems = [
        f"{name} is {getattr(session, name)}" for name in ("explicit", "newest") if getattr(session, name) not in (0, 1)
    ]
    problems += [f"{name} is negative: {getattr(session, name)}" for name in _AMOUNTS if getattr(session, name) < 0]
    if not 0 <= session.memory_rest_byte_nanos < REST_PER_MIB_SECOND:
        problems.append(f"memory_rest_byte_nanos is {session.memory_rest_byte_nanos}")
    if session.end_kind is not None and session.end_kind not in words.END_KINDS:
        problems.append(f"end_kind is {session.end_kind!r}")
    if not session.explicit and not session.samples:
        problems.append("it has neither a start that was told nor a sample")
    for problem in problems:
        findings.broke(law.VALUES, "sessions", key_of(session), problem)


def _check_life(session: SessionRow, findings: Findings) -> None:
    key, life_ns = key_of(session), session.until_ns - session.start_ns
    if session.measured_ns + session.gap_ns != life_ns:
        problem = f"measured {session.measured_ns} + gap {session.gap_ns} ns are not its life of {life_ns} ns"
        findings.broke(law.LIFETIME, "sessions", key, problem)
    if not session.start_ns <= session.last_ns <= session.until_ns:
        problem = f"start {session.start_ns}, newest sample {session.last_ns}, end {session.end_ns} are out of order"
        findings.broke(law.ORDER, "sessions", key, problem)
    if (session.end_ns is None) != (session.end_kind is None):
        findings.broke(law.ORDER, "sessions", key, f"its end is {session.end_ns}, of kind {session.end_kind}")
    if session.end_kind in ("missed_stop", "vanished") and session.end_ns not in (None, session.last_ns):
        problem = f"it ended as {session.end_kind} at {session.end_ns}, not at its newest sample, {session.last_ns}"
        findings.broke(law.ORDER, "sessions", key, problem)
    if not session.samples and session.last_ns != session.start_ns:
        problem = f"it has no sample, but a newest one at {session.last_ns}"
        findings.broke(law.ORDER, "sessions", key, problem)
    most = session.memory_peak_bytes * session.measured_ns
    if session.memory_byte_nanos > most:
        problem = f"memory x time {session.memory_byte_nanos} byte-ns is more than peak x measured, {most}"
        findings.broke(law.MEMORY, "sessions", key, problem)


def _check_follow(sessions: Sequence[SessionRow], findings: Findings) -> None:
    for before, after in pairwise(sessions):
        if before.end_ns is None:
            problem = f"it runs, though session {after.ordinal} starts later, at {after.start_ns}"
            findings.broke(law.ORDER, "sessions", key_of(before), problem)
        if before.until_ns > after.start_ns:
            problem = f"it starts at {after.start_ns}, before session {before.ordinal} is over, at {before.until_ns}"
            findings.broke(law.OVERLAP, "sessions", key_of(after), problem)


def _check_numbers(sessions: Sequence[SessionRow], findings: Findings) -> None:
    for number, session in enumerate(sorted(sessions, key=lambda session: session.ordinal), 1):
        if session.ordinal != number:
            problem = f"of {len(sessions)} sessions it has the number {session.ordinal}, but not {number}"
            findings.broke(law.ORDER, "sessions", key_of(session), f"{problem} has one")
            break
    newest = [session for session in sessions if session.newest]
    if len(newest) != 1:
        named = ", ".join(str(session.ordinal) for session in newest) or "none"
        findings.broke(law.ORDER, "sessions", key_of(sessions[-1]), f"the VM's newest is to be one, but is {named}")
    elif (newest[0].start_ns, newest[0].until_ns) < (sessions[-1].start_ns, sessions[-1].until_ns):
        problem = f"it is the newest, though session {sessions[-1].ordinal} is later"
        findings.broke(law.ORDER, "sessions", key_of(newest[0]), problem)


def _check_gap(gap: GapRow, session: SessionRow | None, position: int, findings: Findings) -> None:
    key = key_of(gap)
    if gap.kind not in words.GAP_KINDS:
        findings.broke(law.VALUES, "gaps", key, f"kind is {gap.kind!r}")
    for name in COUNTER_FIELDS:
        if getattr(gap, name) < 0:
            findings.broke(law.VALUES, "gaps", key, f"{name} is negative: {getattr(gap, name)}")
    if gap.kind == "stop" and any(getattr(gap, name) for name in COUNTER_FIELDS):
        findings.broke(law.VALUES, "gaps", key, "it is one to a stop, but has counters")
    if not 1 <= gap.sequence <= position:
        problem = f"it names journal row {gap.sequence}, but the ledger has come to {position}"
        findings.broke(law.REFERENCES, "gaps", key, problem)
    if gap.start_ns >= gap.end_ns:
        findings.broke(law.OVERLAP, "gaps", key, f"it ends at {gap.end_ns}, no later than it starts")
    if session is None:
        findings.broke(law.REFERENCES, "gaps", key, "there is no such session")
        return
    if gap.start_ns < session.start_ns or gap.end_ns > session.until_ns:
        problem = f"to {gap.end_ns} it is not inside its session's life from {session.start_ns} to {session.until_ns}"
        findings.broke(law.STOP, "gaps", key, problem)
    place = {"start": (gap.start_ns, session.start_ns), "stop": (gap.end_ns, session.end_ns)}.get(gap.kind)
    if place is not None and place[0] != place[1]:
        problem = f"it is one of kind {gap.kind} with {place[0]} in it, but its session's {gap.kind} is at {place[1]}"
        findings.broke(law.VALUES, "gaps", key, problem)
    if gap.customer_id != session.customer_id:
        problem = f"its customer is {gap.customer_id}, its session's {session.customer_id}"
        findings.broke(law.OWNER, "gaps", key, problem)
