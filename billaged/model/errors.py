"""What can go wrong with a request or a start, as one small tree.

    BillagedError
    ├── RequestError               the caller's request is not taken; nothing was written
    │   ├── InvalidField           a field is wrong; never retry as it is
    │   ├── Unauthenticated        who calls has not been proved, or not any more
    │   ├── Forbidden              who calls may not do this
    │   ├── WrongOwner             the VM belongs to another customer
    │   ├── Overloaded             too much in flight or no disk; retry after a while
    │   └── NotServing             starting, stopping, or the clock cannot be trusted; retry
    └── StartError                 the daemon or a command cannot go on; a hint says what to do
        ├── SettingError           a setting is unknown or wrong
        ├── StorageError           the data directory cannot be used as it is
        ├── IdentityUnavailable    nobody gave the daemon an identity in time; a restart may help
        ├── Broken                 an unexpected fault ended the daemon; a restart may help
        └── DurabilityLost         a commit failed: what is on disk is unknown, only a restart tells

Each surface translates it once: gRPC in ``doors/status.py``, HTTP in the same
table, exit codes in ``cli/errors.py``.
"""

from __future__ import annotations

from typing import Final


class BillagedError(Exception):
    """Something that has a clear message for whoever caused it."""


class RequestError(BillagedError):
    """The request was not taken: nothing of it was written."""

    retry_after_seconds: float | None = None


class InvalidField(RequestError):
    """A field of the request is wrong. ``field`` is its path, as ``metrics[3].timestamp``."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


class Unauthenticated(RequestError):
    """The caller's certificate or token does not hold. ``identity`` is what was claimed, for the log."""

    def __init__(self, problem: str, identity: str = "") -> None:
        super().__init__(problem)
        self.identity = identity


class Forbidden(RequestError):
    """The policy does not let this caller do this; why is for the operator's log, not for the caller."""

    def __init__(self) -> None:
        super().__init__("not allowed")


class WrongOwner(RequestError):
    """The VM's running session belongs to another customer (who is not named to the caller)."""

    def __init__(self, vm_id: str) -> None:
        super().__init__(f"customer_id: VM {vm_id} has a running session that belongs to another customer")
        self.vm_id = vm_id


class Overloaded(RequestError):
    """No room now; the caller keeps its data and tries again."""

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotServing(RequestError):
    """Not now: starting, stopping, or the machine's clock has stepped back."""

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class StartError(BillagedError):
    """A daemon or command that cannot go on. ``problem`` is what is wrong, ``hint`` says what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.problem = message
        self.hint = hint


class SettingError(StartError):
    """A setting is unknown or has a bad value; the message names it."""


class StorageError(StartError):
    """The data directory, the journal or the ledger cannot be used as it is."""


class Broken(StartError):
    """An unexpected fault ended the daemon while it ran."""


class IdentityUnavailable(StartError):
    """No identity came in time."""


class DurabilityLost(StartError):
    """A commit failed. Whether its rows are on disk is unknown: acknowledge nothing, exit, let a restart read."""


EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
