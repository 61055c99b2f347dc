"""A call that failed, in the words of its caller."""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from billaged.client.plain import plain
from billaged.model.errors import BillagedError

# The longest wait that a server may ask for: one that is mistaken, or hostile, must not stop the sender for a year.
RETRY_SECONDS_MAX: Final = 30.0

# Codes of our own, beside gRPC's.
NO_IDENTITY: Final = "NO_IDENTITY"  # nothing to make a connection with; no call was made
UNKEPT: Final = "UNKEPT"  # this disk, not the server: the spool cannot be read, or what must be written down cannot be
UNREADABLE: Final = "UNREADABLE"  # what waits is no request; no call was made
NO_REASON: Final = "NO_REASON"  # answered with success=false, and nothing that says why


class CallFailed(BillagedError):
    """The call was not answered with a response; whether it took effect is unknown.

    ``code`` is the gRPC status name or one of ours, ``retry_after_seconds`` what the server
    asked for (None: nothing), ``hint`` what may help, empty where nobody can tell.
    ``details`` may be the server's own words: here they become fit to be shown.
    """

    def __init__(self, code: str, details: str, retry_after_seconds: float | None = None, hint: str = "") -> None:
        self.details = plain(details)
        super().__init__(f"{code}: {self.details}")
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        self.hint = hint

    @property
    def is_throttling(self) -> bool:
        """The server has no room now and says for how long; without a delay the request may be too large for it."""
        return self.code == "RESOURCE_EXHAUSTED" and self.retry_after_seconds is not None


def retry_after_seconds(call: Any) -> float | None:
    """The delay in a failed call's status, from 0 to the maximum; None without one."""
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # details that are none, or contradict the status: not to be trusted
        return None
    info = error_details_pb2.RetryInfo()
    for detail in status.details if status is not None else ():
        if detail.Is(info.DESCRIPTOR):
            return _delay_seconds(detail.value)
    return None


def _delay_seconds(value: bytes) -> float | None:
    try:
        delay = error_details_pb2.RetryInfo.FromString(value).retry_delay
    except DecodeError:
        return None
    return min(max(0.0, float(delay.seconds) + float(delay.nanos) / 1e9), RETRY_SECONDS_MAX)


def code_and_details(error: grpc.RpcError) -> tuple[str, str]:
    # Every error that a channel raises is also the call that failed; the type only says the former.
    call: Any = error
    return call.code().name, call.details() or "no details"
