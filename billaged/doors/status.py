"""How an error is told to a caller: one table for gRPC and for Connect (JSON over HTTP)."""

from __future__ import annotations

import logging
import math
import secrets
from typing import Final, NamedTuple

import grpc
from connectrpc.code import Code
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from billaged.model.errors import (
    Forbidden,
    InvalidField,
    NotServing,
    Overloaded,
    RequestError,
    Unauthenticated,
    WrongOwner,
)
from billaged.model.time import NANOS

_log: Final = logging.getLogger("billaged.doors")

# A gRPC status travels in the trailers, which many clients cap at 8 KiB; the text may quote what was sent.
MAX_MESSAGE_CHARACTERS: Final = 500

_CODES: Final[dict[type[Exception], tuple[grpc.StatusCode, Code]]] = {
    InvalidField: (grpc.StatusCode.INVALID_ARGUMENT, Code.INVALID_ARGUMENT),
    Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, Code.UNAUTHENTICATED),
    Forbidden: (grpc.StatusCode.PERMISSION_DENIED, Code.PERMISSION_DENIED),
    WrongOwner: (grpc.StatusCode.FAILED_PRECONDITION, Code.FAILED_PRECONDITION),
    Overloaded: (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.RESOURCE_EXHAUSTED),
    NotServing: (grpc.StatusCode.UNAVAILABLE, Code.UNAVAILABLE),
}


class Refusal(NamedTuple):
    """What a caller is told. ``details`` are google.rpc messages."""

    grpc_code: grpc.StatusCode
    connect_code: Code
    message: str
    details: tuple[Message, ...] = ()

    def packed_details(self) -> list[AnyMessage]:
        """The details as google.protobuf.Any."""
        return [_pack(detail) for detail in self.details]

    def grpc_status(self) -> grpc.Status:
        """The status with its rich details, for ``context.abort_with_status``."""
        number: int = self.grpc_code.value[0]
        return rpc_status.to_status(status_pb2.Status(code=number, message=self.message, details=self.packed_details()))


def refusal(error: Exception) -> Refusal:
    """What to tell the caller whose request ended in this error.

    An error that is none of ours is a bug: it is logged with its traceback under a
    reference, and the reference is all that the caller sees.
    """
    for kind in type(error).__mro__:
        if kind in _CODES:
            grpc_code, connect_code = _CODES[kind]
            return Refusal(grpc_code, connect_code, shorten(str(error)), _details(error))
    reference = secrets.token_hex(4)
    _log.error("unexpected error in a request, reference %s", reference, exc_info=error)
    message = f"internal error, reference {reference}"
    return Refusal(grpc.StatusCode.INTERNAL, Code.INTERNAL, message)


def shorten(text: str) -> str:
    """The text, cut to what fits a status; half a character that JSON can carry becomes a question mark."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return whole if len(whole) <= MAX_MESSAGE_CHARACTERS else whole[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def _details(error: Exception) -> tuple[Message, ...]:
    if isinstance(error, InvalidField) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=shorten(error.field), description=shorten(error.problem)
        )
        return (error_details_pb2.BadRequest(field_violations=[violation]),)
    if isinstance(error, RequestError) and error.retry_after_seconds is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(math.ceil(error.retry_after_seconds * NANOS))
        return (info,)
    return ()


def _pack(detail: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed
