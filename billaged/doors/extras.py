"""What gRPC brings ready-made, health and reflection, made to pass the gate and to leave room for usage.

Our own handlers pass the gate by themselves. These come as finished services, so an
interceptor stands before them: reflection is for callers with a role; health is open to all,
and its streams, which may stay for ever, must not take the places of RPCs that bring usage.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from billaged.doors.gate import Admission
from billaged.doors.status import refusal
from billaged.model.errors import Overloaded

# The stubs are behind their library: they do not know abort_with_status.
Context = Any
Admit = Callable[[str, Context], Admission]

STREAMS_MAX: Final = 256
_HEALTH: Final = f"/{health.SERVICE_NAME}/"
_REFLECTION: Final = f"/{reflection.SERVICE_NAME}/"


class Extras(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Stands before health and reflection; lets all else pass untouched."""

    def __init__(self, admit: Admit) -> None:
        self._admit = admit
        self._open = 0  # streams of both services

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or not handler.response_streaming:
            return handler
        if details.method.startswith(_REFLECTION):
            guarded = self._guarded(handler.stream_stream, "reflection")
            return grpc.stream_stream_rpc_method_handler(
                guarded, handler.request_deserializer, handler.response_serializer
            )
        if details.method.startswith(_HEALTH):
            guarded = self._guarded(handler.unary_stream, None)
            return grpc.unary_stream_rpc_method_handler(
                guarded, handler.request_deserializer, handler.response_serializer
            )
        return handler

    def _guarded(self, inner: Any, method: str | None) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def stream(request: Any, context: Context) -> Any:
            try:
                if method is not None:
                    self._admit(method, context)
                if self._open >= STREAMS_MAX:
                    raise Overloaded(f"{STREAMS_MAX} streams of health and reflection are open already", 10.0)
            except Exception as error:  # noqa: BLE001 - each is told to the caller
                await context.abort_with_status(refusal(error).grpc_status())
            self._open += 1
            try:
                answers = inner(request, context)
                # The health service writes by itself, reflection gives its answers to be written.
                if hasattr(answers, "__aiter__"):
                    async for answer in answers:
                        yield answer
                else:
                    await answers
            finally:
                self._open -= 1

        return stream
