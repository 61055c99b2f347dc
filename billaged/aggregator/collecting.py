"""From what was folded since the last flush to what the ledger is given."""

from __future__ import annotations

from billaged.aggregator.changes import LedgerChanges, Row
from billaged.aggregator.effects import Effects, FactKey, Posting
from billaged.aggregator.packing import pack
from billaged.model.quantity import MemoryTime


def collect_effects(effects: Effects, changes: LedgerChanges) -> None:
    """Put the effects' rows into the changes, each in the ledger's order of columns."""
    for sessions in effects.superseded.values():
        changes.sessions += [session.row() for session in sessions.values()]
    if effects.facts:
        changes.facts.append([_fact_row(*item) for item in effects.facts.items()])
    changes.corrections = [
        (sequence, *_fact_row(key, correction.posting), "+".join(sorted(correction.causes)))
        for (sequence, key), correction in effects.corrections.items()
    ]
    for key, gap in effects.gaps.items():
        if gap is None:
            changes.gaps_taken_back.append(key)
        else:
            changes.gaps.append((*gap[:6], *gap.amounts, gap.sequence))
    changes.anomalies = list(effects.anomalies)
    changes.dead_letters = [(*letter[:1], letter.kind.name.lower(), *letter[2:]) for letter in effects.dead_letters]
    changes.instances = list(effects.instances.values())
    changes.silences = list(effects.silences.values())
    changes.reported_gaps = list(effects.reported_gaps)
    changes.tallies = dict(effects.tallies)
    for vm_id, kept_changes in effects.kept.items():
        for time_ns, kept in kept_changes.by_time.items():
            if kept is None:
                changes.kept_no_more.append((vm_id, kept_changes.timeline, time_ns))
            else:
                changes.kept_instants.append((vm_id, kept_changes.timeline, time_ns, pack(kept)))


def _fact_row(key: FactKey, posting: Posting) -> Row:
    memory = MemoryTime.of_byte_nanos(posting.memory_byte_nanos)
    return (*key, posting.customer_id, *posting.amounts, *memory, *posting[3:])
