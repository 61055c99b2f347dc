"""The Connect door: the same RPCs over plain HTTP, as JSON or protobuf (also gRPC-Web).

An ASGI application for requests to ``/<service>/<method>``. The protocol is connectrpc's;
what it answers without a body, or would take for a fault of its own, is answered here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import ExitStack, aclosing
from contextvars import ContextVar
from typing import Any, Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf.message import Message
from protobuf.wkt import Any as WireAny
from starlette.responses import JSONResponse

from billaged.doors.gate import Admission
from billaged.doors.json_codec import encode_json
from billaged.doors.methods import BILLING_SERVICES, METHODS, SERVICES, STREAM_SERVICE, WATCH_METHOD, Method
from billaged.doors.ports import Intake, Meter, SummaryFeed, Trace, Tracer, Unmetered
from billaged.doors.receiver import Receiver
from billaged.doors.status import refusal
from billaged.doors.watchers import STALLED_SECONDS, WATCHED_IDS_MAX, StalledWatcher, Watchers, watch_request
from billaged.model.errors import Forbidden, NotServing, RequestError, Unauthenticated
from billaged.settings import Grpc
from billaged.wire.billing.v1.usage_stream_pb2 import UsageSummary, WatchSummariesRequest

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Raises RequestError for who may not come in.
Admit = Callable[[str, Scope], Admission]

_log: Final = logging.getLogger("billaged.doors")

# Of the request that the current task answers: one task answers one request, and handlers do not see its scope.
_admitted: Final[ContextVar[Admission | RequestError]] = ContextVar("_admitted")

# What that request's handler has ended with.
_ended: Final[ContextVar[_Ended]] = ContextVar("_ended")
# What the protocol, or who is before it, answers a request with that no handler has seen to its end.
_CODE_NAMES: Final = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 405: "UNIMPLEMENTED",
    415: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 500: "INTERNAL", 501: "UNIMPLEMENTED",
    503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip

# The ASGI extension under which the server offers a function that cuts the request's connection at once.
CUT_EXTENSION: Final = "billaged.cut"

_UNARY_TYPES: Final = ("application/json", "application/proto")
_STREAM_TYPES: Final = ("application/connect+json", "application/connect+proto")
_WEB_TYPES: Final = ("application/grpc-web", "application/grpc-web+proto", "application/grpc-web+json")


class Body:
    """A request as it came: decoding a large one is not for the loop, so the codec leaves it alone.

    The protocol keeps a failed request until a garbage collection, so what is in it can be taken out.
    """

    def __init__(self, data: bytes, is_json: bool) -> None:
        self._data = data
        self.is_json = is_json

    def take(self) -> bytes:
        """What came. Gone afterwards."""
        data, self._data = self._data, b""
        return data


class BodyCodec:
    """Takes requests as they are; writes responses as JSON or protobuf."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_json = name == "json"

    def name(self) -> str:
        return self._name

    def decode(self, data: bytes | bytearray, message_class: type[Any]) -> Any:
        return Body(bytes(data), self._is_json)

    def encode(self, message: Message) -> bytes:
        return encode_json(message) if self._is_json else message.SerializeToString()


