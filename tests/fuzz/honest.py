"""What an honest fleet would send: the requests that are then mutated."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from fuzz.wire import LENGTH, Field, Fields, text, whole

SECOND_NS = 10**9
GIB = 2**30
METHODS = ("SendMetricsBatch", "SendHeartbeat", "NotifyVmStarted", "NotifyVmStopped", "NotifyPossibleGap")
_WEIGHTS = (60, 8, 12, 10, 10)
# A mutated time can put a VM's newest sample at this very moment, and all its next ones are late then. So a fleet is
# given up after this many messages, and the next one is of VMs that nobody knows.
FLEET_MESSAGES = 4_096
FLEET_VMS = 64
# A VM's next message comes some minutes after the last: most steps are measured, some are gaps.
_BETWEEN_MESSAGES_NS = 4 * SECOND_NS
_FLEET_AGE_NS = 20 * 86_400 * SECOND_NS
# Of each fleet some VMs are old, with counters that 64 bits can hardly hold: their usage cannot always be added up.
_OLD_VMS = frozenset(range(4))
_OLD_START_NS = 10**17
_OLD_COUNTERS = (0, 1, 5, 2**63 - 1)


class Request(NamedTuple):
    method: str
    fields: Fields


class Moment(NamedTuple):
    """``number`` counts messages; ``epoch_ns`` is about when the run began."""

    number: int
    epoch_ns: int

    @property
    def fleet(self) -> int:
        return self.number // FLEET_MESSAGES

    @property
    def born_ns(self) -> int:
        """When the fleet's counters began."""
        return self.epoch_ns - _FLEET_AGE_NS

    @property
    def now_ns(self) -> int:
        return self.born_ns + self.number % FLEET_MESSAGES * _BETWEEN_MESSAGES_NS


def request(chance: Random, moment: Moment, method: str | None = None) -> Request:
    """One that would be taken, were its VM left alone; of any method, where none is named."""
    if method is None:
        (method,) = chance.choices(METHODS, _WEIGHTS)
    vm = chance.randrange(FLEET_VMS)
    vm_id, customer_id = f"vm-{moment.fleet}-{vm}", f"customer-{vm % 5 if chance.random() < 0.97 else 5}"
    t = moment.now_ns - (chance.randint(0, 3_600) * SECOND_NS if chance.random() < 0.1 else chance.randint(0, 999))
    if method == "SendMetricsBatch":
        samples = _samples(chance, moment, t, _OLD_COUNTERS if vm in _OLD_VMS else ())
        return Request(method, (text(1, vm_id), text(2, customer_id), *samples))
    if method == "SendHeartbeat":
        listed = [f"vm-{moment.fleet}-{chance.randrange(FLEET_VMS)}" for _ in range(chance.randrange(8))]
        return Request(method, (text(1, f"host-{vm % 8}"), *(text(2, listed_id) for listed_id in listed)))
    if method == "NotifyVmStarted":
        start_ns = _OLD_START_NS if vm in _OLD_VMS else t
        return Request(method, (text(1, vm_id), text(2, customer_id), whole(3, start_ns)))
    if method == "NotifyVmStopped":
        return Request(method, (text(1, vm_id), whole(2, t)))
    return Request(method, (text(1, vm_id), whole(2, t), whole(3, t + chance.randint(0, 600) * SECOND_NS)))


def _samples(chance: Random, moment: Moment, t: int, instead: tuple[int, ...]) -> list[Field]:
    count = chance.choice((1, 1, 1, 2, 3, 10)) if chance.random() < 0.9995 else chance.randint(100, 2_000)
    samples = []
    for _ in range(count):
        grown_ns = t - moment.born_ns if chance.random() < 0.98 else chance.randrange(SECOND_NS)
        grown = [chance.choice(instead) if instead else grown_ns // part for part in (1, 10, 20, 30, 40)]
        counters = (grown[0], 8 * GIB // chance.randint(1, 9), *grown[1:])
        samples.append(Field(3, LENGTH, (_timestamp(t), *map(whole, range(2, 8), counters))))
        t += chance.randint(1, 60) * SECOND_NS + chance.randint(0, 999)
    if chance.random() < 0.1:
        chance.shuffle(samples)
    return samples


def _timestamp(t: int) -> Field:
    seconds, nanos = divmod(t, SECOND_NS)
    return Field(1, LENGTH, (whole(1, seconds), whole(2, nanos)))
