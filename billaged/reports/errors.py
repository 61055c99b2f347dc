"""What a report can refuse."""

from __future__ import annotations

from billaged.model.errors import BillagedError, StartError


class NotInLedger(BillagedError):
    """The ledger knows no such VM or customer."""


class BadSpan(StartError):
    """A report's time span is none, or cuts through usage that has no finer times."""


class ProofFailed(BillagedError):
    """The journal is damaged, or the ledger is not what the journal gives."""


class NoRoom(BillagedError):
    """Where something was to be recomputed the disk is full: that says nothing about what it was for."""