class _Ended:
    """How a request has ended: ``code`` as its handler says, else what its HTTP status means."""

    def __init__(self) -> None:
        self.code: str | None = None
        self._status: int | None = None

    @property
    def name(self) -> str:
        if self.code is not None:
            return self.code
        return "CANCELLED" if self._status is None else _CODE_NAMES.get(self._status, "UNKNOWN")

    def listening(self, send: Send) -> Send:
        async def send_on(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
            await send(message)

        return send_on


class _Application(ConnectASGIApplication["ConnectDoor"]):
    @property
    def path(self) -> str:
        return "/"


class ConnectDoor:
    """An ASGI application. It lives in the loop that serves it."""

    def __init__(
        self,
        intake: Intake,
        feed: SummaryFeed | Watchers,
        settings: Grpc,
        admit: Admit,
        *,
        watcher_stalled_seconds: float = STALLED_SECONDS,
        meter: Meter | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """``settings`` are the gRPC door's: a message may be as large here, and watchers share their places.

        ``admit`` is the gate: the admission for a bare method name and a request's scope.
        """
        self._admit = admit
        self._receiver = Receiver(intake, settings.max_message_bytes)
        self._watchers = Watchers.over(feed, settings.watchers_max)
        self._watcher_stalled_seconds = watcher_stalled_seconds
        self._watching: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._stream_path = f"/{STREAM_SERVICE}/{WATCH_METHOD}"
        self._endpoints = self._all_endpoints()
        of = (Unmetered() if meter is None else meter).of
        self._meters = {path: of(path.rpartition("/")[2]) for path in self._endpoints}
        self._begins = {}
        if tracer is not None:
            self._begins = {path: tracer.of(*path[1:].split("/")) for path in self._endpoints}
        self._application = _Application(
            service=self,
            endpoints=lambda door: door._endpoints,
            read_max_bytes=settings.max_message_bytes,
            codecs=(BodyCodec("json"), BodyCodec("proto")),
        )

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The paths under which the application belongs."""
        return tuple(f"/{service}" for service in SERVICES)

    @property
    def samples_refused(self) -> int:
        """Samples of requests that were decoded and then refused, since the start."""
        return self._receiver.samples_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        meter = self._meters.get(scope["path"])
        if meter is None:
            await self._serve(scope, receive, send)
            return
        began, ended = time.perf_counter(), _Ended()
        _ended.set(ended)
        trace = self._begins[scope["path"]](scope["headers"]) if self._begins else None
        try:
            await self._serve(scope, receive, ended.listening(send), trace)
        finally:
            meter(ended.name, time.perf_counter() - began)
            if trace is not None:
                trace.end(ended.name)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, trace: Trace | None = None) -> None:
        answer = self._refuse(scope)
        if answer is not None:
            await answer(scope, receive, send)
            return
        if scope["path"] == self._stream_path:
            send = self._impatient(scope, send)
        with ExitStack() as in_flight:
            # Before its body is read: a stranger's may be large.
            try:
                admission = self._admit(scope["path"].rpartition("/")[2], scope)
                _admitted.set(in_flight.enter_context(admission))
                if trace is not None:
                    trace.caller = admission.identity
            except (Unauthenticated, Forbidden) as error:
                await denied_response(error)(scope, receive, send)
                return
            except RequestError as error:
                # The protocol has a form for it, with its details.
                _admitted.set(error)
            # The protocol's own types are ASGI's, spelt as TypedDicts.
            application: Any = self._application
            try:
                await application(scope, receive, send)
            except StalledWatcher as error:
                _log.warning("a watcher over HTTP was %s", error)

    def stop(self) -> None:
        """End the watchers; what else is running goes on."""
        self._stopping = True
        for task in self._watching:
            task.cancel()

    def close(self) -> None:
        """Let the decoding threads end; nothing may be running any more."""
        self._receiver.close()

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        """The answer to what never was a request of the protocol, with a body that says so."""
        if scope["path"] not in self._endpoints:
            return error_response(404, Code.UNIMPLEMENTED, f"no RPC at {scope['path']}")
        if scope["method"] != "POST":
            return error_response(405, Code.UNIMPLEMENTED, "RPCs are called with POST", {"Allow": "POST"})
        try:
            headers = {name.decode("ascii"): value.decode("utf-8") for name, value in scope["headers"]}
        except UnicodeDecodeError:
            return error_response(400, Code.INVALID_ARGUMENT, "a header is not UTF-8")
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        types = (_STREAM_TYPES if scope["path"] == self._stream_path else _UNARY_TYPES) + _WEB_TYPES
        if content_type not in types:
            message = f"content-type must be one of {', '.join(types)}"
            return error_response(415, Code.INVALID_ARGUMENT, message, {"Accept-Post": ", ".join(types)})
        return None

    def _impatient(self, scope: Scope, send: Send) -> Send:
        """A ``send`` that cuts the connection of a watcher who does not read, as the server would wait for ever."""
        cut = scope.get("extensions", {}).get(CUT_EXTENSION, {}).get("cut")

        async def send_in_time(message: MutableMapping[str, Any]) -> None:
            try:
                async with asyncio.timeout(self._watcher_stalled_seconds):
                    await send(message)
            except TimeoutError:
                if cut is not None:
                    cut()
                raise StalledWatcher(self._watcher_stalled_seconds) from None

        return send_in_time

    def _all_endpoints(self) -> dict[str, Any]:
        endpoints: dict[str, Any] = {}
        for service in BILLING_SERVICES:
            for method in METHODS:
                info = _info(service, method.name, method.request, method.response, StreamType.UNARY)
                endpoints[f"/{service}/{method.name}"] = Endpoint.unary(info, self._unary(method))
        info = _info(STREAM_SERVICE, WATCH_METHOD, WatchSummariesRequest, UsageSummary, StreamType.SERVER_STREAM)
        endpoints[self._stream_path] = Endpoint.server_stream(info, self._watch)
        return endpoints

    def _unary(self, method: Method) -> Callable[[Any, Any], Awaitable[Message]]:
        async def handle(body: Body, context: object) -> Message:
            data = body.take()
            answering = self._answer(method, data, is_json=body.is_json)
            del data
            try:
                answer = await answering
                _ended.get().code = "OK"
                return answer
            except Exception as error:  # noqa: BLE001 - each is told to the caller, and a bug is logged
                told = connect_error(error)
                _ended.get().code = _name_of(told.code)
            # Not from within: the frames of the error have the message.
            raise told

        return handle

    async def _answer(self, method: Method, data: bytes, *, is_json: bool) -> Message:
        admission = _admission()
        payload = await self._receiver.serialized(method, data) if is_json else data
        response = method.response()
        response.ParseFromString(await self._receiver.receive(method, payload, admission))
        return response

    async def _watch(self, body: Body, context: object) -> AsyncIterator[UsageSummary]:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("the server calls its application in tasks")
        self._watching.add(task)
        told: ConnectError | None = None
        try:
            if self._stopping:
                raise NotServing("billaged is stopping")
            admission = _admission()
            request = await self._watch_request(body, admission)
            async with aclosing(self._watchers.watch(request, admission)) as summaries:
                async for summary in summaries:
                    yield summary
            _ended.get().code = "OK"
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()
            told = connect_error(NotServing("billaged is stopping"))
        except Exception as error:  # noqa: BLE001 - as in _unary
            told = connect_error(error)
        finally:
            self._watching.discard(task)
        if told is not None:
            _ended.get().code = _name_of(told.code)
            raise told

    async def _watch_request(self, body: Body, admission: Admission) -> WatchSummariesRequest:
        payload = body.take()
        if body.is_json:
            payload = await self._receiver.serialized_message(WatchSummariesRequest, payload, WATCHED_IDS_MAX)
        return watch_request(payload, admission)


def _name_of(code: Code) -> str:
    """As gRPC spells it."""
    return "CANCELLED" if code is Code.CANCELED else code.name


def _admission() -> Admission:
    admitted = _admitted.get()
    if isinstance(admitted, RequestError):
        raise admitted
    return admitted


def denied_response(error: Unauthenticated | Forbidden) -> JSONResponse:
    """The answer to who may not come in, before anything of the request was read."""
    told = refusal(error)
    if isinstance(error, Forbidden):
        return error_response(403, told.connect_code, told.message)
    return error_response(401, told.connect_code, told.message, {"WWW-Authenticate": "Bearer"})


def connect_error(error: Exception) -> ConnectError:
    """What to tell the caller whose request ended in this error."""
    if isinstance(error, ConnectError):
        return error
    told = refusal(error)
    details = [ErrorDetail(WireAny(type_url=item.type_url, value=item.value)) for item in told.packed_details()]
    return ConnectError(told.connect_code, told.message, details)


def error_response(status: int, code: Code, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in Connect's form, for what is no RPC too."""
    return JSONResponse({"code": code.value, "message": message}, status, headers)


def _info(
    service: str, name: str, request: type[Message], response: type[Message], stream: StreamType
) -> MethodInfo[Any, Any]:
    return MethodInfo(
        name=name,
        service_name=service,
        input=request,
        output=response,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=stream,
    )
