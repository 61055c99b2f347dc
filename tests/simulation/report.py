"""What was lived through, for eyes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from simulation.run import Outcome

_TITLES = {
    "the fleet": ("simulated hours", "boots", "stops", "reboots", "live migrations", "takeovers",
                  "resets without a word", "deaths without a word", "host crashes", "clock steps"),
    "the network": ("sent", "tried again", "repeated on the way", "given up", "notices lost", "lost with their host"),
    "billaged": ("journal rows", "refused", "wrong owner", "flushes", "stops of billaged", "crashes of billaged",
                 "rows replayed", "rules set", "clock steps of billaged", "summaries"),
    "the bill": ("sessions", "gaps", "corrections", "silences", "VMs trusted", "VMs untrusted", "VMs as in order"),
}  # fmt: skip


def line(outcome: Outcome) -> str:
    """One seed in one line."""
    seen = outcome.seen
    verdict = "FAILED" if outcome.complaints else "ok"
    return (
        f"seed {outcome.plan.seed}: {verdict}, {seen['simulated hours']} h of {outcome.plan.vms} VMs on"
        f" {outcome.plan.hosts} hosts, {seen['journal rows']:,} rows, {seen['tally samples']:,} samples,"
        f" {seen['tally late']:,} late, {seen['gaps']:,} gaps, {seen['corrections']:,} corrections,"
        f" {seen['stops of billaged'] + seen['crashes of billaged']} restarts"
    )


def lines(seen: Counter[str]) -> Iterator[str]:
    """What all seeds saw together."""
    shown = set()
    for title, names in _TITLES.items():
        shown.update(names)
        yield f"  {title}: " + ", ".join(f"{name} {seen[name]:,}" for name in names)
    for word in ("tally", "recorded"):
        named = sorted((name.removeprefix(f"{word} "), count) for name, count in seen.items() if name.startswith(word))
        yield f"  {word}: " + ", ".join(f"{name} {count:,}" for name, count in named)


def failure(outcome: Outcome, days: float | None) -> Iterator[str]:
    """Nothing where nothing failed."""
    seed = outcome.plan.seed
    for complaint in outcome.complaints:
        yield f"FAILED: seed {seed}: {complaint}"
    if outcome.complaints:
        again = f"make simulate SEED={seed}" if days is None else f"scripts/simulate.py --seed {seed} --days {days}"
        yield f"the very same again: {again}"
