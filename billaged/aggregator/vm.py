"""A VM as plain integers: its newest session, where its timeline ends, and what a record is folded under."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

from billaged.aggregator.effects import Anomaly, Effects, canonical_json
from billaged.aggregator.instant import Instant, Kept
from billaged.aggregator.progress import Progress
from billaged.aggregator.session import Session
from billaged.aggregator.state import ENDED, RUNNING, State
from billaged.aggregator.timeline import Timeline
from billaged.model.records import FoldRules

# A sample as the journal has it: time, memory, then the five counters.
Sample = tuple[int, ...]


class NotAtHand(Exception):
    """A VM's kept instants are needed, and only the ledger has them."""


class Context(NamedTuple):
    """What a record is folded under."""

    sequence: int
    received_ns: int
    # All rules so far, as they are for the timeline's customer, and the number of those in force.
    book: Sequence[FoldRules]
    rules: int
    # Buckets that end at or before this are closed.
    closed_through_ns: int
    # Instants before this are kept no more.
    horizon_ns: int
    effects: Effects
    progress: Progress


class Vm:
    """A VM out of the columns and back into them."""

    __slots__ = (
        "customer_id",
        "floor_ns",
        "follow",
        "has_another_session",
        "has_run",
        "heard_seconds",
        "highest",
        "is_listened_for",
        "is_vanished",
        "link_rules",
        "newest_ns",
        "newest_start",
        "newest_stop",
        "newest_stored",
        "number",
        "previous",
        "previous_loose",
        "session",
        "state",
        "timeline",
        "vm_id",
    )

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id
        # The timeline's number, customer ("" before its first start or sample), and where it may not begin before.
        self.number = 1
        self.customer_id = ""
        self.floor_ns = 0
        # The highest number of a session.
        self.highest = 0
        # The newest session, None before the first.
        self.session: Session | None = None
        # How the walk stands after the newest instant.
        self.state = State()
        # The newest instant: its time (None: the timeline has none yet), what it holds beside a
        # sample, whether it is among the kept ones, and the rules of the link into it.
        self.newest_ns: int | None = None
        self.newest_start = False
        self.newest_stop = False
        self.newest_stored = False
        self.link_rules = 0
        # The sample of the instant before it, where there is one.
        self.previous: Sample | None = None
        # Whether that instant is stored only while it is one of the newest two.
        self.previous_loose = False
        self.follow = 0
        # The session has ended so, unless a later point says otherwise.
        self.is_vanished = False
        # Whether the next point ends a silence.
        self.is_listened_for = False
        # Whether the newest session is another one than it was.
        self.has_another_session = False
        # Whether that ran after any of the records just folded.
        self.has_run = False
        # When the VM was heard, in seconds of ticks; None where no record says so.
        self.heard_seconds: int | None = None
        # The kept instants, the newest two among them; None where they are not at hand.
        self.timeline: Timeline | None = None

    def copy(self) -> Vm:
        """The same, so far; what happens to one is not seen in the other."""
        twin = copy(self)
        twin.session = None if self.session is None else self.session.copy()
        twin.timeline = None if self.timeline is None else self.timeline.copy()
        return twin

    @property
    def is_running(self) -> bool:
        return self.state.phase == RUNNING and not self.is_vanished

    @property
    def end_ns(self) -> int:
        """Of a session that is not running."""
        return self.state.end_ns if self.state.phase == ENDED else self.state.last_ns

    @property
    def newest_sample(self) -> Sample | None:
        """The newest instant's."""
        if self.state.has_samples and self.state.last_ns == self.newest_ns:
            return (self.newest_ns, self.state.memory_bytes, *self.state.last)
        return None

    def newest_kept(self) -> Kept:
        """The newest instant, where it is not stored: a sample alone, with a closed link into it."""
        sample = self.newest_sample
        if sample is None:
            raise ValueError(f"VM {self.vm_id}: an instant without a sample that is not stored")
        return Kept(Instant(sample[0], sample=sample[1:]), self.link_rules, is_open=False, after=self.state)

    def at_hand(self) -> Timeline:
        """
        Raises:
            NotAtHand: only the ledger has it.
        """
        if self.timeline is None:
            raise NotAtHand(self.vm_id)
        return self.timeline

    def keep(self, kept: Kept, context: Context) -> None:
        """Among the kept instants from now on, or in the place of the one of its time."""
        context.effects.keep(self.vm_id, self.number, kept.instant.time_ns, kept)
        if self.timeline is not None:
            self.timeline.put(kept)

    def trim(self, effects: Effects) -> None:
        """Forget instants that are counted out."""
        if self.timeline is not None:
            for time_ns in self.timeline.trim():
                effects.keep(self.vm_id, self.number, time_ns, None)

    def record(self, context: Context, kind: str, at_ns: int, detail: dict[str, object], item: int = 0) -> None:
        """Put something on record about the newest session."""
        ordinal = 0 if self.session is None else self.session.ordinal
        self.record_about(ordinal, context, kind, at_ns, detail, item)

    def record_about(
        self, ordinal: int, context: Context, kind: str, at_ns: int, detail: dict[str, object], item: int
    ) -> None:
        context.effects.anomalies.append(
            Anomaly(context.sequence, item, kind, self.vm_id, at_ns, ordinal, canonical_json(detail))
        )
