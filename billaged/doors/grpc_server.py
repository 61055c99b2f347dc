"""The gRPC door: the service under both its names, the summaries' stream, health and reflection.

Handlers are called when a call's headers come, and read its one message themselves: who may
not come in is refused before anything is waited for. They take and give raw bytes. So a
malformed message is told as INVALID_ARGUMENT by us and not as INTERNAL by gRPC, and the
journal holds a payload exactly as it came.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2

from billaged.doors.arrivals import MESSAGE_SECONDS, Arrivals
from billaged.doors.extras import Extras
from billaged.doors.gate import Admission, Gate
from billaged.doors.listening import GRPC_ADDRESS, GRPC_PORT, cannot_listen, join, open_socket
from billaged.doors.methods import BILLING_SERVICES, METHODS, SERVICES, STREAM_SERVICE, WATCH_METHOD, Method
from billaged.doors.ports import Intake, Meter, SummaryFeed, Tracer, Unmetered
from billaged.doors.receiver import Receiver
from billaged.doors.status import Refusal, refusal
from billaged.doors.watchers import STALLED_SECONDS, StalledWatcher, Watchers, watch_request
from billaged.identity.caller import Caller, plaintext_caller
from billaged.model.errors import NotServing
from billaged.settings import Grpc

# The stubs are behind their libraries: they know neither abort_with_status nor the health service's aio.
Context = Any
_health: Any = health
UnaryHandler = Callable[[Any, Context], Awaitable[bytes]]

_log: Final = logging.getLogger("billaged.doors")

_STATUS_SECONDS: Final = 1.0
_MILLISECOND_NANOS: Final = 1_000_000
# What gRPC takes for "no limit": the largest number of milliseconds it knows.
_NEVER: Final = 2**31 - 1
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class GrpcDoor:
    """A ``grpc.aio`` server in the running loop. Started once, stopped once."""

    def __init__(
        self,
        intake: Intake,
        feed: SummaryFeed | Watchers,
        settings: Grpc,
        gate: Gate,
        *,
        watcher_stalled_seconds: float = STALLED_SECONDS,
        message_seconds: float = MESSAGE_SECONDS,
        meter: Meter | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Doors that share ``Watchers`` as their feed share its places."""
        self._settings = settings
        self._gate = gate
        self._meter = Unmetered() if meter is None else meter
        self._tracer = tracer
        self._caller: Caller = plaintext_caller
        self._arrivals = Arrivals(message_seconds)
        self._receiver = Receiver(intake, settings.max_message_bytes)
        self._watchers = Watchers.over(feed, settings.watchers_max)
        self._watcher_stalled_seconds = watcher_stalled_seconds
        self._watching: set[asyncio.Task[Any]] = set()  # tasks of open WatchSummaries streams
        self._stopping = False
        self._health = _health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def start(self, credentials: grpc.ServerCredentials | None = None, caller: Caller = plaintext_caller) -> int:
        """Listen and serve; returns the port. ``credentials`` None is plaintext; ``caller`` tells who calls.

        Raises:
            StartError: the port cannot be had.
        """
        self._caller = caller
        server = grpc.aio.server(options=self._options(), maximum_concurrent_rpcs=self._settings.max_concurrent_rpcs)
        extras = Extras(self._health, SERVICES, self._admit, self._arrivals)
        server.add_generic_rpc_handlers((*self._handlers(), extras))
        await self._set_health(_NOT_SERVING)
        port = self._bind(server, credentials)
        self._arrivals.start()
        await server.start()
        self._server = server
        await self._set_health(_SERVING)
        return port

    @property
    def samples_refused(self) -> int:
        """Samples of requests that were decoded and then refused, since the start."""
        return self._receiver.samples_refused

    async def set_serving(self, *, serving: bool) -> None:
        """What health says while the server runs."""
        if not self._stopping:
            await self._set_health(_SERVING if serving else _NOT_SERVING)

    async def announce_stop(self) -> None:
        """Say NOT_SERVING to whoever asks for health, and go on serving."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing new, end watchers, let running requests finish within the grace, then cut them off."""
        await self.announce_stop()
        self._stopping = True
        for task in self._watching:
            task.cancel()
        if self._server is not None:
            await self._server.stop(grace_seconds)
        self._arrivals.stop()
        self._receiver.close()

    def _options(self) -> list[tuple[str, int]]:
        settings = self._settings
        return [
            # gRPC would else share the port with a second daemon, silently.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            # Both alike: between the two a request is refused at random.
            ("grpc.max_metadata_size", settings.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
            ("grpc.server_handshake_timeout_ms", settings.handshake_timeout_ns // _MILLISECOND_NANOS),
            ("grpc.max_allowed_incoming_connections", settings.max_connections),
            ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
            # A watcher whose machine has vanished keeps its place only so long.
            ("grpc.keepalive_time_ms", settings.keepalive_time_ns // _MILLISECOND_NANOS),
            ("grpc.keepalive_timeout_ms", settings.keepalive_timeout_ns // _MILLISECOND_NANOS),
            # Without a grace: what runs on an old connection ends by itself.
            ("grpc.max_connection_age_ms", settings.connection_max_age_ns // _MILLISECOND_NANOS or _NEVER),
            ("grpc.max_connection_idle_ms", settings.connection_max_idle_ns // _MILLISECOND_NANOS or _NEVER),
        ]

    def _bind(self, server: grpc.aio.Server, credentials: grpc.ServerCredentials | None) -> int:
        settings = self._settings
        # Tried before gRPC tries: it logs lines of its own and does not say why.
        open_socket(settings.address, settings.port, GRPC_PORT, GRPC_ADDRESS).close()
        place = join(settings.address, settings.port)
        try:
            if credentials is None:
                return server.add_insecure_port(place)
            return server.add_secure_port(place, credentials)
        except RuntimeError as error:
            raise cannot_listen(settings.address, settings.port, GRPC_PORT, GRPC_ADDRESS, error) from error

    def _handlers(self) -> list[Any]:
        def unary(service: str) -> dict[str, Any]:
            return {
                method.name: grpc.stream_unary_rpc_method_handler(self._unary(service, method)) for method in METHODS
            }

        watch: dict[str, Any] = {WATCH_METHOD: grpc.stream_stream_rpc_method_handler(self._watch)}
        return [
            *(grpc.method_handlers_generic_handler(service, unary(service)) for service in BILLING_SERVICES),
            grpc.method_handlers_generic_handler(STREAM_SERVICE, watch),
        ]

    def _admit(self, method: str, context: Context) -> Admission:
        caller = self._caller
        return self._gate.admit(method, lambda: caller(context), context.peer())

    def _unary(self, service: str, method: Method) -> UnaryHandler:
        receive, admit, name = self._receiver.receive, self._admit, method.name
        message = self._arrivals.message
        ended, now = self._meter.of(name), time.perf_counter
        begin = None if self._tracer is None else self._tracer.of(service, name)

        async def handle(requests: Any, context: Context) -> bytes:
            began = now()
            code, payload = "CANCELLED", b""
            trace = None if begin is None else begin(context.invocation_metadata() or ())
            try:
                # As soon as the headers are there: who may not come in must not hold a place while we wait.
                with admit(name, context) as admission:
                    if trace is not None:
                        trace.caller = admission.identity
                    payload = await message(context)
                    answer = await receive(method, payload, admission)
                    code = "OK"
                    return answer
            except Exception as error:  # noqa: BLE001 - each is told to the caller, and a bug is logged
                told = refusal(error)
                code = told.grpc_code.name
            finally:
                if code == "CANCELLED":
                    code = _cut_off(context)
                ended(code, now() - began)
                if trace is not None:
                    trace.end(code)
            # gRPC keeps an aborted call until a garbage collection, with its frames: without the message, then.
            del payload
            await context.abort_with_status(told.grpc_status())
            raise RuntimeError("gRPC raises from an abort")

        return handle

    async def _watch(self, requests: Any, context: Context) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("gRPC calls its handlers in tasks")
        self._watching.add(task)
        began, code = time.perf_counter(), "CANCELLED"
        trace = None
        if self._tracer is not None:
            trace = self._tracer.of(STREAM_SERVICE, WATCH_METHOD)(context.invocation_metadata() or ())
        # As in _unary; the error is told once it has gone, for its frames have the message too.
        told: Refusal | None = None
        try:
            await self._send_summaries(context)
            code = "OK"
        except StalledWatcher as error:
            code = refusal(error).grpc_code.name
            _log.warning("a watcher was %s", error)
            # The status waits in gRPC behind the message that is not read. The handler need not:
            # it ends as if cancelled, which alone makes gRPC send nothing more.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_SECONDS):
                    await context.abort_with_status(refusal(error).grpc_status())
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()
            told = refusal(NotServing("billaged is stopping"))
        except Exception as error:  # noqa: BLE001 - as in _unary
            told = refusal(error)
        finally:
            self._watching.discard(task)
            if told is not None:
                code = told.grpc_code.name
            elif code == "CANCELLED":
                code = _cut_off(context)
            self._meter.of(WATCH_METHOD)(code, time.perf_counter() - began)
            if trace is not None:
                trace.end(code)
        if told is not None:
            await context.abort_with_status(told.grpc_status())

    async def _send_summaries(self, context: Context) -> None:
        with self._admit(WATCH_METHOD, context) as admission:
            await self._send_to(admission, context)

    async def _send_to(self, admission: Admission, context: Context) -> None:
        request = watch_request(await self._arrivals.message(context), admission)
        async with contextlib.aclosing(self._watchers.watch(request, admission)) as summaries:
            # Answered at once: the first summary may be an interval away.
            await context.send_initial_metadata(())
            async for summary in summaries:
                try:
                    async with asyncio.timeout(self._watcher_stalled_seconds):
                        await context.write(summary.SerializeToString())
                except TimeoutError:
                    raise StalledWatcher(self._watcher_stalled_seconds) from None

    async def _set_health(self, status: Any) -> None:
        for service in ("", *SERVICES):
            await self._health.set(service, status)


def _cut_off(context: Context) -> str:
    """Why a call was ended by its other side: gRPC cancels the handler in both cases."""
    left = context.time_remaining()
    return "CANCELLED" if left is None or left > 0 else "DEADLINE_EXCEEDED"
