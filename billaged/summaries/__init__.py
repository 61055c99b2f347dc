"""Summaries on their way out: the log, and those who watch.

Law of this room: it gives out what the aggregator summed up, on a thread of its own.
Whoever is slow loses summaries and is told; the fold never waits.
"""
