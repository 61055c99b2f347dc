"""The receiver: a unary request's bytes in, its answer's bytes out, whichever door they came through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from billaged.doors.gate import Admission
from billaged.doors.methods import NO_METRICS, Method, processed
from billaged.doors.ports import Intake
from billaged.model.errors import Overloaded
from billaged.model.records import MetricsBatch
from billaged.wire.codec import decode

# Decoding this much takes about 1 ms; more is done beside the loop, which all other callers share.
LARGE_BYTES: Final = 64 * 1024
# A message can take 100 times its bytes once it is decoded: few at once, and few waiting for that.
_THREADS: Final = 2
_WAITING_MESSAGES_MAX: Final = 16

Result = TypeVar("Result")


class Receiver:
    """Decodes requests and hands them to the intake. One loop, any number of requests at once."""

    def __init__(self, intake: Intake, max_message_bytes: int) -> None:
        self._submit = intake.submit
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="billaged-decode")
        self._large_bytes = 0  # of the requests that are being decoded by the threads, or wait for it
        self._large_bytes_max = _WAITING_MESSAGES_MAX * max_message_bytes

    async def receive(self, method: Method, payload: bytes, admission: Admission) -> bytes:
        """The serialized response to who has been admitted for this method, once what it says is durable.

        Raises:
            RequestError: the request was not taken.
        """
        if len(payload) <= LARGE_BYTES:
            record = decode(method.kind, payload)
        else:
            record = await self.beside(len(payload), lambda: decode(method.kind, payload))
        await admission.check(record)
        if type(record) is MetricsBatch:
            if not record.samples:
                return NO_METRICS
            await self._submit(record, payload, admission.identity)
            return processed(record.sample_count)
        await self._submit(record, payload, admission.identity)
        return method.success

    async def beside(self, size_bytes: int, work: Callable[[], Result]) -> Result:
        """Do work on a message of this size in another thread.

        Raises:
            Overloaded: too many bytes wait for it already.
        """
        if self._large_bytes + size_bytes > self._large_bytes_max:
            raise Overloaded("too many large requests are being decoded")
        self._large_bytes += size_bytes
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        # A caller that goes away leaves its message in the threads, so it counts until they are done with it.
        future.add_done_callback(lambda _: self._release(size_bytes))
        return await asyncio.shield(future)

    def close(self) -> None:
        """Let the threads end once they are done with what they have."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _release(self, size_bytes: int) -> None:
        self._large_bytes -= size_bytes
