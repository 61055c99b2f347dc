"""The receiver: a unary request's bytes in, its answer's bytes out, whichever door they came through.

What is decoded at once is bounded, whatever callers send: lists are counted before they are
decoded, and what is not small is decoded by one thread, one request after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from google.protobuf.message import Message

from billaged.doors.gate import Admission
from billaged.doors.json_codec import decode_json
from billaged.doors.methods import NO_METRICS, Method, processed
from billaged.doors.ports import Intake
from billaged.model.errors import Overloaded, RequestError
from billaged.model.records import MetricsBatch, Record
from billaged.wire.codec import decode
from billaged.wire.counting import check_lists, items_bound

# Decoding this much takes about 1 ms; more is done beside the loop, which all other callers share.
_LARGE_BYTES: Final = 64 * 1024
_LARGE_ITEMS: Final = 4_000
_LARGE_JSON_BYTES: Final = 4 * 1024
# This few bytes have few items, and are most requests.
_SMALL_BYTES: Final = 8 * 1024
# Only who has the interpreter's lock decodes: a second thread would take as much memory again and be no faster.
# What one holds at most, measured (peak RSS of a process that does nothing else, 4 MiB and 100,000 items of whatever
# kind costs most): 30 MiB for protobuf, 60 MiB for JSON. Each door has one. So with 16 clients who send the largest
# requests there are, the daemon grows by 220 MiB, most of it what came in (tests/test_large_requests.py).
_THREADS: Final = 1
_WAITING_MESSAGES_MAX: Final = 16

Result = TypeVar("Result")


class Receiver:
    """Decodes requests and hands them to the intake. One loop, any number of requests at once."""

    def __init__(self, intake: Intake, max_message_bytes: int) -> None:
        self._submit = intake.submit
        self._items_max = intake.items_max
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="billaged-decode")
        self._large_bytes = 0  # of the requests that are being decoded by the thread, or wait for it
        self._large_bytes_max = _WAITING_MESSAGES_MAX * max_message_bytes
        self.samples_refused = 0  # of requests that were decoded, for operators

    async def receive(self, method: Method, payload: bytes, admission: Admission) -> bytes:
        """The serialized response to who has been admitted for this method, once what it says is durable.

        Raises:
            RequestError: the request was not taken.
        """
        if len(payload) <= _SMALL_BYTES or _is_light(payload, method.request):
            record = decode(method.kind, payload)
        else:
            record = await self._beside(len(payload), lambda: self._decode(method, payload))
        try:
            await admission.check(record)
            if type(record) is MetricsBatch and not record.samples:
                return NO_METRICS
            await self._submit(record, payload, admission.identity)
        except RequestError:
            if type(record) is MetricsBatch:
                self.samples_refused += record.sample_count
            raise
        return processed(record.sample_count) if type(record) is MetricsBatch else method.success

    async def serialized(self, method: Method, text: bytes) -> bytes:
        """What ``receive`` takes, of the same request in JSON.

        Raises:
            InvalidField: it is no such request, or a list in it is too long.
            Overloaded: too much waits to be decoded already.
        """
        return await self.serialized_message(method.request, text, self._items_max.get(method.kind, 0))

    async def serialized_message(self, message_type: type[Message], text: bytes, items_max: int) -> bytes:
        """The same of any message, whose lists may hold so many items each."""
        if len(text) <= _LARGE_JSON_BYTES:
            return decode_json(text, message_type, items_max)
        return await self._beside(len(text), lambda: decode_json(text, message_type, items_max))

    def close(self) -> None:
        """Let the thread end once it is done with what it has."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decode(self, method: Method, payload: bytes) -> Record:
        check_lists(payload, method.request, self._items_max.get(method.kind, 0))
        return decode(method.kind, payload)

    async def _beside(self, size_bytes: int, work: Callable[[], Result]) -> Result:
        """Do work on a message of this size in the thread.

        Raises:
            Overloaded: too many bytes wait for it already.
        """
        if self._large_bytes + size_bytes > self._large_bytes_max:
            raise Overloaded("too many large requests are being decoded")
        self._large_bytes += size_bytes
        future = asyncio.get_running_loop().run_in_executor(self._threads, _outcome, work)
        # A caller that goes away leaves its message in the thread, so it counts until that is done with it.
        future.add_done_callback(lambda _: self._release(size_bytes))
        outcome = await asyncio.shield(future)
        if not isinstance(outcome, RequestError):
            return outcome
        try:
            raise outcome
        finally:
            # Else the error, this frame and the message would hold each other until they are collected.
            del outcome, future

    def _release(self, size_bytes: int) -> None:
        self._large_bytes -= size_bytes


def _is_light(payload: bytes, message_type: type[Message]) -> bool:
    return len(payload) <= _LARGE_BYTES and items_bound(payload, message_type) <= _LARGE_ITEMS


def _outcome(work: Callable[[], Result]) -> Result | RequestError:
    """What the work gives, or why not.

    The reason comes without its traceback, whose frames have the decoded message: a caller who
    is slow to hear it would keep that here.
    """
    try:
        return work()
    except RequestError as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
