"""Over closed links: what may come to stand otherwise there, where nothing may be billed otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from billaged.aggregator.instant import Kept
from billaged.aggregator.state import State
from billaged.aggregator.walk import walk
from billaged.model.records import COUNTERS, FoldRules


def cross(here: Kept, old: State, new: State, book: Sequence[FoldRules]) -> Kept | None:
    """The instant after a closed link, or after a run of them (what is between is forgotten). None: they change.

    Along closed links there are only samples of one session, their counters only rise, and they pass no mark. So
    they bill by marks alone what the walk brings with it; and a mark that is new is neither reached on the way,
    nor does it take anything from the bill, where it is higher than the value at the end, the highest.
    """
    if new._replace(marks=old.marks) != old:
        return None
    # Where something was put at the instant while its link was the newest, what was before it is known.
    end = here.after if here.before is None else here.before
    for index, mark in enumerate(new.marks):
        if mark != old.marks[index] and 0 < mark <= end.last[index % COUNTERS]:
            return None
    if here.before is None:
        return here._replace(after=here.after._replace(marks=new.marks))
    before = here.before._replace(marks=new.marks)
    _, old_bill = walk(here.before, here.instant, here.rules, book)
    after, new_bill = walk(before, here.instant, here.rules, book)
    if new_bill.postings != old_bill.postings or new_bill.gaps != old_bill.gaps:
        return None
    return here._replace(before=before, after=after)
