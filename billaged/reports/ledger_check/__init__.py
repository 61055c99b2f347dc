"""``billaged verify``: every invariant of a ledger held against every row of it, and each broken row named.

The sessions of some VMs at a time (a ``Stretch``), so that memory stays bounded; facts, by far
the most rows, are read as they lie and held against their sessions in columns, exactly.
"""
