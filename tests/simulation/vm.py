"""A VM as it truly is: what it uses, from boot to boot."""

from __future__ import annotations

from random import Random

from auditor.events import SECOND_NS, Sample

from simulation.truth import Stream, Truth

GIB = 2**30


class Vm:
    """Used by one host at a time, but for a live migration. Times given are true ones, nanoseconds."""

    def __init__(self, vm_id: str, customer_id: str, chance: Random, truth: Truth) -> None:
        self.vm_id = vm_id
        self.customer_id = customer_id
        self._chance = chance
        self._truth = truth
        self._steady_memory = chance.random() < 0.5
        self._memory_bytes = chance.randint(0, 64 * GIB)
        self._counters = [0] * 5
        self._rates = [0] * 5
        self._used_until_ns = 0

    def boot(self, now_ns: int) -> Stream:
        """Counters from zero."""
        self._counters = [0] * 5
        self._used_until_ns = now_ns
        self._change_load()
        return self._truth.begin(self.vm_id)

    def carry_on(self, now_ns: int, before: Stream) -> Stream:
        """On another host, with the counters of the one before."""
        self._use(now_ns)
        return self._truth.carry_on(self.vm_id, before, tuple(self._counters))

    def sample(self, now_ns: int, label_ns: int, stream: Stream) -> Sample:
        """What is measured now, with the time that the host's clock shows."""
        self._use(now_ns)
        if self._chance.random() < 0.1:
            self._change_load()
        sample = Sample(label_ns, self._memory_bytes, *self._counters)
        self._truth.sampled(self.vm_id, stream, sample)
        return sample

    def failed_read(self, label_ns: int) -> Sample:
        """All zeros, as an agent gives it that could not read."""
        sample = Sample(label_ns, 0, 0, 0, 0, 0, 0)
        self._truth.failed_read(self.vm_id, sample)
        return sample

    def handed_to(self, customer_id: str) -> Vm:
        """The same name with another customer; what is still on its way keeps the old one."""
        return Vm(self.vm_id, customer_id, self._chance, self._truth)

    def _use(self, now_ns: int) -> None:
        passed_ns = now_ns - self._used_until_ns
        self._used_until_ns = now_ns
        for index, rate in enumerate(self._rates):
            self._counters[index] += rate * passed_ns // SECOND_NS

    def _change_load(self) -> None:
        """CPU in ns a second, the others in bytes a second."""
        chance = self._chance
        cores = chance.choice((0, 0, 1, 8))
        self._rates = [
            int(cores * chance.random() * SECOND_NS),
            *(chance.choice((0, 1, 10**4, 10**8)) * chance.randint(0, 5) for _ in range(4)),
        ]
        if not self._steady_memory:
            self._memory_bytes = chance.randint(0, 64 * GIB)
