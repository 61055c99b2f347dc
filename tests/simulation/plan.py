"""What kind of world a seed makes: how large, how long, and how bad."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from auditor.events import HOUR_NS, MINUTE_NS, SECOND_NS

DAY_NS = 24 * HOUR_NS
_SAMPLES = 3_500


@dataclass(frozen=True)
class Plan:
    """Chances are of one message or one life; ``*_hours`` are the mean time between two of them, 0 for never."""

    seed: int
    length_ns: int
    hosts: int
    vms: int
    customers: int
    sample_ns: int
    batch_samples_max: int
    heartbeat_ns: int
    tick_ns: int
    ticks_per_interval: int
    # Clocks of hosts are off by at most this; VMs that start again elsewhere take longer.
    skew_max_ns: int
    coarse_clocks: bool
    clock_steps_hours: float
    daemon_clock_steps_hours: float
    # The network.
    latency_max_ns: int
    lost_requests: float
    lost_answers: float
    replayed: float
    replayed_after_max_ns: int
    lanes: int
    retries: bool
    # Starts, stops and heartbeats that never come, and starts and stops that come long after.
    lost_notices: float
    slow_notices: float
    slow_notice_max_ns: int
    # Lives of VMs and hosts.
    life_mean_ns: int
    unannounced: float
    live_migrations: float
    takeovers: float
    failed_reads: float
    host_crash_hours: float
    spool_on_disk: bool
    # billaged.
    restart_hours: float
    downtime_max_ns: int
    rules_change: float
    ended_kept: int

    @property
    def customer_ids(self) -> list[str]:
        return [f"customer-{number}" for number in range(1, self.customers + 1)]

    @property
    def aftermath_ns(self) -> int:
        """How long after the days something may still be on its way."""
        repeated_ns = self.replayed_after_max_ns if self.replayed else 0
        slow_ns = self.slow_notice_max_ns if self.slow_notices else 0
        return max(repeated_ns, slow_ns) + self.downtime_max_ns + HOUR_NS


def plan_of(seed: int) -> Plan:
    chance = Random(seed)
    pick = chance.choice
    # Most worlds are nearly sane, so that the truth can judge them; one in four has clocks that nobody can believe.
    wild = chance.random() < 0.25
    sample_ns = pick((MINUTE_NS, 2 * MINUTE_NS, 3 * MINUTE_NS, 5 * MINUTE_NS, 5 * MINUTE_NS, 10 * MINUTE_NS))
    vms = chance.randint(3, 6) if sample_ns <= 2 * MINUTE_NS else chance.randint(6, 16)
    # So many samples at most that a seed takes a second or two.
    length_ns = min(int(chance.uniform(0.7, 1.9) * DAY_NS), _SAMPLES * sample_ns // vms)
    return Plan(
        seed=seed,
        length_ns=length_ns,
        hosts=pick((2, 2, 2, 3, 4)),
        vms=vms,
        customers=chance.randint(1, 4),
        sample_ns=sample_ns,
        batch_samples_max=pick((1, 1, 3, 10, 40)),
        heartbeat_ns=pick((MINUTE_NS, *(85 * SECOND_NS,) * 6, 5 * MINUTE_NS)),
        tick_ns=pick((*(MINUTE_NS,) * 7, 5 * MINUTE_NS)),
        ticks_per_interval=pick((1, 5, 15, 60)),
        skew_max_ns=pick((0, SECOND_NS, 20 * SECOND_NS))
        if not wild
        else pick((MINUTE_NS, 4 * MINUTE_NS, 10 * MINUTE_NS)),
        coarse_clocks=chance.random() < 0.3,
        clock_steps_hours=pick((4.0, 12.0)) if wild else 0.0,
        daemon_clock_steps_hours=pick((0.0, 0.0, 10.0)),
        latency_max_ns=pick((SECOND_NS, 10 * SECOND_NS, 3 * MINUTE_NS)),
        lost_requests=pick((0.0, 0.01, 0.1, 0.3)),
        lost_answers=pick((0.0, 0.01, 0.1)),
        replayed=pick((0.0, 0.0, 0.02, 0.1)),
        replayed_after_max_ns=pick((MINUTE_NS, HOUR_NS, 12 * HOUR_NS)),
        lanes=pick((1, 1, 2, 6)),
        retries=chance.random() < 0.8,
        lost_notices=pick((0.0, 0.0, 0.05, 0.3)),
        slow_notices=pick((0.0, 0.1, 0.5)),
        slow_notice_max_ns=pick((10 * MINUTE_NS, 6 * HOUR_NS)),
        life_mean_ns=pick((HOUR_NS, 5 * HOUR_NS, 12 * HOUR_NS)),
        unannounced=pick((0.0, 0.0, 0.2)),
        live_migrations=pick((0.0, 0.0, 0.1, 0.5)),
        takeovers=pick((0.0, 0.2)),
        failed_reads=pick((0.0, 0.0, 0.002)),
        host_crash_hours=pick((0.0, 12.0, 40.0)),
        spool_on_disk=chance.random() < 0.7,
        restart_hours=pick((0.0, 3.0, 12.0)),
        downtime_max_ns=pick((20 * SECOND_NS, 10 * MINUTE_NS, 5 * HOUR_NS)),
        rules_change=pick((0.0, 0.3)),
        ended_kept=pick((0, 3, 10_000)),
    )
