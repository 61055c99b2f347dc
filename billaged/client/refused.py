"""What the server will never take, kept for whoever finds out why."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from billaged.client.damage import sync_directory
from billaged.client.methods import METHODS
from billaged.client.segment import SpoolRecord
from billaged.model.errors import BillagedError
from billaged.model.time import format_instant

FILE_BYTES: Final = 16 * 2**20
MAX_REFUSED_BYTES: Final = 2**30


class NotKept(BillagedError):
    """The record was not written down. The message says why; ``hint`` what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class RefusedFile:
    """Files of JSON lines: when, which method, the answer, the request.

    The newest lines are in the file of that name; a full one gets the next number
    (``.1`` is the oldest). None is ever written over or deleted: they are the only trace of that
    usage. Together they have a bound.
    """

    def __init__(self, path: Path, file_bytes: int = FILE_BYTES, max_bytes: int = MAX_REFUSED_BYTES) -> None:
        self.path = path
        self._file_bytes = file_bytes
        self._max_bytes = max_bytes

    def add(self, now_ns: int, record: SpoolRecord, answer: str) -> None:
        """Returns when the line is durable. Raises NotKept."""
        line = {
            "time": format_instant(now_ns),
            "method": METHODS[record.kind].name,
            "answer": answer,
            **_shown(record),
        }
        data = json.dumps(line).encode() + b"\n"
        try:
            self._add(data)
        except OSError as error:
            raise NotKept(f"{self.path}: {error.strerror}", "It must be a file that can be written.") from error

    def _add(self, data: bytes) -> None:
        files = {path: path.stat().st_size for path in self.path.parent.glob(f"{self.path.name}*")}
        used_bytes = sum(files.values())
        if used_bytes + len(data) > self._max_bytes:
            raise NotKept(
                f"{self.path.name} and its older files have reached {self._max_bytes} bytes",
                f"Find out why usage is refused, then move {self.path.parent / self.path.name}* elsewhere.",
            )
        size_bytes = files.get(self.path, 0)
        if size_bytes and size_bytes + len(data) > self._file_bytes:
            numbers = [int(suffix) for path in files if (suffix := path.suffix[1:]).isdecimal()]
            self.path.rename(self.path.with_name(f"{self.path.name}.{max(numbers, default=0) + 1}"))
            size_bytes = 0
        self._append(data, size_bytes)
        if not size_bytes:
            sync_directory(self.path.parent)

    def _append(self, data: bytes, size_bytes: int) -> None:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if size_bytes and os.pread(file, 1, size_bytes - 1) != b"\n":  # a crash has cut the last line short
                data = b"\n" + data
            try:
                written = 0
                while written < len(data):
                    written += os.write(file, data[written:])
                os.fsync(file)
            except OSError:
                # Only to leave no half line; what is reported is the first error.
                with contextlib.suppress(OSError):
                    os.ftruncate(file, size_bytes)
                raise
        finally:
            os.close(file)


def _shown(record: SpoolRecord) -> dict[str, Any]:
    try:
        return {"request": json_format.MessageToDict(METHODS[record.kind].request.FromString(record.payload))}
    except (DecodeError, json_format.Error, ValueError):  # as it is, where it is no request that JSON can show
        return {"payload": base64.b64encode(record.payload).decode()}
