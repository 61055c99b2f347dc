"""The load: hosts with several VMs each, over real connections, that send again until they are told yes."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Self

import grpc
from daemon_calls import BILLING, DEADLINE_SECONDS, SECOND, retry_delay_seconds, until
from daemon_process import DaemonProcess
from google.protobuf.message import Message

from billaged.wire.billing.v1 import billing_pb2 as pb
from faults.scale import SEED_VARIABLE, base_seed
from faults.settings import GAP_THRESHOLD_SECONDS

HOSTS: Final = 6
VMS_PER_HOST: Final = 3
COUNTERS: Final = 5
_FIRST_SAMPLE_AGE_NS: Final = 20 * 86_400 * SECOND
_PAUSE_SECONDS: Final = 0.02
# What may have been journaled, and may not.
_UNKNOWN: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


class Sent(NamedTuple):
    method: str
    payload: bytes


class Vm:
    """What a VM does and sends, one request after the other, and what it has used by then."""

    def __init__(self, vm_id: str, customer_id: str, chance: random.Random) -> None:
        self.vm_id, self.customer_id = vm_id, customer_id
        # Since its first boot: the sum of all steps of its counters, as far as ``life`` has been read.
        self.used = [0] * COUNTERS
        self.boots = 0
        self.running = False
        self._requests = self._life(chance)
        # What is not acknowledged yet, and the last that was.
        self.waiting: Sent | None = None
        self.last: Sent | None = None

    def next(self) -> Sent:
        """What it has to send now: the same again until that was acknowledged."""
        if self.waiting is None:
            method, message = next(self._requests)
            self.waiting = Sent(method, message.SerializeToString())
        return self.waiting

    def _life(self, chance: random.Random) -> Iterator[tuple[str, Message]]:
        """Boots, samples, stops, for ever. Counters begin at zero with each boot."""
        now_ns = time.time_ns() - _FIRST_SAMPLE_AGE_NS
        while True:
            self.boots, self.running = self.boots + 1, True
            yield (
                "NotifyVmStarted",
                pb.NotifyVmStartedRequest(vm_id=self.vm_id, customer_id=self.customer_id, start_time=now_ns),
            )
            counters = [0] * COUNTERS
            for number in range(chance.randint(5, 40)):
                request = pb.SendMetricsBatchRequest(vm_id=self.vm_id, customer_id=self.customer_id)
                for _ in range(chance.choice((1, 1, 2, 5))):
                    now_ns += chance.randint(1, 60) * SECOND + chance.randint(0, 999)
                    if number:
                        steps = [chance.randint(0, 10**9) for _ in range(COUNTERS)]
                        counters = [value + step for value, step in zip(counters, steps, strict=True)]
                        self.used = [value + step for value, step in zip(self.used, steps, strict=True)]
                    _add_sample(request, now_ns, counters, chance.randint(0, 2**33))
                yield "SendMetricsBatch", request
                if chance.random() < 0.05:
                    pause_ns = 2 * GAP_THRESHOLD_SECONDS * SECOND
                    yield (
                        "NotifyPossibleGap",
                        pb.NotifyPossibleGapRequest(vm_id=self.vm_id, last_sent=now_ns, resume_time=now_ns + pause_ns),
                    )
                    now_ns += pause_ns
            now_ns += chance.randint(1, 30) * SECOND
            self.running = False
            yield "NotifyVmStopped", pb.NotifyVmStoppedRequest(vm_id=self.vm_id, stop_time=now_ns)
            now_ns += chance.randint(1, 100) * SECOND


def _add_sample(request: pb.SendMetricsBatchRequest, now_ns: int, counters: list[int], memory_bytes: int) -> None:
    sample = request.metrics.add(
        cpu_time_nanos=counters[0],
        memory_usage_bytes=memory_bytes,
        disk_read_bytes=counters[1],
        disk_write_bytes=counters[2],
        network_rx_bytes=counters[3],
        network_tx_bytes=counters[4],
    )
    sample.timestamp.seconds, sample.timestamp.nanos = divmod(now_ns, SECOND)


class Fleet:
    """All hosts, over all lives of one data directory; ``under_load`` is one of them."""

    def __init__(self, seed: int, *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        # Shown where the test fails.
        print(f"all random choices again: {SEED_VARIABLE}={base_seed()}")
        self._chances = [random.Random(f"{seed} {host}") for host in range(HOSTS)]
        self._vms = [
            [
                Vm(f"vm-{host}-{number}", f"customer-{(host + number) % 3}", random.Random(f"{seed} {host} {number}"))
                for number in range(VMS_PER_HOST)
            ]
            for host in range(HOSTS)
        ]
        self._deadline_seconds = deadline_seconds
        # Guards what follows.
        self._lock = threading.Lock()
        self.acked: Counter[Sent] = Counter()
        # Sent, and no answer: may be in the journal.
        self.unknown: Counter[Sent] = Counter()
        # Refused for certain: is not in the journal on that account.
        self.refused: Counter[Sent] = Counter()
        self.statuses: Counter[str] = Counter()
        self._broken: list[BaseException] = []

    @property
    def vms(self) -> list[Vm]:
        return [vm for vms in self._vms for vm in vms]

    @contextmanager
    def under_load(self, daemon: DaemonProcess) -> Iterator[Self]:
        """All hosts send, until the body ends."""
        stop = threading.Event()
        with self._threads(daemon, stop, only_what_waits=False) as threads:
            try:
                yield self
            finally:
                stop.set()
                _join(threads)
        self._check()

    def settle(self, daemon: DaemonProcess) -> None:
        """Send again what was not acknowledged, until all is."""
        with self._threads(daemon, threading.Event(), only_what_waits=True) as threads:
            _join(threads)
        self._check()
        if any(vm.waiting is not None for vm in self.vms):
            raise AssertionError("not everything was acknowledged in the end")

    def until_acked(self, count: int, daemon: DaemonProcess | None = None) -> None:
        """Wait for so many acknowledgements more; for none where the daemon has ended."""
        target = self.acked.total() + count
        until(lambda: self._total() >= target or self._broken or (daemon and daemon.ended()), f"{count} acks")
        self._check()

    def _total(self) -> int:
        with self._lock:
            return self.acked.total()

    def _check(self) -> None:
        if self._broken:
            raise AssertionError("a host broke") from self._broken[0]

    @contextmanager
    def _threads(
        self, daemon: DaemonProcess, stop: threading.Event, *, only_what_waits: bool
    ) -> Iterator[list[threading.Thread]]:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        # A daemon that comes back is found again at once.
        options += [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        channels = [grpc.insecure_channel(daemon.grpc_address, options) for _ in range(2)]
        threads = [
            threading.Thread(
                target=self._host,
                args=(host, channels[host % len(channels)], stop),
                kwargs={"only_what_waits": only_what_waits},
            )
            for host in range(HOSTS)
        ]
        for thread in threads:
            thread.start()
        try:
            yield threads
        finally:
            for channel in channels:
                channel.close()

    def _host(self, host: int, channel: grpc.Channel, stop: threading.Event, *, only_what_waits: bool) -> None:
        chance, vms = self._chances[host], self._vms[host]
        try:
            if only_what_waits:
                self._send_what_waits(channel, vms)
                return
            while not stop.is_set():
                vm = chance.choice(vms)
                pause = self._send_one(channel, vm, chance)
                if chance.random() < 0.05:
                    # Listing them all: no VM of this fleet ever vanishes.
                    beat = pb.SendHeartbeatRequest(instance_id=f"host-{host}", active_vms=[vm.vm_id for vm in vms])
                    self._send(channel, Sent("SendHeartbeat", beat.SerializeToString()))
                if pause:
                    stop.wait(pause)
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self._broken.append(error)

    def _send_what_waits(self, channel: grpc.Channel, vms: list[Vm]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        pause = threading.Event()
        for vm in vms:
            while vm.waiting is not None and time.monotonic() < deadline:
                if self._send(channel, vm.waiting):
                    vm.last, vm.waiting = vm.waiting, None
                else:
                    pause.wait(_PAUSE_SECONDS)

    def _send_one(self, channel: grpc.Channel, vm: Vm, chance: random.Random) -> float:
        """The VM's next request, or now and then one that was acknowledged before; seconds to wait after it."""
        if vm.last is not None and chance.random() < 0.08:
            self._send(channel, vm.last)
        if not self._send(channel, vm.next()):
            return _PAUSE_SECONDS
        vm.last, vm.waiting = vm.waiting, None
        return 0.0

    def _send(self, channel: grpc.Channel, sent: Sent) -> bool:
        """Whether it was acknowledged. Raises grpc.RpcError for what no fault explains."""
        call = channel.unary_unary(
            f"/{BILLING}/{sent.method}", response_deserializer=getattr(pb, f"{sent.method}Response").FromString
        )
        try:
            response: Any = call(sent.payload, timeout=self._deadline_seconds)
        except grpc.RpcError as error:
            return self._not_acknowledged(sent, error)
        if not response.success:
            raise AssertionError(f"{sent.method} was answered {response!r}")
        with self._lock:
            self.acked[sent] += 1
            self.statuses["OK"] += 1
        return True

    def _not_acknowledged(self, sent: Sent, error: Any) -> bool:
        code = error.code()
        with self._lock:
            self.statuses[code.name] += 1
            if code in _UNKNOWN:
                self.unknown[sent] += 1
            elif code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_delay_seconds(error) is not None:
                self.refused[sent] += 1
            else:
                raise error
        return False


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(2 * DEADLINE_SECONDS)
        if thread.is_alive():
            raise AssertionError("a host does not end")
