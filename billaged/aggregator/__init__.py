"""The fold: from journal entries to sessions, facts, gaps and summaries.

Law of this room: column math apart from the thread that owns it. Time is an
argument, never read; storage is a Protocol, never imported; what changes is
computed first and written into the columns only after nothing can fail any more.
The rules are those of docs/billing-semantics.md.
"""
