"""What gRPC brings ready-made, health and reflection, made to pass the gate and to leave room for usage.

Our own handlers pass the gate by themselves. These come as finished services, so an
interceptor stands before them: reflection is for callers with a role; health is open to all,
and its streams, which may stay for ever, must not take the places of RPCs that bring usage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from billaged.doors.arrivals import Arrivals
from billaged.doors.gate import Admission
from billaged.doors.status import refusal
from billaged.model.errors import Overloaded, RequestError

# The stubs are behind their library: they do not know abort_with_status.
Context = Any
Admit = Callable[[str, Context], Admission]

STREAMS_MAX: Final = 256
_HEALTH: Final = f"/{health.SERVICE_NAME}/"
_REFLECTION: Final = f"/{reflection.SERVICE_NAME}/"


class Extras(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Stands before health and reflection; lets all else pass untouched."""

    def __init__(self, admit: Admit, arrivals: Arrivals) -> None:
        self._admit = admit
        self._arrivals = arrivals
        self._open = 0  # calls of both services

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return handler
        coders = (handler.request_deserializer, handler.response_serializer)
        if details.method.startswith(_REFLECTION):
            return grpc.stream_stream_rpc_method_handler(self._reflection(handler.stream_stream), *coders)
        if details.method.startswith(_HEALTH):
            if handler.response_streaming:
                return grpc.stream_stream_rpc_method_handler(self._health(handler.unary_stream), *coders)
            return grpc.stream_unary_rpc_method_handler(self._health(handler.unary_unary), *coders)
        return handler

    def _reflection(self, inner: Any) -> Any:
        async def reflect(requests: Any, context: Context) -> Any:
            try:
                self._admit("reflection", context)
                self._begin()
            except Exception as error:  # noqa: BLE001 - each is told to the caller
                await context.abort_with_status(refusal(error).grpc_status())
            try:
                async for answer in inner(requests, context):
                    yield answer
            finally:
                self._open -= 1

        return reflect

    def _health(self, inner: Any) -> Any:
        async def ask(requests: Any, context: Context) -> Any:
            try:
                self._begin()
            except Overloaded as error:
                await context.abort_with_status(refusal(error).grpc_status())
            try:
                try:
                    request = await self._arrivals.message(context)
                except RequestError as error:
                    await context.abort_with_status(refusal(error).grpc_status())
                return await inner(request, context)
            finally:
                self._open -= 1

        return ask

    def _begin(self) -> None:
        if self._open >= STREAMS_MAX:
            raise Overloaded(f"{STREAMS_MAX} requests for health and reflection are open already", 10.0)
        self._open += 1
