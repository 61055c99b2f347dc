"""What must hold of any ledger: stable names, and a sentence for each."""

from __future__ import annotations

from typing import Final

FILE: Final = "file"
VALUES: Final = "values"
LIFETIME: Final = "lifetime"
ORDER: Final = "order"
OVERLAP: Final = "overlap"
STOP: Final = "stop"
SUMS: Final = "sums"
BUCKETS: Final = "buckets"
MEMORY: Final = "memory"
OWNER: Final = "owner"
REFERENCES: Final = "references"
SILENCES: Final = "silences"
TALLIES: Final = "tallies"
JOURNAL: Final = "journal"
REPLAY: Final = "replay"

SENTENCES: Final = {
    FILE: "SQLite finds nothing wrong with the ledger's file.",
    VALUES: "Each value is of its column's type, and one that billaged writes.",
    LIFETIME: "A session's measured time and its gaps are its life, to the nanosecond: from its start to its end, or "
    "to its newest sample while it runs.",
    ORDER: "A session starts, is sampled and ends in this order; a VM's are numbered 1 to n, and the last in time is "
    "its newest, the only one that may run.",
    OVERLAP: "A VM's sessions do not overlap, a session's gaps neither.",
    STOP: "No gap, and no bucket with usage, lies before its session's start or after its end.",
    SUMS: "A session's totals are the sums of its facts, corrections and gaps.",
    BUCKETS: "In each bucket, with its corrections, measured time and gap are the session's life there; nothing is "
    "negative, and it begins on its edge.",
    MEMORY: "Memory x time is no more than the session's peak over the measured time.",
    OWNER: "Facts, corrections and gaps have their session's customer.",
    REFERENCES: "Rows name sessions that there are, and journal rows that the ledger has come to.",
    SILENCES: "A silence ends no sooner than it starts; an open one is of a VM that runs or has vanished, and starts "
    "at its newest sample.",
    TALLIES: "The tallies are what the rows add up to.",
    JOURNAL: "The journal is whole, and the ledger was folded from it (billaged journal verify).",
    REPLAY: "The ledger is what its journal gives, row by row (billaged journal replay).",
}
# These are about the ledger as a whole, not about a VM or a customer.
OF_THE_WHOLE: Final = (FILE, TALLIES, JOURNAL, REPLAY)
