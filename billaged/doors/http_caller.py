"""The caller of an HTTP request: a client certificate, a bearer token, or nobody in particular."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Any, Final

from billaged.identity.names import ANONYMOUS, PLAINTEXT, TOKEN
from billaged.identity.peer import PeerVerifier
from billaged.model.errors import Unauthenticated

# The ASGI extension under which the server tells the certificate that its peer has shown, if it has:
# ``{"leaf": PEM, "chain": PEM}``, bytes, the chain without the leaf.
PEER_EXTENSION: Final = "billaged.peer"

_AUTHORIZATION: Final = b"authorization"
_BEARER: Final = b"bearer"


class HttpCaller:
    """Called with a request's ASGI scope; gives the identity, proved by the clock of this moment."""

    def __init__(
        self, token: Callable[[], str | None], verifier: PeerVerifier | None, wall_nanos: Callable[[], int]
    ) -> None:
        """``token`` gives the one in force, None where there is none; ``verifier`` is for servers with TLS."""
        self._token = token
        self._verifier = verifier
        self._wall_nanos = wall_nanos

    def __call__(self, scope: Mapping[str, Any]) -> str:
        """
        Raises:
            Unauthenticated: what was shown does not hold, or nothing was shown where a token is needed.
        """
        if scope["scheme"] != "https":
            return self._of_plaintext(scope)
        peer = scope.get("extensions", {}).get(PEER_EXTENSION)
        if peer is not None:
            if self._verifier is None:
                raise Unauthenticated("nobody's certificate is trusted here")
            return self._verifier.verify(peer["leaf"], peer["chain"], self._wall_nanos())
        given = _authorizations(scope)
        return self._of_token(given, self._token()) if given else ANONYMOUS

    def _of_plaintext(self, scope: Mapping[str, Any]) -> str:
        token = self._token()
        if token is None:
            return PLAINTEXT
        given = _authorizations(scope)
        if not given:
            raise Unauthenticated("a bearer token is needed: Authorization: Bearer TOKEN")
        return self._of_token(given, token)

    def _of_token(self, given: list[bytes], token: str | None) -> str:
        if len(given) > 1:
            raise Unauthenticated("there are several Authorization headers")
        scheme, _, credentials = given[0].strip().partition(b" ")
        if scheme.lower() != _BEARER:
            raise Unauthenticated("the Authorization header is no bearer token: Authorization: Bearer TOKEN")
        # An empty one would be equal to no credentials at all.
        if not token or not hmac.compare_digest(credentials.strip(), token.encode()):
            raise Unauthenticated("the bearer token is not the right one")
        return TOKEN


def _authorizations(scope: Mapping[str, Any]) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == _AUTHORIZATION]
