"""Sends messages over gRPC and HTTP, many at once, and keeps what was answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from hashlib import blake2b
from typing import Any, NamedTuple

import grpc
import grpc.aio
import httpx
from daemon_calls import DEADLINE_SECONDS
from daemon_process import DaemonProcess
from google.protobuf import json_format

from billaged.wire.billing.v1 import billing_pb2 as pb
from fuzz.messages import FuzzedMessage

IN_FLIGHT = 256
CONNECTIONS = 4
# What else is told to a caller is the daemon's fault, and there is nothing wrong with this daemon.
CLEAN = frozenset({"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"})
# Then it is not worth going on; all that were in flight when a daemon died are among them.
FAILURES_MAX = 2 * IN_FLIGHT

Accepted = Counter[tuple[str, bytes]]
_CONTENT_TYPES = {"http-proto": "application/proto", "http-json": "application/json"}


class Answer(NamedTuple):
    """``accepted`` is the payload that must be in the journal; None where none may be."""

    status: str
    detail: str
    accepted: bytes | None = None


class Failure(NamedTuple):
    message: FuzzedMessage
    why: str


def digest(payload: bytes) -> bytes:
    """A payload in few bytes, for a million of them."""
    return blake2b(payload, digest_size=16).digest()


class Sender:
    """Of one run. ``accepted`` is by method and digest."""

    def __init__(self, daemon: DaemonProcess, on_answer: Callable[[int], None] = lambda count: None) -> None:
        self._daemon = daemon
        self._on_answer = on_answer
        self._calls: dict[tuple[int, str], Any] = {}
        self._channels: list[grpc.aio.Channel] = []
        self._http: httpx.AsyncClient
        self.answered = 0
        self.answers: Counter[tuple[str, str]] = Counter()
        self.accepted: Accepted = Counter()
        self.failures: list[Failure] = []

    async def send(self, messages: Iterable[FuzzedMessage]) -> None:
        """All of them, as long as not too much fails."""
        waiting = iter(messages)
        self._calls, self._channels = {}, []
        async with AsyncExitStack() as stack:
            for _ in range(CONNECTIONS):
                # Larger ones go, too: it is the daemon that has to refuse them.
                options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
                channel = grpc.aio.insecure_channel(self._daemon.grpc_address, options=options)
                self._channels.append(await stack.enter_async_context(channel))
            http = httpx.AsyncClient(base_url=self._daemon.http_url, timeout=DEADLINE_SECONDS)
            self._http = await stack.enter_async_context(http)
            await asyncio.gather(*(self._one_by_one(waiting) for _ in range(IN_FLIGHT)))

    async def _one_by_one(self, waiting: Iterable[FuzzedMessage]) -> None:
        for message in waiting:
            answer = await (self._over_grpc(message) if message.door == "grpc" else self._over_http(message))
            self.answered += 1
            self.answers[message.door, answer.status] += 1
            if answer.status not in CLEAN:
                self.failures.append(Failure(message, f"{answer.status}: {answer.detail}"))
            elif answer.accepted is not None:
                self.accepted[message.method, digest(answer.accepted)] += 1
            self._on_answer(self.answered)
            if len(self.failures) >= FAILURES_MAX:
                return

    async def _over_grpc(self, message: FuzzedMessage) -> Answer:
        connection = message.number % CONNECTIONS
        if (call := self._calls.get((connection, message.path))) is None:
            call = self._channels[connection].unary_unary(message.path)
            self._calls[connection, message.path] = call
        try:
            response = _response(message, await call(message.body, timeout=DEADLINE_SECONDS))
        except grpc.aio.AioRpcError as error:
            return Answer(error.code().name, str(error.details()))
        return _taken(message, message.body, response)

    async def _over_http(self, message: FuzzedMessage) -> Answer:
        headers = {"content-type": _CONTENT_TYPES[message.door]}
        try:
            answer = await self._http.post(message.path, content=message.body, headers=headers)
        except httpx.HTTPError as error:
            return Answer(type(error).__name__, str(error))
        if answer.status_code != 200:
            try:
                told = answer.json()
                return Answer(told["code"].upper(), told["message"])
            except (ValueError, KeyError, TypeError):
                return Answer(f"HTTP {answer.status_code}", answer.text)
        if message.door == "http-proto":
            return _taken(message, message.body, _response(message, answer.content))
        request = json_format.Parse(message.body, getattr(pb, f"{message.method}Request")())
        response = json_format.Parse(answer.content, getattr(pb, f"{message.method}Response")())
        return _taken(message, request.SerializeToString(), response)


def _response(message: FuzzedMessage, content: bytes) -> Any:
    return getattr(pb, f"{message.method}Response").FromString(content)


def _taken(message: FuzzedMessage, payload: bytes, response: Any) -> Answer:
    """Success, and of samples as many as protobuf itself finds in the payload; or that there were none."""
    if not isinstance(response, pb.SendMetricsBatchResponse):
        return Answer("OK", "", payload) if response.success else Answer("NO SUCCESS", str(response))
    samples = len(_parsed(payload).metrics)
    expected = (True, f"processed {samples} metrics") if samples else (False, "no metrics provided")
    if (response.success, response.message) != expected:
        return Answer("WRONG ANSWER", f"{response.success}, {response.message!r} to {samples} samples")
    return Answer("OK", "", payload if samples else None)


def _parsed(payload: bytes) -> pb.SendMetricsBatchRequest:
    return pb.SendMetricsBatchRequest.FromString(payload)
