"""Who calls over HTTP, from what the server puts into a request's scope. Over real connections: test_http_tls.py."""

from __future__ import annotations

import hmac
import time
from typing import Any

import pytest
from tls_material import DAY, SERVER, Authority, lasting, pem_of

from billaged.doors.http_caller import PEER_EXTENSION, HttpCaller
from billaged.identity.keeper import Keeper
from billaged.identity.material import Material, certificates
from billaged.identity.peer import PeerVerifier
from billaged.identity.trust import ANY_DOMAIN, Trust
from billaged.model.errors import Unauthenticated
from billaged.model.time import NANOS

TOKEN = "correct-horse-battery-staple"
URI = "spiffe://example.org/metald"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def keeper_that_trusts(server: Authority, *trusted: Authority) -> Keeper:
    pair = server.sign("billaged", names=("localhost",))
    roots = tuple(authority.certificate for authority in trusted)
    keeper = Keeper()
    keeper.offer(Material(certificates(pair.cert, "it"), pair.cert, pair.key, Trust({ANY_DOMAIN: roots}), "test"))
    return keeper


def scope(*authorization: bytes, scheme: str = "http", peer: dict[str, bytes] | None = None) -> dict[str, Any]:
    extensions: dict[str, Any] = {} if peer is None else {PEER_EXTENSION: peer}
    headers = [(b"host", b"x"), *((b"authorization", value) for value in authorization)]
    return {"type": "http", "scheme": scheme, "headers": headers, "extensions": extensions}


def caller(token: str | None = None, keeper: Keeper | None = None, wall_ns: int | None = None) -> HttpCaller:
    verifier = None if keeper is None else PeerVerifier(keeper)
    return HttpCaller(lambda: token, verifier, lambda: time.time_ns() if wall_ns is None else wall_ns)


def refusal(caller: HttpCaller, scope: dict[str, Any]) -> Unauthenticated:
    with pytest.raises(Unauthenticated) as caught:
        caller(scope)
    return caught.value


def peer_of(pem: bytes, chain: bytes = b"") -> dict[str, bytes]:
    return {"leaf": pem, "chain": chain}


@pytest.mark.parametrize("value", [(), (b"Bearer whatever",), (b"Basic eDp5",), (b"a", b"b"), (b"\xff",)])
def test_plaintext_without_a_token_is_for_everybody(value: tuple[bytes, ...]) -> None:
    assert caller()(scope(*value)) == "@plaintext"


@pytest.mark.parametrize(
    "value",
    [b"Bearer " + TOKEN.encode(), b"bearer " + TOKEN.encode(), b"BEARER   " + TOKEN.encode() + b" "],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_token_is_taken(value: bytes, scheme: str) -> None:
    assert caller(TOKEN)(scope(value, scheme=scheme)) == "@token"


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b" ", b"Bearer", b"Bearer ", b"Bearer\t" + TOKEN.encode(), TOKEN.encode(), b"Basic " + TOKEN.encode()),
        *(b"Bearer " + part for part in (TOKEN[:-1].encode(), TOKEN.encode() + b"x", TOKEN.upper().encode())),
        *(b"Bearer " + TOKEN.encode() + b" " + TOKEN.encode(), b"Bearer \xff\xfe", b"Bearer " + b"a" * 60_000),
        *(b"Bearer " + TOKEN.encode() + b"\0", b"Bearer," + TOKEN.encode(), b"BearerX " + TOKEN.encode()),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_any_other_header_is_refused(value: bytes, scheme: str) -> None:
    error = refusal(caller(TOKEN), scope(value, scheme=scheme))
    assert "bearer token" in str(error)
    assert error.identity in {"", "@token"}
    for secret in (TOKEN, value.decode("latin-1").partition(" ")[2].strip()):
        assert not secret or secret not in str(error)


def test_plaintext_needs_the_token_where_there_is_one() -> None:
    error = refusal(caller(TOKEN), scope())
    assert (str(error), error.identity) == ("a bearer token is needed: Authorization: Bearer TOKEN", "")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_several_headers_are_refused(scheme: str) -> None:
    value = b"Bearer " + TOKEN.encode()
    assert "several" in str(refusal(caller(TOKEN), scope(value, value, scheme=scheme)))


def test_a_token_over_tls_needs_one_to_be_equal_to() -> None:
    assert "not the right one" in str(refusal(caller(None), scope(b"Bearer " + TOKEN.encode(), scheme="https")))


