"""The ledger: sessions, facts, gaps and what else is derived from the journal.

Law of this room: the only one that knows SQL. Nothing but the aggregator's commits
writes facts; readers open it read-only.
"""
