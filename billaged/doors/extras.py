"""What gRPC brings ready-made, health and reflection, made to pass the gate and to leave room for usage.

Our own handlers pass the gate by themselves. These come as finished services, so each of their
handlers is put into another (an interceptor would stand before usage, too): reflection is for
callers with a role; health is open to all, and its streams, which may stay for ever, must not
take the places of RPCs that bring usage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from billaged.doors.arrivals import Arrivals
from billaged.doors.gate import Admission
from billaged.doors.status import refusal
from billaged.model.errors import Overloaded, RequestError

# The stubs are behind their libraries: they know neither abort_with_status nor reflection's aio.
Context = Any
_reflection: Any = reflection
Admit = Callable[[str, Context], Admission]

STREAMS_MAX: Final = 256
_REFLECTION: Final = f"/{reflection.SERVICE_NAME}/"


class Extras(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """The handlers of health and reflection, guarded. Asked after our own: usage does not pay for it."""

    def __init__(self, health_servicer: Any, service_names: tuple[str, ...], admit: Admit, arrivals: Arrivals) -> None:
        self._admit = admit
        self._arrivals = arrivals
        self._open = 0  # calls of both services
        made = _Collector()
        collector: Any = made
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, collector)
        names = (*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_reflection.aio.ReflectionServicer(names), collector)
        self._made = tuple(made.handlers)

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method, None for one that is of neither service."""
        for made in self._made:
            handler: Any = made.service(handler_call_details)
            if handler is not None:
                return self._guarded(handler_call_details.method, handler)
        return None

    def _guarded(self, method: str, handler: Any) -> Any:
        coders = (handler.request_deserializer, handler.response_serializer)
        if method.startswith(_REFLECTION):
            return grpc.stream_stream_rpc_method_handler(self._reflection(handler.stream_stream), *coders)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._health(handler.unary_stream), *coders)
        return grpc.stream_unary_rpc_method_handler(self._health(handler.unary_unary), *coders)

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


class _Collector:
    """Takes the place of a server to which generated code adds its handlers."""

    def __init__(self) -> None:
        self.handlers: list[Any] = []

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        self.handlers.extend(handlers)

    def add_registered_method_handlers(self, service_name: str, handlers: object) -> None:
        """The same handlers once more, for a look-up that only a real server has."""
