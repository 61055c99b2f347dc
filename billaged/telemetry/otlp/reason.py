"""Why an exporter has failed: it says so in its log only, at each attempt."""

from __future__ import annotations

import logging
from typing import Final

_CHARACTERS_MAX: Final = 300


class Reason(logging.Handler):
    """Takes an exporter's log for itself and keeps the last line of it, which the daemon's log is told once."""

    def __init__(self, exporter: object) -> None:
        super().__init__()
        self.last = ""
        logger = logging.getLogger(type(exporter).__module__)
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        # An attempt that is the last one says less than those before.
        if record.levelno < logging.ERROR or record.args:
            self.last = record.getMessage()[:_CHARACTERS_MAX]
