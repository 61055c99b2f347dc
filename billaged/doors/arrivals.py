"""Arrivals: messages of calls that have begun. Whoever begins calls and says nothing must not keep their places.

One look a second at the oldest does for all: a timer for each call would take a tenth of the door's time.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc.aio

from billaged.model.errors import InvalidField, Overloaded

MESSAGE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 1.0
_EOF: Final = vars(grpc.aio)["EOF"]  # which the stubs do not know


class Arrivals:
    """Lives in the loop of its server, from ``start`` to ``stop``."""

    def __init__(self, message_seconds: float = MESSAGE_SECONDS) -> None:
        self._message_seconds = message_seconds
        self._waiting: dict[asyncio.Task[Any], float] = {}  # since when, loop time; the oldest first
        self._late: set[asyncio.Task[Any]] = set()  # those that were told to stop waiting
        self._look: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._look = self._loop.call_later(_LOOK_SECONDS, self._cut_late)

    def stop(self) -> None:
        if self._look is not None:
            self._look.cancel()

    async def message(self, context: Any) -> Any:
        """The message of a call that has one.

        Raises:
            Overloaded: it does not come.
            InvalidField: there is none.
        """
        task, loop = asyncio.current_task(), self._loop
        if task is None or loop is None:
            raise RuntimeError("gRPC calls its handlers in tasks, of a server that has been started")
        self._waiting[task] = loop.time()
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            task.uncancel()
            raise Overloaded(f"the request has not come within {self._message_seconds:g} s") from None
        finally:
            del self._waiting[task]
            self._late.discard(task)
        if message is _EOF:
            raise InvalidField("", "the request has no message")
        return message

    def _cut_late(self) -> None:
        if self._loop is None:
            return
        before = self._loop.time() - self._message_seconds
        for task, since in self._waiting.items():
            if since > before:
                break
            if task not in self._late:
                self._late.add(task)
                task.cancel()
        self._look = self._loop.call_later(_LOOK_SECONDS, self._cut_late)
