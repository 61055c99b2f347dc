"""A client of a billaged: where it is, how it is reached, and one call to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import DecodeError, Message

from billaged.client.connection import Connection
from billaged.client.failure import NO_IDENTITY, CallFailed, code_and_details, retry_after_seconds
from billaged.client.hint import View
from billaged.client.methods import METHODS
from billaged.client.tls import NoTrust, Tls, identity_of
from billaged.identity.keeper import Keeper
from billaged.identity.material import Material, text
from billaged.model.records import Kind

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """``address`` is host:port (or unix:path); ``tls`` None is plaintext."""

    address: str
    tls: Tls | None = None
    timeout_seconds: float = 10.0


class BillingClient:
    """The five RPCs. Any thread may call; ``close`` cancels what is in flight.

    Each call is made with the newest identity and trust. When these change, new calls take a new
    connection, and the old one is closed after its last.
    """

    def __init__(self, target: Target, is_patient: bool = False) -> None:
        """Connects with the first call. Patient, it waits for TLS files that cannot be used yet.

        Raises:
            BadMaterial: they cannot be used, and it is not patient.
        """
        self.target = target
        self._keeper = Keeper()
        self._news = threading.Event()  # other material
        self._keeper.listen(self._news.set)
        self._lock = threading.Lock()  # guards what follows, and each connection
        self._closed = False
        self._connection: Connection | None = None  # for new calls
        self._retired: set[Connection] = set()  # with the last calls still under way
        self._tried: Material | None = None  # what the newest call was made with, or would have been
        self._source = target.tls.source(self._keeper, is_patient) if target.tls is not None else None
        if self._source is not None:
            self._source.start()

    def call(self, kind: Kind, request: bytes) -> Message:
        """Send one serialized request; returns the response message.

        Raises:
            CallFailed: any status but OK, with its code; INTERNAL for an answer that is none; NO_IDENTITY
                where there is nothing to connect with.
        """
        method = METHODS[kind]
        with self._connected() as connection:
            try:
                # The stubs of grpc know no serializer of None, which sends bytes as they are.
                rpc: Any = connection.channel.unary_unary(method.path, None, None)
                answer: bytes = rpc(request, timeout=self.target.timeout_seconds)
            except grpc.RpcError as error:
                raise self._failure(error, connection.material) from None
            except ValueError as error:  # what grpc says of a channel closed between the check and the call
                raise CallFailed("CANCELLED", str(error)) from None
        try:
            # Not left to gRPC, which writes a traceback into the log for an answer that is garbage.
            return method.response.FromString(answer)
        except DecodeError:
            raise CallFailed("INTERNAL", f"the answer is no {method.response.DESCRIPTOR.name}") from None

    def wait_for_identity(self) -> None:
        """Until a call can be made: an identity from a SPIFFE agent takes its time.

        Raises:
            CallFailed: NO_IDENTITY, after the target's timeout.
        """
        deadline = time.monotonic() + self.target.timeout_seconds
        is_over = False
        while True:
            self._news.clear()
            try:
                with self._connected():
                    return
            except CallFailed as failure:
                # Asked once more at the end: why there is none may have become known only meanwhile.
                if failure.code != NO_IDENTITY or is_over:
                    raise
            is_over = not self._news.wait(max(0.0, deadline - time.monotonic()))

    def has_news(self) -> bool:
        """Whether the next call is made with other material than the last one, so that it may end otherwise."""
        return self._keeper.material is not self._tried

    def warn_of_expiry(self) -> None:
        """Log it when the own certificate should have been renewed. To be called every few seconds."""
        self._keeper.warn_of_expiry()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for connection in self._retired | ({self._connection} if self._connection else set()):
                connection.close()
        if self._source is not None:
            self._source.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        with self._lock:
            if self._closed:
                raise CallFailed("CANCELLED", "the client is closed")
            connection = self._newest()
            connection.begin()
        try:
            yield connection
        finally:
            with self._lock:
                connection.end()
                if connection.is_done:
                    self._retired.discard(connection)

    def _newest(self) -> Connection:
        material = self._tried = self._keeper.material
        if self._connection is not None and self._connection.material is material:
            return self._connection
        if self._connection is not None:
            # Before the new one is made: if that fails, the old one's trust has been withdrawn.
            self._connection.retire()
            if not self._connection.is_done:
                self._retired.add(self._connection)
            self._connection = None
        try:
            self._connection = Connection(self.target.address, self.target.tls, material)
        except NoTrust as error:
            problem = self._keeper.status().problem if material is None else None
            raise CallFailed(NO_IDENTITY, (problem or str(error)).rstrip("."), hint=error.hint) from error
        if material is not None and material.valid_until is not None:
            shown = identity_of(material) or material.name
            _log.info("connecting to %s as %s, until %s", self.target.address, shown, text(material.valid_until))
        return self._connection

    def _failure(self, error: grpc.RpcError, material: Material | None) -> CallFailed:
        code, details = code_and_details(error)
        view = View(self.target.address, self.target.tls, material, datetime.now(UTC))
        return CallFailed(code, details, retry_after_seconds(error), view.hint(code, details))
