"""The auditor: a second biller, slow and obvious, that judges the fast one.

Law of this room: it knows docs/billing-semantics.md and nothing of the code it judges.
Only ``convert`` may import billaged, to carry journals between the two.

Big integers, dicts and plain classes; no column, no cleverness. Where the document and
this room disagree one of them has an error; where this room and the daemon do, a bill has.

    events ──▶ Biller ──▶ Visit (one record at one VM) ──▶ Timeline (where a point may be put) ──▶ walk
       ▲          │           └── Draft ──▶ Books (facts, corrections, gaps, anomalies)
       │          ├── Hearing (silence)
       │          └── Bill (tables as plain tuples, ``check`` holds the invariants)
    generator: hostile journals, from a seed or from hypothesis

A timeline keeps all instants for ever, and walks on from a place where a point was put as if
it had never been there; what may not be known any more it only counts. Slow, and plain to see.
"""
