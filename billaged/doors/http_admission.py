"""The gate as HTTP passes it: who calls and from where is in the request's ASGI scope."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from billaged.doors.gate import Admission, Gate

Scope = MutableMapping[str, Any]


class HttpAdmission:
    """Called with a bare method name and the scope; raises what ``Gate.admit`` raises."""

    def __init__(self, gate: Gate, caller: Callable[[Scope], str]) -> None:
        self._gate = gate
        self._caller = caller

    def __call__(self, method: str, scope: Scope) -> Admission:
        return self._gate.admit(method, lambda: self._caller(scope), _remote(scope))


def _remote(scope: Scope) -> str:
    """The connection's other end, spelt as gRPC does."""
    client = scope.get("client")
    if client is None:
        return "unknown"
    host, port = client
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
