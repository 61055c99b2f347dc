"""billaged in simulated time: the real intake's checks, journal, fold, ledger and summaries, without their threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

from auditor.biller import Biller
from auditor.convert import to_record
from auditor.events import HOUR_NS, MINUTE_NS, SECOND_NS, Batch, Event, Resumed, Rules, Started, Tick, What

from billaged.aggregator.worker import Aggregator
from billaged.intake.chain import rows_after
from billaged.intake.clock import ClockWatch
from billaged.intake.journal import entry_of
from billaged.intake.validation import Limits, validate
from billaged.ledger.database import open_for_writing
from billaged.ledger.store import LedgerStore
from billaged.model.errors import InvalidField, NotServing
from billaged.model.records import JournalEntry, Record
from billaged.wire import codec
from simulation.agenda import Act, Agenda
from simulation.clocks import MachineClock
from simulation.journal import KeptJournal
from simulation.network import Answer, Answered
from simulation.plan import Plan
from simulation.windows import SummedWindows

_GATHER_MAX_NS = 15 * SECOND_NS


class SteppedAggregator(Aggregator):
    """The aggregator's thread, a step at a time."""

    def fold(self, entries: Sequence[JournalEntry]) -> None:
        self._fold(entries)


class Daemon:
    """Up or down; its journal, its ledger's database and the auditor's books outlive it."""

    def __init__(self, plan: Plan, chance: Random, agenda: Agenda) -> None:
        self._plan, self._chance, self._agenda = plan, chance, agenda
        self.clock = MachineClock(agenda)
        self.journal = KeptJournal()
        self.database = open_for_writing(None)
        self.auditor = Biller()
        self.windows = SummedWindows()
        self.events: list[Event] = []
        self.seen: Counter[str] = Counter()
        self.rules = Rules()
        # Counts the starts: what was planned before a stop is not done after it.
        self._life = 0
        self.up = False
        # Taken, not yet in the journal, with who waits to hear.
        self._waiting: list[tuple[What, Record, bytes, str, Answered | None]] = []
        self._unfolded: list[JournalEntry] = []
        # How many may wait for the fold.
        self._patience = 0
        self._ticks = 0
        self.start()

    # --- the door ----------------------------------------------------------------

    def take(self, what: What, caller: str, answered: Answered) -> None:
        """What the gRPC door and the intake do with a request."""
        if not self.up:
            answered(Answer.AWAY)
            return
        record, payload = to_record(what)
        try:
            validate(record, Limits(), self._watch.now())
        except InvalidField:
            self.seen["refused"] += 1
            answered(Answer.REFUSED)
            return
        except NotServing:
            answered(Answer.AWAY)
            return
        # One that overtakes what is not folded yet slips through, to become a dead letter.
        if isinstance(what, Batch | Started) and self._chance.random() < 0.95:
            owner = self._aggregator.owner_of(what.vm_id)
            if owner not in (None, what.customer_id):
                self.seen["wrong owner"] += 1
                answered(Answer.REFUSED)
                return
        self._put(what, record, payload, caller, answered)

    def _put(self, what: What, record: Record, payload: bytes, caller: str, answered: Answered | None) -> None:
        if not self._waiting:
            self._later(self._chance.randint(0, _GATHER_MAX_NS), self._commit)
        self._waiting.append((what, record, payload, caller, answered))

    def _put_own(self, what: What) -> None:
        record, payload = to_record(what)
        self._put(what, record, payload, "", None)

    def _commit(self) -> None:
        """One group into the journal, then the answers."""
        group, self._waiting = self._waiting, []
        if not group:
            return
        received_ns = self._watch.now().wall_ns
        rows = rows_after(
            self.journal.head,
            ((codec.kind_of(record), received_ns, caller, payload) for _, record, payload, caller, _ in group),
        )
        self.journal.append(rows)
        for row, (what, record, _, caller, _) in zip(rows, group, strict=True):
            event = Event(row.sequence, row.received_ns, caller, what)
            self.events.append(event)
            self.auditor.fold(event)
            self._unfolded.append(JournalEntry(row.sequence, codec.kind_of(record), *row[2:5], record, row.chain))
        if len(self._unfolded) > self._patience:
            self._patience = self._chance.choice((0, 10, 60, 300))
            self._fold()
        for *_, answered in group:
            if answered is not None:
                answered(Answer.TAKEN)

    # --- the fold ----------------------------------------------------------------

    def _fold(self) -> None:
        entries, self._unfolded = self._unfolded, []
        at = 0
        while at < len(entries):
            group = entries[at : at + self._chance.choice((1, 5, 50, 500))]
            self._aggregator.fold(group)
            at += len(group)
        if self._chance.random() < 0.2:
            self.flush()

    def flush(self) -> None:
        self._aggregator.flush()
        self.windows.keep()
        self.seen["flushes"] += 1

    def catch_up(self) -> None:
        """Everything taken is in the ledger."""
        self._commit()
        self._fold()
        self.flush()

    # --- time --------------------------------------------------------------------

    def _later(self, delay_ns: int, act: Act) -> None:
        life = self._life

        def unless_gone() -> None:
            if self._life == life:
                act()

        self._agenda.after(delay_ns, unless_gone)

    def _tick(self) -> None:
        self._ticks += 1
        closes = self._ticks % self._plan.ticks_per_interval == 0
        self._put_own(Tick(self.clock.wall_nanos(), self._plan.tick_ns, closes))
        self._later(self._plan.tick_ns, self._tick)

    def _step_clock(self) -> None:
        self.seen["clock steps of billaged"] += 1
        self.clock.be_off_by(self._chance.choice((0, 0, -HOUR_NS, -MINUTE_NS, MINUTE_NS, HOUR_NS)))
        self._step_clock_later()

    def _step_clock_later(self) -> None:
        if self._plan.daemon_clock_steps_hours:
            mean_ns = self._plan.daemon_clock_steps_hours * HOUR_NS
            self._later(int(self._chance.expovariate(1 / mean_ns)), self._step_clock)

    # --- starting and stopping ---------------------------------------------------

    def start(self) -> None:
        """As the daemon starts: take up the ledger, replay what it lacks, say what is new, serve."""
        self._store = LedgerStore(self.database, self.journal.journal_id)
        self._aggregator = SteppedAggregator(self._store, self.windows, self.clock, 0, _fatal)
        self._aggregator.load()
        replayed = self._aggregator.replay(
            [entry_of(row) for row in rows] for rows in self.journal.read(self._aggregator.position)
        )
        self.windows.keep()
        self.seen["rows replayed"] += replayed
        down_from_ns = self.journal.newest_received_ns()
        self._watch = ClockWatch(self.clock, down_from_ns, suspended_nanos=lambda: 0)
        self.up = True
        if self._aggregator.rules is None or self._chance.random() < self._plan.rules_change:
            self._change_rules()
        now_ns = self._watch.now().wall_ns
        if down_from_ns and now_ns > down_from_ns:
            self._put_own(Resumed(down_from_ns, now_ns))
        self._put_own(Tick(self.clock.wall_nanos(), 0, False))
        self._later(self._plan.tick_ns, self._tick)
        self._step_clock_later()
        if self._plan.restart_hours:
            life_ns = int(self._chance.expovariate(1 / (self._plan.restart_hours * HOUR_NS)))
            self._later(life_ns, self._end)

    def _change_rules(self) -> None:
        chance = self._chance
        self.seen["rules set"] += 1
        self.rules = Rules(
            gap_threshold_ns=chance.choice((15, 15, 6, 60)) * MINUTE_NS,
            bucket_ns=chance.choice((HOUR_NS, HOUR_NS, 15 * MINUTE_NS)),
            vanish_after_ns=chance.choice((1, 1, 4)) * HOUR_NS,
            max_cores=chance.choice((256, 256, 256, 4)),
            max_gigabytes_per_second=chance.choice((50, 50, 50, 1)),
            gap_thresholds=self._some_thresholds(),
        )
        self._put_own(self.rules)

    def _some_thresholds(self) -> tuple[tuple[str, int], ...]:
        """Customers with a gap threshold of their own: none, one, or several."""
        chance = self._chance
        count = min(chance.choice((0, 0, 1, 2)), self._plan.customers)
        self.seen["thresholds of customers"] += count
        return tuple(
            (customer_id, chance.choice((3, 20, 120)) * MINUTE_NS)
            for customer_id in chance.sample(self._plan.customer_ids, count)
        )

    def _end(self) -> None:
        """A stop, or a crash that loses what was not committed and what was not flushed."""
        if self._chance.random() < 0.4:
            self.seen["stops of billaged"] += 1
            self._put_own(Tick(self.clock.wall_nanos(), 0, True))
            self.catch_up()
        else:
            self.seen["crashes of billaged"] += 1
            if self._waiting and self._chance.random() < 0.5:
                # Committed, and nobody hears of it.
                self._waiting = [(*one[:4], None) for one in self._waiting]
                self._commit()
        self._life += 1
        self.up = False
        waiting, self._waiting, self._unfolded = self._waiting, [], []
        for *_, answered in waiting:
            if answered is not None:
                answered(Answer.AWAY)
        self.windows.forget()
        down_ns = self._chance.randint(SECOND_NS, self._plan.downtime_max_ns)
        self._later(down_ns, self.start)

    def close(self) -> None:
        self.database.dispose()

    def at_last(self) -> None:
        """Be up, close the last interval, and have everything in the ledger."""
        if not self.up:
            self._life += 1
            self.start()
        self._put_own(Tick(self.clock.wall_nanos(), 0, True))
        self.catch_up()


def _fatal(error: BaseException) -> None:
    raise error
