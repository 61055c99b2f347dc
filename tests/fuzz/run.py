"""A run: a daemon of its own, hostile messages, and everything that must still hold afterwards.

``make fuzz COUNT=n SEED=n``, or ``scripts/fuzz.py --again FILE`` for one saved message.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from daemon_process import ROOT, DaemonProcess

from fuzz import judge
from fuzz.memory import MIB, Held, growth_max_bytes, held, resident_bytes
from fuzz.messages import FuzzedMessage, load, message, save
from fuzz.sender import Failure, Sender

FOLDER = ROOT / "build" / "fuzz"
MILLION = 1_000_000
# Ticks and ledger commits come between the messages. No bound of what one caller may ask for: it is not what is asked.
SETTINGS = {
    "AGGREGATION_INTERVAL": "1s",
    "REQUESTS_PER_SECOND": "0",
    "SAMPLES_PER_SECOND": "0",
    "SUMMARY_LOG": "off",
    "LEDGER_FLUSH_INTERVAL": "200ms",
}
STOP_SECONDS_MAX = 30.0
_PROGRESS_SECONDS = 5.0


class Plan(NamedTuple):
    """``epoch_ns`` is what the messages take for now."""

    seed: int
    count: int
    epoch_ns: int

    def messages(self, begin: int, end: int) -> Iterator[FuzzedMessage]:
        return (message(self.seed, number, self.epoch_ns) for number in range(begin, end))


@dataclass
class Outcome:
    """``complaints`` is empty where everything holds."""

    complaints: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    accepted: int = 0
    # After the first tenth, and at the end.
    memory: tuple[Held, Held] = (Held(0, 0), Held(0, 0))

    def lines(self) -> Iterator[str]:
        for (door, status), count in sorted(self.answers.items()):
            yield f"  {door:<12}{status:<24}{count:>10,}"
        before, after = self.memory
        yield f"  accepted, journaled and billed      {self.accepted:>10,}"
        yield (
            f"  memory after a tenth {before.resident_bytes / MIB:.1f} MiB ({before.known_vms:,} VMs),"
            f" at the end {after.resident_bytes / MIB:.1f} MiB ({after.known_vms:,})"
        )


class Progress:
    """A line now and then."""

    def __init__(self, daemon: DaemonProcess, count: int) -> None:
        self._daemon, self._count = daemon, count
        self._began = self._told = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._told >= _PROGRESS_SECONDS:
            self._told = now
            rate = done / (now - self._began)
            holds = resident_bytes(self._daemon) / MIB
            print(f"  {done:>10,} of {self._count:,} answered, {rate:,.0f} a second, {holds:.0f} MiB", flush=True)


def run(plan: Plan, data_dir: Path, *, show: bool = False) -> Outcome:
    """Send a plan's messages to a new daemon in this directory, and judge it."""
    tenth = max(plan.count // 10, 1)
    parts = [plan.messages(0, tenth), plan.messages(tenth, plan.count)]
    return _run(parts, data_dir, plan.count if show else None)


def run_again(one: FuzzedMessage, data_dir: Path) -> Outcome:
    return _run([[one], []], data_dir, None)


def _run(parts: list[Iterable[FuzzedMessage]], data_dir: Path, shown_of: int | None) -> Outcome:
    outcome = Outcome()
    with DaemonProcess(data_dir, SETTINGS) as daemon:
        sender = Sender(daemon) if shown_of is None else Sender(daemon, Progress(daemon, shown_of))
        moments, broke_off = [], True
        try:
            for part in parts:
                asyncio.run(sender.send(part))
                moments.append(held(daemon))
            outcome.memory = (moments[0], moments[-1])
            broke_off = False
        except Exception as error:  # noqa: BLE001 - a daemon that is gone, say: told with all the rest
            outcome.complaints.append(f"the run broke off: {error!r}")
        outcome.failures, outcome.answers = sender.failures, sender.answers
        outcome.accepted = sender.accepted.total()
        outcome.complaints += of_the_process(daemon)
    before, after = outcome.memory
    grown, most = after.resident_bytes - before.resident_bytes, growth_max_bytes(before, after)
    if grown > most:
        outcome.complaints.append(f"memory grew by {grown / MIB:.1f} MiB, more than {most / MIB:.1f} MiB")
    if not broke_off:
        outcome.complaints += judge.complaints(data_dir, sender.accepted)
    return outcome


def of_the_process(daemon: DaemonProcess) -> Iterator[str]:
    """Stop it; what it did wrong, then or before."""
    try:
        code = daemon.stop(within_seconds=STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        yield f"it had not stopped {STOP_SECONDS_MAX} s after SIGTERM"
        return
    if code != 0:
        yield f"it ended with {code}"
    bad = [line for line in daemon.log if line["level"] in ("error", "critical") or "exception" in line]
    if bad:
        yield f"{len(bad)} errors in its log, the first: {bad[0]}"
    if daemon.other_output:
        yield f"it printed what is no log line: {daemon.other_output[:2_000]!r}"


def keep(outcome: Outcome, plan: Plan) -> list[Path]:
    """Save what failed, to be sent again."""
    return [save(failure.message, plan.seed, plan.epoch_ns, failure.why, FOLDER) for failure in outcome.failures]


def main() -> int:
    """Returns 1 where something does not hold, else 0."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz.py", description=__doc__)
    parser.add_argument("--count", type=int, default=MILLION, help="messages (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of an earlier run (default: a new one)")
    parser.add_argument("--epoch-ns", type=int, help="what that run took for now, nanoseconds (default: now)")
    parser.add_argument("--again", type=Path, metavar="FILE", help="send the message saved in build/fuzz/ alone")
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error("--count must be at least 1")
    seed = secrets.randbelow(10**9) if arguments.seed is None else arguments.seed
    plan = Plan(seed, arguments.count, arguments.epoch_ns or time.time_ns())
    FOLDER.mkdir(parents=True, exist_ok=True)
    data_dir = FOLDER / f"data-{time.time_ns()}"
    began = time.monotonic()
    if arguments.again is not None:
        outcome = run_again(load(arguments.again), data_dir)
    else:
        print(f"fuzzing with {plan.count:,} messages, seed {plan.seed}, epoch {plan.epoch_ns}", flush=True)
        outcome = run(plan, data_dir, show=True)
    for line in outcome.lines():
        print(line)
    for failure in outcome.failures[:20]:
        print(f"FAILED: {failure.why}")
    if arguments.again is None:
        for path in keep(outcome, plan):
            print(f"  saved: scripts/fuzz.py --again {path}")
    for complaint in outcome.complaints:
        print(f"FAILED: {complaint}")
    if outcome.failures or outcome.complaints:
        print(f"its data stays in {data_dir}")
        if arguments.again is None:
            again = f"--count {plan.count} --seed {plan.seed} --epoch-ns {plan.epoch_ns}"
            print(f"the very same messages: scripts/fuzz.py {again}")
        return 1
    shutil.rmtree(data_dir)
    print(f"all holds, in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
