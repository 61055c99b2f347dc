"""What lies between a host and billaged: it delays, repeats and loses, and the sender tries again, or does not."""

from __future__ import annotations

from collections import Counter, deque
from enum import Enum, auto
from random import Random
from typing import Protocol

from auditor.events import MINUTE_NS, SECOND_NS, Batch, What

from simulation.agenda import Agenda
from simulation.plan import Plan

_TIMEOUT_NS = 10 * SECOND_NS
_BACKOFF_MAX_NS = 10 * MINUTE_NS


class Answer(Enum):
    # Durable.
    TAKEN = auto()
    # Never send it again.
    REFUSED = auto()
    # Nobody there, or not now.
    AWAY = auto()


class Answered(Protocol):
    def __call__(self, answer: Answer) -> None: ...


class Door(Protocol):
    """billaged as its callers see it."""

    def take(self, what: What, caller: str, answered: Answered) -> None: ...


class Line:
    """One sender's way to billaged: a spool, and as many requests at once as it has lanes."""

    def __init__(
        self, plan: Plan, chance: Random, agenda: Agenda, door: Door, caller: str, *, lanes: int, retries: bool
    ) -> None:
        self._plan, self._chance, self._agenda, self._door, self._caller = plan, chance, agenda, door, caller
        self._lanes, self._retries = lanes, retries
        self._spool: deque[What] = deque()
        # What is on its way, by number.
        self._sent: dict[int, What] = {}
        self._number = 0
        self._backoff_ns = SECOND_NS
        self.seen: Counter[str] = Counter()

    def send(self, what: What) -> None:
        self._spool.append(what)
        self._pump()

    def crash(self, *, keeps: bool) -> None:
        """The sender is gone. What it had not heard of is sent again where it was on disk, else nobody knows."""
        left = [*self._sent.values(), *self._spool] if keeps else []
        self.seen["lost with their host"] += 0 if keeps else len(self._sent) + len(self._spool)
        self._sent.clear()
        self._spool = deque(left)

    def resume(self) -> None:
        self._pump()

    def _pump(self) -> None:
        while self._spool and len(self._sent) < self._lanes:
            what = self._spool.popleft()
            self._number += 1
            self._sent[self._number] = what
            self._attempt(self._number, what)

    def _attempt(self, number: int, what: What) -> None:
        chance, plan = self._chance, self._plan
        self.seen["sent"] += 1
        delay_ns = chance.randint(1, plan.latency_max_ns)
        if chance.random() < plan.replayed:
            self.seen["repeated on the way"] += 1
            late_ns = chance.randint(1, plan.replayed_after_max_ns)
            self._agenda.after(late_ns, lambda: self._door.take(what, self._caller, _nobody))
        if chance.random() < plan.lost_requests:
            self._agenda.after(_TIMEOUT_NS, lambda: self._over(number, Answer.AWAY))
        else:
            self._agenda.after(
                delay_ns, lambda: self._door.take(what, self._caller, lambda answer: self._answered(number, answer))
            )

    def _answered(self, number: int, answer: Answer) -> None:
        if answer is Answer.TAKEN and self._chance.random() < self._plan.lost_answers:
            self._agenda.after(_TIMEOUT_NS, lambda: self._over(number, Answer.AWAY))
        else:
            self._over(number, answer)

    def _over(self, number: int, answer: Answer) -> None:
        what = self._sent.pop(number, None)
        if what is None:
            # Of before a crash.
            return
        if answer is Answer.AWAY and self._retries:
            self.seen["tried again"] += 1
            # The place in the lanes is free meanwhile: with several, what comes later may overtake.
            self._backoff_ns = min(self._backoff_ns * 2, _BACKOFF_MAX_NS)
            if self._lanes == 1:
                self._spool.extendleft(reversed(self._packed_anew(what)))
            else:
                self._spool.extend(self._packed_anew(what))
            self._agenda.after(self._backoff_ns, self._pump)
            return
        if answer is Answer.TAKEN:
            self._backoff_ns = SECOND_NS
        else:
            self.seen["given up"] += 1
        self._pump()

    def _packed_anew(self, what: What) -> list[What]:
        """A batch may be cut, or put together with the next, when it is sent again."""
        if not isinstance(what, Batch) or self._chance.random() < 0.7:
            return [what]
        rows = list(what.samples)
        after = self._spool[0] if self._spool else None
        if isinstance(after, Batch) and after[:2] == what[:2]:
            self._spool.popleft()
            return [what._replace(samples=[*rows, *after.samples])]
        cut = self._chance.randint(0, len(rows))
        return [what._replace(samples=part) for part in (rows[:cut], rows[cut:]) if part]


def _nobody(answer: Answer) -> None:
    """Whoever repeated it does not listen."""
