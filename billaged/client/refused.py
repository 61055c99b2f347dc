"""What the server will never take, kept for whoever finds out why."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from billaged.client.methods import METHODS
from billaged.model.records import Kind
from billaged.model.time import format_instant

MAX_REFUSED_BYTES: Final = 16 * 2**20


class RefusedFile:
    """A file of JSON lines: when, which method, the answer, the request. One older file is kept beside it (``.1``)."""

    def __init__(self, path: Path, max_bytes: int = MAX_REFUSED_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes

    def add(self, now_ns: int, kind: Kind, request: Message, answer: str) -> None:
        """Raises OSError if it cannot be written."""
        line = {
            "time": format_instant(now_ns),
            "method": METHODS[kind].name,
            "answer": answer,
            "request": MessageToDict(request),
        }
        if self.path.exists() and self.path.stat().st_size >= self._max_bytes:
            self.path.replace(self.path.with_name(self.path.name + ".1"))
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "a", encoding="utf-8") as text:
            text.write(json.dumps(line) + "\n")
            text.flush()
            os.fsync(file)
