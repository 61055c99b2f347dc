"""Reports: what the ledger says, for people and for programs; and the proof that it follows from its journal.

Law of this room: reads the ledger, renders tables, CSV, JSON; computes nothing the
ledger does not say. It opens everything read-only, whether a daemon runs or not, and
leaves the SQL of the ledger to the ledger.
"""
