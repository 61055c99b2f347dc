"""A connection to a billaged: where it is, how it is secured, and one call on it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from billaged.client.methods import METHODS
from billaged.model.errors import BillagedError, SettingError
from billaged.model.records import Kind

# gRPC's own reconnecting goes up to two minutes; how long to wait is the caller's to decide.
_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class CallFailed(BillagedError):
    """The call was not answered with a response; whether it took effect is unknown.

    ``code`` is the gRPC status name, ``retry_after_seconds`` what the server asked for (None: nothing).
    """

    def __init__(self, code: str, details: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files; ``ca`` None trusts the system's roots, ``cert`` and ``key`` are this client's identity."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def fingerprint(self) -> tuple[tuple[int, int], ...]:
        """Changes when a file does; a file that is being replaced has none for a moment."""
        stats = [path.stat() for path in (self.ca, self.cert, self.key) if path is not None and path.exists()]
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in stats)

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises SettingError for a file that cannot be read, or half an identity."""
        if (self.cert is None) != (self.key is None):
            raise SettingError("--tls-cert and --tls-key belong together.", "Give both, or neither.")
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))


@dataclass(frozen=True, slots=True)
class Target:
    """``address`` is host:port (or unix:path); ``tls`` None is plaintext."""

    address: str
    tls: TlsFiles | None = None
    timeout_seconds: float = 10.0


class BillingClient:
    """The five RPCs over one channel. Any thread may call; ``close`` cancels what is in flight."""

    def __init__(self, target: Target) -> None:
        """Raises SettingError for TLS files that cannot be read. Connects with the first call."""
        self.target = target
        self._lock = threading.Lock()  # guards the three below
        self._closed = False
        self._fingerprint = target.tls.fingerprint() if target.tls else ()
        self._channel = self._open()

    def call(self, kind: Kind, request: bytes) -> Message:
        """Send one serialized request; returns the response message.

        Raises:
            CallFailed: any status but OK, with its code.
        """
        method = METHODS[kind]
        with self._lock:
            if self._closed:
                raise CallFailed("CANCELLED", "the client is closed")
            channel = self._channel
        try:
            # The stubs of grpc know no serializer of None, which sends bytes as they are.
            rpc: Any = channel.unary_unary(method.path, None, method.response.FromString)
            response: Message = rpc(request, timeout=self.target.timeout_seconds)
        except grpc.RpcError as error:
            raise _failure(error) from None
        except ValueError as error:  # what grpc says of a channel closed between the check and the call
            raise CallFailed("CANCELLED", str(error)) from None
        return response

    def reopen_if_rotated(self) -> bool:
        """Open a new channel if the TLS files have changed: grpc reads them only once. True if it did."""
        tls = self.target.tls
        if tls is None or (now := tls.fingerprint()) == self._fingerprint:
            return False
        fresh = self._open()
        with self._lock:
            old, self._channel, self._fingerprint = self._channel, fresh, now
            if self._closed:
                fresh.close()
        old.close()
        return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            channel = self._channel
        channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> grpc.Channel:
        if self.target.tls is None:
            return grpc.insecure_channel(self.target.address, options=_OPTIONS)
        name = self.target.tls.server_name
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", name)) if name else _OPTIONS
        return grpc.secure_channel(self.target.address, self.target.tls.credentials(), options=options)


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path is not None else None
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror}.") from error


def _failure(error: grpc.RpcError) -> CallFailed:
    # Every error that a channel raises is also the call that failed; the type only says the former.
    call: Any = error
    return CallFailed(call.code().name, call.details() or "no details", _retry_after_seconds(call))


def _retry_after_seconds(call: Any) -> float | None:
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # details that contradict the status: they are not to be trusted
        return None
    info = error_details_pb2.RetryInfo()
    for detail in status.details if status is not None else ():
        if detail.Unpack(info):
            return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return None
