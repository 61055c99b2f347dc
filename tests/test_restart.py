"""The first promise, on a real process: what was acknowledged survives ``kill -9`` and is billed once.

Sixteen hosts push to a daemon that is killed twenty times under their load. As real agents do, they
resend what was not acknowledged. In the end the ledger must be what was sent, each of it once.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import grpc
import grpc.aio
import pytest
from auditor.bill import Bill
from auditor.biller import bill
from auditor.convert import to_events, to_what
from auditor.events import Event, Rules
from daemon_calls import DEADLINE_SECONDS, GIB, SECOND
from daemon_process import DaemonProcess
from google.protobuf.message import Message

from billaged.intake.journal import JournalRow, entry_of
from billaged.model.records import Kind
from billaged.reports.replay import replay
from billaged.wire.billing.v1 import billing_pb2 as pb
from billaged.wire.codec import decode

KILLS = 20
HOSTS = 16
# So that usage of many hours fits in before now.
FIRST_SAMPLE_AGE_NS = 20 * 86_400 * SECOND
# Some steps are longer than this: gaps are billed over kills, too.
GAP_THRESHOLD_SECONDS = 120
SETTINGS = {
    "AGGREGATION_INTERVAL": "1s",
    "GAP_THRESHOLD": f"{GAP_THRESHOLD_SECONDS}s",
    "LEDGER_BUCKET": "5m",
    # Long enough that a kill finds acknowledged usage that is not in the ledger yet.
    "LEDGER_FLUSH_INTERVAL": "200ms",
    "SUMMARY_LOG": "off",
}
KINDS = {
    "SendMetricsBatch": Kind.METRICS,
    "SendHeartbeat": Kind.HEARTBEAT,
    "NotifyVmStarted": Kind.STARTED,
    "NotifyVmStopped": Kind.STOPPED,
    "NotifyPossibleGap": Kind.POSSIBLE_GAP,
}

Sent = tuple[str, bytes]


class Host:
    """One VM and its sender: a request at a time, the same one again until it is acknowledged."""

    def __init__(self, number: int, on_ack: Callable[[], None]) -> None:
        self.vm_id, self.customer_id = f"vm-{number}", f"customer-{number % 3}"
        self._on_ack = on_ack
        self._requests = self._life(random.Random(number))
        self.waiting: Sent | None = None
        self.acked: list[Sent] = []
        self.resent = 0

    def _life(self, chance: random.Random) -> Iterator[tuple[str, Message]]:
        """Boots, samples, stops, for ever. Counters begin again with each boot."""
        now_ns = time.time_ns() - FIRST_SAMPLE_AGE_NS
        while True:
            yield (
                "NotifyVmStarted",
                pb.NotifyVmStartedRequest(vm_id=self.vm_id, customer_id=self.customer_id, start_time=now_ns),
            )
            counters = [0] * 5
            for _ in range(chance.randint(5, 40)):
                request = pb.SendMetricsBatchRequest(vm_id=self.vm_id, customer_id=self.customer_id)
                for _ in range(chance.choice((1, 1, 2, 5))):
                    now_ns += chance.randint(1, 60) * SECOND + chance.randint(0, 999)
                    counters = [value + chance.randint(0, 10**9) for value in counters]
                    metrics = request.metrics.add(
                        cpu_time_nanos=counters[0],
                        memory_usage_bytes=chance.randint(0, 8 * GIB),
                        disk_read_bytes=counters[1],
                        disk_write_bytes=counters[2],
                        network_rx_bytes=counters[3],
                        network_tx_bytes=counters[4],
                    )
                    metrics.timestamp.seconds, metrics.timestamp.nanos = divmod(now_ns, SECOND)
                yield "SendMetricsBatch", request
                if chance.random() < 0.1:
                    yield (
                        "SendHeartbeat",
                        pb.SendHeartbeatRequest(instance_id=f"host-{self.vm_id}", active_vms=[self.vm_id]),
                    )
                if chance.random() < 0.05:
                    pause_ns = 2 * GAP_THRESHOLD_SECONDS * SECOND
                    yield (
                        "NotifyPossibleGap",
                        pb.NotifyPossibleGapRequest(vm_id=self.vm_id, last_sent=now_ns, resume_time=now_ns + pause_ns),
                    )
                    now_ns += pause_ns
            now_ns += chance.randint(0, 30) * SECOND
            yield "NotifyVmStopped", pb.NotifyVmStoppedRequest(vm_id=self.vm_id, stop_time=now_ns)
            now_ns += chance.randint(0, 100) * SECOND

    async def push(self, channel: grpc.aio.Channel, *, only_what_waits: bool = False) -> None:
        """Send until the daemon is gone."""
        if self.waiting is not None:
            self.resent += 1
        while True:
            if self.waiting is None:
                if only_what_waits:
                    return
                method, request = next(self._requests)
                self.waiting = method, request.SerializeToString()
            send = channel.unary_unary(f"/billing.v1.BillingService/{self.waiting[0]}")
            try:
                await send(self.waiting[1], timeout=DEADLINE_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return
            self.acked.append(self.waiting)
            self.waiting = None
            self._on_ack()


async def push_all(daemon: DaemonProcess, hosts: list[Host], *, only_what_waits: bool = False) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(daemon.grpc_address, options) as channel:
        await asyncio.gather(*(host.push(channel, only_what_waits=only_what_waits) for host in hosts))


class Executioner:
    """Kills the daemon in the middle of its work: right at the ack that its number is on."""

    def __init__(self) -> None:
        self.daemon: DaemonProcess | None = None
        self.acks_left = 0

    def acked(self) -> None:
        self.acks_left -= 1
        if self.acks_left == 0 and self.daemon is not None:
            self.daemon.send_signal(9)


def journal_rows(data_dir: Path) -> list[JournalRow]:
    with closing(sqlite3.connect(data_dir / "journal.db")) as connection:
        query = "SELECT sequence, kind, received_ns, caller, payload FROM journal ORDER BY sequence"
        return [JournalRow(*row) for row in connection.execute(query)]


def billed(tables: Bill) -> tuple[list[tuple], list[tuple]]:
    """Sessions and gaps without journal numbers: what a customer pays for."""
    return tables.tables["sessions"], [row[:-1] for row in tables.tables["gaps"]]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nothing_acknowledged_is_lost_or_billed_twice_over_twenty_kills(tmp_path: Path) -> None:
    data_dir = tmp_path / "var"
    chance = random.Random(20)
    executioner = Executioner()
    hosts = [Host(number, executioner.acked) for number in range(HOSTS)]
    replayed = []
    for _ in range(KILLS):
        with DaemonProcess(data_dir, SETTINGS) as daemon:
            executioner.daemon, executioner.acks_left = daemon, chance.randint(1, 250)
            asyncio.run(push_all(daemon, hosts))
            assert daemon.wait() == -9
            assert daemon.other_output == ""
            replayed += [line["replayed"] for line in daemon.log if "replayed" in line]
    with DaemonProcess(data_dir, SETTINGS) as daemon:
        executioner.daemon = None
        asyncio.run(push_all(daemon, hosts, only_what_waits=True))
        assert daemon.stop() == 0
        ledger = Bill(daemon.ledger())

    # The kills hit what they were meant to hit.
    assert len(replayed) == KILLS
    assert sum(count > 0 for count in replayed) > KILLS // 2
    assert sum(host.resent for host in hosts) > KILLS

    # Nothing lost: each acknowledged request is in the journal, and there is nothing that nobody sent.
    rows = journal_rows(data_dir)
    assert [row.sequence for row in rows] == list(range(1, len(rows) + 1))
    acked = Counter((KINDS[method], payload) for host in hosts for method, payload in host.acked)
    journaled = Counter((row.kind, row.payload) for row in rows if row.kind < Kind.TICK)
    assert acked - journaled == Counter()
    assert set(journaled) == set(acked)
    # Some were journaled, but their ack was lost with the process: sent again, so there twice.
    assert journaled.total() > acked.total()

    # Nothing billed twice, read from the journal: the auditor's bill of it is the ledger.
    audited = bill(to_events(map(entry_of, rows)))
    audited.check()
    assert audited.differences(ledger.tables) == []
    assert ledger.tables["gaps"]
    assert not ledger.tables["dead_letters"]

    # Nothing billed twice, read from the senders: each request once, as if nothing had ever gone wrong.
    once = [decode(KINDS[method], payload) for host in hosts for method, payload in host.acked]
    rules = Rules(gap_threshold_ns=GAP_THRESHOLD_SECONDS * SECOND, bucket_ns=300 * SECOND)
    whats = [rules, *map(to_what, once)]
    undisturbed = bill(Event(sequence, 0, "", what) for sequence, what in enumerate(whats, 1))
    assert billed(ledger) == billed(undisturbed)

    # And the daemon's own fold of its journal, from the beginning, gives the same.
    assert replay(data_dir, None, lambda done, total: None).equal


def test_a_stop_and_a_start_replay_nothing(tmp_path: Path) -> None:
    """An orderly stop leaves no work behind."""
    executioner = Executioner()
    hosts = [Host(number, executioner.acked) for number in range(4)]
    with DaemonProcess(tmp_path / "var", SETTINGS) as daemon:
        executioner.daemon, executioner.acks_left = None, 0
        for host in hosts:
            host.waiting = "SendHeartbeat", pb.SendHeartbeatRequest(instance_id=host.vm_id).SerializeToString()
        asyncio.run(push_all(daemon, hosts, only_what_waits=True))
        assert daemon.stop() == 0
    with DaemonProcess(tmp_path / "var", SETTINGS) as daemon:
        (line,) = [line for line in daemon.log if line["message"] == "ledger is up to date"]
        assert line["replayed"] == 0
        assert daemon.stop() == 0
        assert len(daemon.ledger()["instances"]) == 4
