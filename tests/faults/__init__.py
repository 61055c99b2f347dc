"""Fault tests: a real daemon under load, something breaks, and the independent auditor judges what is left.

Each case is judged alike (``judge.py``): what was acknowledged is in the journal as it was sent, the ledger is the
auditor's bill of that journal, and once all clients have sent again what they had no answer to, each step of each
counter is billed once.

``make test`` runs a few of each case, ``make test-faults`` all, CI something between: see ``scale.py``.
"""
