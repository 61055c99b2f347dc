"""A SPIFFE agent for tests: the Workload API on a unix socket, that does what it is told, also what it should not.

It has threads of its own, so tests of either kind, with an event loop or without, use it alike::

    domain = TrustDomain("example.org")
    with FakeWorkloadApi(Update.of(domain)) as api:
        source = X509Source(socket_path=api.address, timeout_in_seconds=10)
        domain.rotate()
        api.push(Update.of(domain))
"""

from __future__ import annotations

import queue
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from google.protobuf.message import Message
from spiffe._proto import workload_pb2, workload_pb2_grpc
from spiffe_material import Svid, TrustDomain

DEADLINE_SECONDS = 20.0
STREAMS_MAX = 64
# What the kernel takes for the path of a unix socket.
SOCKET_PATH_BYTES_MAX = 107
GARBAGE = b"this is no certificate"


@dataclass(frozen=True)
class Entry:
    """One SVID of an update, in bytes, so that each of them can be wrong."""

    spiffe_id: str
    chain: bytes
    key: bytes
    bundle: bytes


@dataclass(frozen=True)
class Update:
    """What the API says at a time. ``federated`` are the bundles of other trust domains, by their id."""

    entries: tuple[Entry, ...]
    federated: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, domain: TrustDomain, *svids: Svid, federated: tuple[TrustDomain, ...] = ()) -> Self:
        """Good material: these SVIDs (one newly minted if there is none) with the domain's bundle of now."""
        entries = tuple(
            Entry(svid.spiffe_id, svid.chain_der, svid.key_der, domain.bundle_der)
            for svid in svids or (domain.mint("/billaged", names=("localhost", "127.0.0.1")),)
        )
        return cls(entries, {other.id: other.bundle_der for other in federated})

    # --- the same, but wrong -----------------------------------------------------

    def without_svids(self) -> Self:
        return replace(self, entries=())

    def with_first(self, **parts: Any) -> Self:
        """Other parts in the first entry: ``with_first(bundle=b"")``."""
        return replace(self, entries=(replace(self.entries[0], **parts), *self.entries[1:]))

    def with_garbage(self) -> Self:
        """Bytes that are no certificate."""
        return self.with_first(chain=GARBAGE)

    def with_anothers_key(self) -> Self:
        """A good key, but not the certificate's."""
        return self.with_first(key=TrustDomain().mint().key_der)

    def with_empty_federated_bundle(self, trust_domain_id: str = "spiffe://empty.example") -> Self:
        return replace(self, federated={**self.federated, trust_domain_id: b""})

    # --- on the wire -------------------------------------------------------------

    def svid_response(self) -> Message:
        return workload_pb2.X509SVIDResponse(
            svids=[
                workload_pb2.X509SVID(
                    spiffe_id=entry.spiffe_id, x509_svid=entry.chain, x509_svid_key=entry.key, bundle=entry.bundle
                )
                for entry in self.entries
            ],
            federated_bundles=self.federated,
        )

    def bundles_response(self) -> Message:
        own = {"spiffe://" + entry.spiffe_id.split("/")[2]: entry.bundle for entry in self.entries}
        return workload_pb2.X509BundlesResponse(bundles={**self.federated, **own})


class Refusal(NamedTuple):
    """A status instead of an update."""

    code: grpc.StatusCode
    details: str


