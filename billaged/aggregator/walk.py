"""The walk over one instant: from how things stood before it to how they stand after, and what it bills.

Pure, over plain integers: one method for each row of the first table in docs/billing-semantics.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from billaged.aggregator.billed import CONTRADICTED, OUT_OF_LINE, PASSED, Billed, Found, Left, Opened
from billaged.aggregator.effects import NO_AMOUNTS
from billaged.aggregator.instant import Instant
from billaged.aggregator.state import ENDED, NONE, RUNNING, State
from billaged.aggregator.steps import baseline_marks, plausible, step_of
from billaged.model.records import FoldRules


def walk(state: State, instant: Instant, rules: int, book: Sequence[FoldRules]) -> tuple[State, Billed]:
    """Over all points of an instant. ``rules`` is the number in ``book`` of those of the link into it."""
    billed = Billed()
    stop_first = instant.has_start and instant.has_stop and state.phase == RUNNING
    if stop_first:
        state = _stop(state, instant, rules, book, billed)
    if instant.has_start:
        state = _start(state, instant, billed)
    if instant.sample is not None:
        state = _sample(state, instant, rules, book, billed)
    if instant.has_stop and not stop_first:
        state = _stop(state, instant, rules, book, billed)
    return state, billed


def _start(state: State, instant: Instant, billed: Billed) -> State:
    time_ns, ordinal, last_ns = instant.time_ns, state.ordinal, state.last_ns
    if state.phase == RUNNING:
        billed.found.append(Found("missed_stop", time_ns, ordinal, {"end_ns": last_ns}))
        billed.left.append(Left(ordinal, last_ns, last_ns, "missed_stop"))
    elif state.phase == ENDED:
        billed.left.append(Left(ordinal, last_ns, state.end_ns, "stop"))
    billed.opened.append(Opened(instant.opens, time_ns, explicit=True))
    return State(RUNNING, instant.opens, last_ns=time_ns, last=state.last, marks=state.marks)


def _sample(state: State, instant: Instant, number: int, book: Sequence[FoldRules], billed: Billed) -> State:
    time_ns, rules = instant.time_ns, book[number]
    if instant.sample is None:
        raise ValueError("an instant without a sample")
    memory_bytes, *counters = instant.sample
    values, ordinal = tuple(counters), state.ordinal
    if state.phase == NONE:
        ordinal = instant.opens
        billed.opened.append(Opened(ordinal, time_ns, explicit=False))
        marks = baseline_marks(state.last, state.marks, values)
    else:
        if state.phase == ENDED:
            tail_rules = book[state.tail_rules]
            billed.take_tail_back(ordinal, state.last_ns, state.end_ns, state.memory_bytes, tail_rules)
            billed.found.append(Found("contradicted_stop", state.end_ns, ordinal, {"sample_ns": time_ns}))
            billed.notable |= CONTRADICTED
        is_first = not state.has_samples
        amounts, marks, decreased, has_passed = step_of(state.last, state.marks, values, is_first=is_first)
        if decreased:
            billed.found.append(Found("counter_reset", time_ns, ordinal, {"counters": decreased}))
        billed.notable |= OUT_OF_LINE * bool(decreased) | PASSED * has_passed
        step_ns = time_ns - state.last_ns
        if not plausible(amounts, step_ns, rules):
            detail = {"amounts": list(amounts), "step_ns": step_ns}
            billed.found.append(Found("implausible", time_ns, ordinal, detail))
            billed.notable |= OUT_OF_LINE
            amounts = NO_AMOUNTS
        kind = "start" if is_first else "step"
        billed.span(ordinal, state.last_ns, time_ns, amounts, state.memory_bytes, kind, rules)
    billed.count(ordinal, time_ns, memory_bytes, rules.bucket_ns)
    return State(RUNNING, ordinal, True, time_ns, memory_bytes, 0, 0, values, marks)  # type: ignore[arg-type]


def _stop(state: State, instant: Instant, rules: int, book: Sequence[FoldRules], billed: Billed) -> State:
    time_ns = instant.time_ns
    if state.phase == NONE:
        billed.found.append(Found("unknown_stop", time_ns, 0, {}))
        return state
    if state.phase == ENDED:
        billed.found.append(Found("extra_stop", time_ns, state.ordinal, {"end_ns": state.end_ns}))
        return state
    billed.span(state.ordinal, state.last_ns, time_ns, NO_AMOUNTS, state.memory_bytes, "stop", book[rules])
    return state._replace(phase=ENDED, end_ns=time_ns, tail_rules=rules)
