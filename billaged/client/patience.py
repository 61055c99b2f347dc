"""A source whose first material may come late: metering does not wait for it."""

from __future__ import annotations

import threading

from billaged.identity.keeper import Keeper, Source
from billaged.identity.material import BadMaterial


class PatientSource:
    """Another source, started again every interval until it starts; why it does not is the keeper's to say."""

    def __init__(self, source: Source, keeper: Keeper, interval_seconds: float) -> None:
        self._source = source
        self._keeper = keeper
        self._interval_seconds = interval_seconds
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None  # only where the first start failed

    def start(self) -> None:
        if self._is_started():
            return
        self._thread = threading.Thread(target=self._start_later, name="billaged-identity-start", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        self._source.stop()

    def look(self) -> None:
        self._source.look()

    def _start_later(self) -> None:
        while not self._ending.wait(self._interval_seconds):
            if self._is_started():
                return

    def _is_started(self) -> bool:
        try:
            self._source.start()
        except BadMaterial as error:
            self._keeper.refuse(error)
            return False
        return True
