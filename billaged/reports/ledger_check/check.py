"""A whole ledger against every invariant: one look, read-only, a daemon running or not."""

from __future__ import annotations

from billaged.ledger.audit_reader import AUDITED, AuditReader
from billaged.ledger.views import Subject
from billaged.reports.ledger_check.bucket_check import BucketCheck
from billaged.reports.ledger_check.findings import Findings
from billaged.reports.ledger_check.gather import WEIGHT_MAX, Gatherer
from billaged.reports.ledger_check.records import RecordCheck
from billaged.reports.verify import Progress

_OF_VMS = ("sessions", "facts", "corrections", "gaps", "anomalies", "kept_instants", "silences", "reported_gaps")


def check_rows(
    reader: AuditReader, subject: Subject, findings: Findings, progress: Progress, weight_max: int = WEIGHT_MAX
) -> int:
    """Hold the ledger's rows against what must hold of them; how many there are.

    A subject's VMs are checked with all they have, also where it was another customer's; what is
    of no VM only without one. Memory: of ``weight_max`` sessions, and of the VM with the most.
    """
    everything = subject == Subject()
    counts = {name: reader.count(name, subject) for name in (AUDITED if everything else _OF_VMS)}
    total, done = sum(counts.values()), 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, total)

    records = RecordCheck(reader, subject, findings, advance)
    gatherer = Gatherer(reader, subject, findings, advance, weight_max)
    for stretch in gatherer.stretches():
        BucketCheck(reader, subject, stretch, findings, advance).run()
        records.anomalies(stretch)
        records.kept_instants(stretch)
    records.silences()
    records.reported_gaps()
    if everything:
        records.of_the_whole()
        records.counted["samples"] = gatherer.samples
        records.tallies()
    return total
