"""Intake: validate, make durable, acknowledge.

Law of this room: nothing is acknowledged before the journal's commit returned, and
nothing is dropped after. Knows records and the journal; not what they will mean.
"""