@pytest.mark.parametrize("value", [b"Bearer", b"Bearer ", b"Bearer x", b""])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_empty_token_lets_nobody_in(value: bytes, scheme: str) -> None:
    """None is read anywhere; should there be one, it must not be everybody's."""
    assert "bearer token" in str(refusal(caller(""), scope(value, scheme=scheme)))


def test_the_token_of_this_moment_counts() -> None:
    tokens = [TOKEN]
    now_and_then = HttpCaller(lambda: tokens[-1], None, time.time_ns)
    assert now_and_then(scope(b"Bearer " + TOKEN.encode())) == "@token"
    tokens.append("another-one-altogether")
    assert "not the right one" in str(refusal(now_and_then, scope(b"Bearer " + TOKEN.encode())))
    assert now_and_then(scope(b"Bearer another-one-altogether")) == "@token"


def test_a_token_is_compared_whole_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    honest = hmac.compare_digest

    def watched(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return honest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    assert caller(TOKEN)(scope(b"Bearer " + TOKEN.encode())) == "@token"
    refusal(caller(TOKEN), scope(b"Bearer no"))
    assert compared == [(TOKEN.encode(), TOKEN.encode()), (b"no", TOKEN.encode())]


def test_nothing_shown_over_tls_is_anonymous(authority: Authority) -> None:
    assert caller(keeper=keeper_that_trusts(authority, authority))(scope(scheme="https")) == "@anonymous"
    assert caller(TOKEN)(scope(scheme="https")) == "@anonymous"


def test_a_certificate_names_its_caller_whatever_the_header_says(authority: Authority) -> None:
    pair = authority.sign("metald", uris=(URI,), names=("metald.example.org",))
    verified = caller(TOKEN, keeper_that_trusts(authority, authority))
    for headers in ((), (b"Bearer " + TOKEN.encode(),), (b"Bearer no",)):
        assert verified(scope(*headers, scheme="https", peer=peer_of(pair.cert))) == URI


def test_a_chain_is_followed(authority: Authority) -> None:
    pair = authority.intermediate().sign("metald", uris=(URI,))
    leaf, *chain = pair.certificates
    verified = caller(keeper=keeper_that_trusts(authority, authority))
    assert verified(scope(scheme="https", peer=peer_of(pem_of([leaf]), pem_of(chain)))) == URI
    error = refusal(verified, scope(scheme="https", peer=peer_of(pem_of([leaf]))))
    assert error.identity == URI and "does not hold" in str(error)


def test_a_certificate_holds_until_its_end(authority: Authority) -> None:
    until = lasting(3600)
    pair = authority.sign("metald", uris=(URI,), not_after=until)
    keeper = keeper_that_trusts(authority, authority)
    shown = scope(scheme="https", peer=peer_of(pair.cert))
    end_ns = int(until.timestamp()) * NANOS
    assert caller(keeper=keeper, wall_ns=end_ns - NANOS)(shown) == URI
    error = refusal(caller(keeper=keeper, wall_ns=end_ns), shown)
    assert error.identity == URI


def test_a_certificate_that_does_not_hold_is_nobodys(authority: Authority) -> None:
    """Not even with the right token: who shows a certificate is that one."""
    stranger = Authority("another authority").sign("metald", uris=(URI,))
    not_for_clients = authority.sign("metald", uris=(URI,), usages=(SERVER,))
    past = authority.sign("metald", uris=(URI,), not_after=lasting(0) - DAY)
    verified = caller(TOKEN, keeper_that_trusts(authority, authority))
    for pair in (stranger, not_for_clients, past):
        shown = scope(b"Bearer " + TOKEN.encode(), scheme="https", peer=peer_of(pair.cert))
        assert refusal(verified, shown).identity == URI


def test_without_a_verifier_no_certificate_counts(authority: Authority) -> None:
    pair = authority.sign("metald", uris=(URI,))
    assert "trusted" in str(refusal(caller(TOKEN), scope(scheme="https", peer=peer_of(pair.cert))))


def test_a_certificate_counts_over_tls_only(authority: Authority) -> None:
    pair = authority.sign("metald", uris=(URI,))
    verified = caller(keeper=keeper_that_trusts(authority, authority))
    assert verified(scope(peer=peer_of(pair.cert))) == "@plaintext"
