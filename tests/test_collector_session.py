"""What a collector may answer: nothing of it takes the memory or the time of the daemon."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import pytest
import requests

from billaged.telemetry.otlp.session import CollectorSession

Answer = Callable[[socket.socket], None]
MIB = 2**20


def answering(content: bytes, header: str = "") -> Answer:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n{header}\r\n"
    return lambda client: client.sendall(head.encode() + content)


def endless(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        client.sendall(bytes(MIB))


def trickling(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        client.sendall(b".")
        # Each time well before whoever reads gives up waiting for something.
        with suppress(TimeoutError):
            client.recv(1)


def breaking_off(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nno more")
    client.shutdown(socket.SHUT_RDWR)


def falling_silent(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nno more")


def elsewhere(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: https://example.org/\r\nContent-Length: 0\r\n\r\n")


class Collector(NamedTuple):
    url: str
    # Whence each connection came.
    connections: list[tuple[str, int]]


@contextmanager
def collector(answer: Answer) -> Iterator[Collector]:
    """Answers each request of one connection after the other."""
    connections = []
    ending = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, whence = server.accept()
                    connections.append(whence)
                    client.settimeout(0.1)
                    with client, suppress(OSError):
                        while True:
                            wait_for_request(client, ending)
                            answer(client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Collector(f"http://127.0.0.1:{server.getsockname()[1]}/v1/traces", connections)
        finally:
            ending.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            assert not thread.is_alive()


def wait_for_request(client: socket.socket, ending: threading.Event) -> None:
    read = b""
    while not read.endswith(b"\r\n\r\nspans"):
        if ending.is_set():
            raise ConnectionAbortedError
        with suppress(TimeoutError):
            part = client.recv(4096)
            if not part:
                raise ConnectionResetError
            read += part


def post(url: str) -> requests.Response:
    with CollectorSession() as session:
        return session.request("POST", url, data=b"spans", timeout=0.5, allow_redirects=False)


@pytest.mark.parametrize("content", [b"", b"x" * 1000, gzip.compress(bytes(64 * MIB))])
def test_a_short_answer_is_read_as_it_comes_and_the_connection_used_again(content: bytes) -> None:
    with (
        collector(answering(content, "Content-Encoding: gzip\r\n")) as (url, connections),
        CollectorSession() as session,
    ):
        for _ in range(3):
            answer = session.request("POST", url, data=b"spans", timeout=5.0, allow_redirects=False)
            assert answer.status_code == 200
    assert len(connections) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (endless, "longer than 262144 bytes"),
        (answering(bytes(MIB)), "longer than 262144 bytes"),
        (trickling, "did not end in time"),
        (breaking_off, "broke off"),
        (falling_silent, "broke off: .* timed out"),
        (elsewhere, "307 Temporary Redirect: it is at another address"),
    ],
)
def test_any_other_is_none(answer: Answer, said: str) -> None:
    began = time.monotonic()
    with collector(answer) as (url, _), pytest.raises(requests.RequestException, match=said):
        post(url)
    assert time.monotonic() - began < 5.0
