"""A thread that sends what there is, again and again, and says once when that begins to fail."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from billaged.telemetry.otlp.reason import Reason

_log: Final = logging.getLogger("billaged.telemetry")


class Sender:
    """``send`` gives whether it went well, None where there was nothing to send."""

    def __init__(
        self,
        what: str,
        send: Callable[[], bool | None],
        more: Callable[[], bool],
        give_up: Callable[[], None],
        reason: Reason,
        endpoint: str,
        wake: threading.Event,
        interval_seconds: float,
    ) -> None:
        """``more``: whether something is left that one ``send`` has no room for. ``give_up`` ends a ``send`` that
        tries again and again; there is none after it. ``wake`` set: there is enough before the interval has passed."""
        self._what = what
        self._send = send
        self._more = more
        self._give_up = give_up
        self._reason = reason
        self._endpoint = endpoint
        self._wake = wake
        self._interval_seconds = interval_seconds
        self._stopping = threading.Event()
        self._until_seconds = 0.0  # the end of a stop, monotonic
        self._failing = False
        # Not waited for at the end of the process: a collector may hold it.
        self._thread = threading.Thread(target=self._run, name=f"otlp-{what}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask_to_stop(self, until_seconds: float) -> None:
        """Let it send what is left, until this moment of the monotonic clock at most."""
        self._until_seconds = until_seconds
        self._stopping.set()
        self._wake.set()
        if self._failing:
            # A collector that is away does not come back within that time.
            self._give_up()

    def join(self) -> None:
        """Return once it has ended, or its time is over."""
        self._thread.join(max(0.0, self._until_seconds - time.monotonic()))
        if self._thread.is_alive():
            self._give_up()
            _log.warning("%s are left that could not be sent in time to %s", self._what, self._endpoint)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._interval_seconds)
            began = time.thread_time()
            self._once()
            # Callers choose what is traced. So it takes half of the interpreter's time at most; the rest is dropped.
            self._stopping.wait(time.thread_time() - began)
        # What came to be meanwhile, and what did not fit into one.
        while self._once() and self._more() and time.monotonic() < self._until_seconds:
            continue

    def _once(self) -> bool:
        """Whether something was sent."""
        try:
            sent = self._send()
        except Exception:  # noqa: BLE001 - said with its traceback
            # Whatever it is, it is not worth the daemon; the next one may go well.
            _log.exception("%s could not be sent to %s", self._what, self._endpoint)
            return False
        if sent is None:
            return False
        if not sent and not self._failing:
            why = {"reason": self._reason.last}
            _log.warning("%s cannot be sent to %s: dropped until they can", self._what, self._endpoint, extra=why)
        elif sent and self._failing:
            _log.info("%s are sent again to %s", self._what, self._endpoint)
        self._failing = not sent
        return sent