NO_IDENTITY = Refusal(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")

# What a stream is told: an update to send, a status to end with, or that its caller has left (None).
_Word = Update | Refusal | None


class FakeWorkloadApi:
    """Serves from its construction on. ``close`` (or leaving its context) ends it and removes its socket.

    New streams are told what was said last by the constructor, ``set``, ``push``, ``refuse`` or ``hang``.
    """

    def __init__(self, update: Update | None = None, socket_path: Path | None = None) -> None:
        """Without an update it has nothing to say: as after ``hang``. Without a path it makes a short one."""
        self._folder = None if socket_path else Path(tempfile.mkdtemp(prefix="workload-api-"))
        self.socket_path = socket_path or Path(str(self._folder)) / "agent.sock"
        if len(bytes(self.socket_path)) > SOCKET_PATH_BYTES_MAX:
            raise ValueError(f"too long for a socket's path: {self.socket_path}")
        # Guards what follows; told of every change of it.
        self._news = threading.Condition()
        self._current: _Word = update
        self._streams: set[queue.SimpleQueue[_Word]] = set()
        self._streams_opened = 0
        self._calls_without_header = 0
        self._server: grpc.Server | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._deaf: _DeafSocket | None = None
        self.come_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.go_away()
        if self._folder is not None:
            shutil.rmtree(self._folder)

    @property
    def address(self) -> str:
        """As SPIFFE_ENDPOINT_SOCKET has it."""
        return f"unix://{self.socket_path}"

    # --- what it says ------------------------------------------------------------

    def set(self, update: Update) -> None:
        """For streams that come; those that are open hear nothing."""
        with self._news:
            self._current = update

    def push(self, update: Update) -> None:
        """For the open streams and those that come."""
        self._tell(update)

    def refuse(self, refusal: Refusal = NO_IDENTITY) -> None:
        """End the open streams, and those that come, with a status."""
        self._tell(refusal)

    def hang(self) -> None:
        """Take the streams that come and say nothing on them; the open ones stay as they are."""
        with self._news:
            self._current = None

    def _tell(self, word: _Word) -> None:
        with self._news:
            self._current = word
            for stream in self._streams:
                stream.put(word)

    # --- whether it is there -----------------------------------------------------

    def go_away(self) -> None:
        """Close every connection and remove the socket, as an agent that ends. Harmless when it is away."""
        if self._server is not None and self._threads is not None:
            self._server.stop(0).wait()
            self._threads.shutdown()
            self._server = self._threads = None
        if self._deaf is not None:
            self._deaf.close()
            self._deaf = None
        self.socket_path.unlink(missing_ok=True)

    def come_back(self) -> None:
        """Serve on the same path again. Harmless when it is there."""
        if self._server is not None:
            return
        self.go_away()
        # A stream holds a thread while it is open: one too many has to be refused, or it would wait in silence.
        self._threads = ThreadPoolExecutor(STREAMS_MAX, "fake-workload-api")
        server = grpc.server(self._threads, maximum_concurrent_rpcs=STREAMS_MAX)
        workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(_Servicer(self), server)
        server.add_insecure_port(f"unix:{self.socket_path}")
        server.start()
        self._server = server

    def go_deaf(self) -> None:
        """Close every connection; take new ones and never answer a byte on them, until ``come_back``."""
        self.go_away()
        self._deaf = _DeafSocket(self.socket_path)

    # --- what it has seen --------------------------------------------------------

    @property
    def streams_opened(self) -> int:
        """Streams so far, those that were refused among them."""
        with self._news:
            return self._streams_opened

    @property
    def streams_open(self) -> int:
        with self._news:
            return len(self._streams)

    @property
    def calls_without_header(self) -> int:
        """Calls that lacked ``workload.spiffe.io: true`` and were refused for it."""
        with self._news:
            return self._calls_without_header

    def wait_for_streams(self, opened: int) -> None:
        """Until so many streams were opened since the start."""
        self._wait(lambda: self._streams_opened >= opened, f"{opened} streams opened")

    def wait_for_open_streams(self, count: int) -> None:
        """Until exactly so many streams are open."""
        self._wait(lambda: len(self._streams) == count, f"{count} streams open")

    def wait_for_connections(self, count: int) -> None:
        """Until so many connections came while it was deaf."""
        if self._deaf is None:
            raise AssertionError("it is not deaf")
        deaf = self._deaf
        deadline = time.monotonic() + DEADLINE_SECONDS
        while deaf.connections < count:
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {DEADLINE_SECONDS} s: {count} connections; {deaf.connections} came")
            deaf.news.wait(0.1)
            deaf.news.clear()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._news:
            if not self._news.wait_for(condition, DEADLINE_SECONDS):
                seen = f"{self._streams_opened} opened, {len(self._streams)} open"
                raise AssertionError(f"not within {DEADLINE_SECONDS} s: {what}; {seen}")

    # --- one stream --------------------------------------------------------------

    def words(self, context: grpc.ServicerContext) -> Iterator[Update]:
        """What one stream hears, until its caller leaves or it is refused."""
        if ("workload.spiffe.io", "true") not in context.invocation_metadata():
            with self._news:
                self._calls_without_header += 1
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        stream: queue.SimpleQueue[_Word] = queue.SimpleQueue()
        with self._news:
            self._streams_opened += 1
            self._streams.add(stream)
            if self._current is not None:
                stream.put(self._current)
            self._news.notify_all()
        try:
            if not context.add_callback(lambda: stream.put(None)):
                return  # its caller left before it began
            while (word := stream.get()) is not None:
                if isinstance(word, Refusal):
                    context.abort(word.code, word.details)
                yield word
        finally:
            with self._news:
                self._streams.discard(stream)
                self._news.notify_all()


class _Servicer(workload_pb2_grpc.SpiffeWorkloadAPIServicer):  # type: ignore[misc]
    """The profile of X.509; the one of JWT is not there, as in an agent that has it switched off."""

    def __init__(self, api: FakeWorkloadApi) -> None:
        self._api = api

    def FetchX509SVID(self, request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
        for update in self._api.words(context):
            yield update.svid_response()

    def FetchX509Bundles(self, request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
        for update in self._api.words(context):
            yield update.bundles_response()

    def _switched_off(self, request: Message, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no JWT here")

    FetchJWTSVID = FetchJWTBundles = ValidateJWTSVID = _switched_off


class _DeafSocket:
    """Takes connections and holds them open without a byte."""

    def __init__(self, path: Path) -> None:
        self.news = threading.Event()
        self._held: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, name="deaf-socket", daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        return len(self._held)

    def _accept(self) -> None:
        with suppress(OSError):  # accepting ends when the listener is shut down
            while True:
                connection, _ = self._listener.accept()
                self._held.append(connection)
                self.news.set()

    def close(self) -> None:
        # Closing alone would leave the other thread in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for each in (self._listener, *self._held):
            each.close()
