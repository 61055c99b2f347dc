"""Who a certificate says it is: verified against its own trust domain, at every moment."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from spiffe_material import Svid, TrustDomain
from tls_material import CLIENT, SERVER, Authority, Pair, pem_of

from billaged.identity.keeper import Keeper
from billaged.identity.material import Material
from billaged.identity.peer import PeerVerifier
from billaged.identity.trust import ANY_DOMAIN, Trust
from billaged.model.errors import Unauthenticated
from billaged.model.time import NANOS


def now_ns(later_seconds: int = 0) -> int:
    """This moment, or later: asked when it is needed, for SVIDs are backdated by seconds only."""
    return time.time_ns() + later_seconds * NANOS


def trusting(**bundles: Any) -> tuple[Keeper, PeerVerifier]:
    """A keeper with these roots (names with _ for a dot), and what verifies against it."""
    keeper = Keeper()
    trust(keeper, bundles)
    return keeper, PeerVerifier(keeper)


def trust(keeper: Keeper, bundles: dict[str, Any]) -> None:
    roots = {
        name.replace("_", "."): tuple(
            x509.load_pem_x509_certificates(it.bundle_pem if isinstance(it, TrustDomain) else it.pem)
        )
        for name, it in bundles.items()
    }
    own = Authority().sign("billaged")
    keeper.offer(Material(tuple(own.certificates), own.cert, own.key, Trust(roots), "billaged"))


def verify(verifier: PeerVerifier, shown: Svid | Pair, later_seconds: int = 0) -> str:
    pair = shown.pair if isinstance(shown, Svid) else shown
    return verifier.verify(pem_of(pair.certificates[:1]), pem_of(pair.certificates[1:]), now_ns(later_seconds))


def refusal(verifier: PeerVerifier, shown: Svid | Pair, later_seconds: int = 0) -> str:
    with pytest.raises(Unauthenticated) as caught:
        verify(verifier, shown, later_seconds)
    return str(caught.value)


@pytest.fixture(scope="module")
def domain() -> TrustDomain:
    return TrustDomain("example.org")


@pytest.fixture(scope="module")
def other() -> TrustDomain:
    return TrustDomain("other.example")


# --- SPIFFE ------------------------------------------------------------------------


@pytest.mark.parametrize("intermediates", [0, 1, 2])
def test_an_svid_names_its_workload(domain: TrustDomain, intermediates: int) -> None:
    _, verifier = trusting(example_org=domain)
    assert verify(verifier, domain.mint("/metald", intermediates=intermediates)) == "spiffe://example.org/metald"


def test_a_federated_domain_names_its_own_workloads(domain: TrustDomain, other: TrustDomain) -> None:
    _, verifier = trusting(example_org=domain, other_example=other)
    assert verify(verifier, other.mint("/metald")) == "spiffe://other.example/metald"


def test_a_federated_ca_cannot_name_ours(domain: TrustDomain, other: TrustDomain) -> None:
    _, verifier = trusting(example_org=domain, other_example=other)
    assert "does not hold" in refusal(verifier, other.mint("spiffe://example.org/metald"))
    assert "does not hold" in refusal(verifier, domain.mint("spiffe://other.example/metald"))


def test_nor_can_it_by_showing_our_intermediates(domain: TrustDomain, other: TrustDomain) -> None:
    _, verifier = trusting(example_org=domain, other_example=other)
    forged, good = other.mint("spiffe://example.org/metald"), domain.mint("/metald", intermediates=1)
    chain = pem_of(good.pair.certificates[1:])
    with pytest.raises(Unauthenticated, match="does not hold"):
        verifier.verify(pem_of([forged.leaf]), chain, now_ns())


def test_a_domain_that_is_not_trusted_is_told_by_its_name(domain: TrustDomain, other: TrustDomain) -> None:
    _, verifier = trusting(example_org=domain)
    assert "other.example is not trusted" in refusal(verifier, other.mint("/metald"))


@pytest.mark.parametrize(
    "spiffe_id",
    [
        "spiffe://example.org",
        "spiffe://example.org/",
        "spiffe://Example.org/metald",
        "SPIFFE://example.org/metald",
        "spiffe://example.org/../metald",
        "spiffe://example.org//metald",
        "spiffe://example.org/met%61ld",
        "spiffe://example.org:8081/metald",
        "spiffe://someone@example.org/metald",
        "spiffe://example.org/metald?admin",
        "spiffe://example.org/metald#admin",
        "spiffe://example.org/met\nald",
        "spiffe://example.org/" + "a" * 2048,
        "https://example.org/metald",
        "@plaintext",
    ],
)
def test_what_is_no_spiffe_id_of_a_workload_is_nobody(domain: TrustDomain, spiffe_id: str) -> None:
    _, verifier = trusting(example_org=domain)
    pair = domain.authority.current.sign("metald", uris=(spiffe_id,))
    assert refusal(verifier, pair)


def test_two_uris_are_nobody(domain: TrustDomain) -> None:
    _, verifier = trusting(example_org=domain)
    assert "2 URI names" in refusal(verifier, domain.mint("/metald", more_uris=("spiffe://example.org/admin",)))


def test_a_dns_name_alone_is_no_spiffe_identity(domain: TrustDomain) -> None:
    _, verifier = trusting(example_org=domain)
    assert "no URI names" in refusal(verifier, domain.authority.current.sign("metald", names=("metald",)))


# --- time, and trust that goes on --------------------------------------------------


def test_it_holds_until_the_first_of_its_chain_ends(domain: TrustDomain) -> None:
    _, verifier = trusting(example_org=domain)
    intermediate = domain.authority.current.intermediate(not_after=datetime.now(UTC) + timedelta(hours=1))
    pair = intermediate.sign(
        "metald", uris=("spiffe://example.org/metald",), not_after=datetime.now(UTC) + timedelta(hours=9)
    )
    assert verify(verifier, pair) and verify(verifier, pair, 3_590)
    # The same certificate, known already, and nothing of it is verified again: only the clock went on.
    assert "has expired at" in refusal(verifier, pair, 3_601)


def test_the_root_that_ends_ends_all_it_signed() -> None:
    short = TrustDomain("example.org")
    short.prepare(ttl_seconds=60)
    short.activate()
    _, verifier = trusting(example_org=short)
    svid = short.mint("/metald", ttl_seconds=3600)
    assert verify(verifier, svid)
    assert "has expired" in refusal(verifier, svid, 100)


def test_an_expired_one_that_was_never_seen_is_refused(domain: TrustDomain) -> None:
    _, verifier = trusting(example_org=domain)
    assert "does not hold" in refusal(verifier, domain.mint("/metald", ttl_seconds=-5))


def test_a_root_taken_out_takes_its_certificates_with_it(domain: TrustDomain) -> None:
    turning = TrustDomain("example.org")
    keeper, verifier = trusting(example_org=turning)
    old = turning.mint("/metald")
    assert verify(verifier, old)
    turning.rotate()
    trust(keeper, {"example_org": turning})
    new = turning.mint("/metald")
    assert verify(verifier, old) and verify(verifier, new), "while both are trusted"
    turning.retire()
    trust(keeper, {"example_org": turning})
    assert verify(verifier, new)
    assert "does not hold" in refusal(verifier, old)


def test_a_refusal_does_not_outlive_the_trust_it_was_for(domain: TrustDomain, other: TrustDomain) -> None:
    keeper, verifier = trusting(example_org=domain)
    svid = other.mint("/metald")
    assert refusal(verifier, svid)
    trust(keeper, {"example_org": domain, "other_example": other})
    assert verify(verifier, svid) == "spiffe://other.example/metald"


def test_without_trust_nobody_is_anybody() -> None:
    assert "nobody" in refusal(PeerVerifier(Keeper()), Authority().sign("metald"))


# --- certificates from files -------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.mark.parametrize(
    ("names", "identity"),
    [
        ({"uris": ("spiffe://example.org/metald",), "names": ("metald.example.org",)}, "spiffe://example.org/metald"),
        ({"uris": ("https://metald.example.org/",)}, "https://metald.example.org/"),
        ({"names": ("metald.example.org", "other.example.org")}, "metald.example.org"),
    ],
)
def test_from_files_the_uri_or_the_first_dns_name_counts(
    authority: Authority, names: dict[str, Any], identity: str
) -> None:
    _, verifier = trusting(**{ANY_DOMAIN: authority})
    assert verify(verifier, authority.sign("metald", **names)) == identity


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"names": ("192.0.2.1",)},
        {"uris": ("a://b", "c://d")},
        {"names": ("@plaintext",)},
        {"uris": ("@token",)},
        {"names": ("a\nb",)},
        {"names": ("a" * 256,)},
        {"uris": ("",)},
    ],
)
def test_from_files_too_a_name_must_be_one_and_clear(authority: Authority, names: dict[str, Any]) -> None:
    _, verifier = trusting(**{ANY_DOMAIN: authority})
    assert refusal(verifier, authority.sign("metald", **names))


def test_a_stranger_a_server_and_a_ca_are_no_clients(authority: Authority) -> None:
    _, verifier = trusting(**{ANY_DOMAIN: authority})
    assert refusal(verifier, Authority("test authority").sign("metald", names=("metald",)))
    assert "not let it be a TLS client" in refusal(
        verifier, authority.sign("metald", names=("metald",), usages=(SERVER,))
    )
    assert verify(verifier, authority.sign("metald", names=("metald",), usages=(CLIENT,))) == "metald"
    signed_by_a_leaf = Pair(
        pem_of([Authority().sign("metald", names=("metald",)).leaf, authority.sign("leaf").leaf]), b""
    )
    assert refusal(verifier, signed_by_a_leaf)


def test_certificates_are_kept_but_not_for_ever(authority: Authority) -> None:
    _, verifier = trusting(**{ANY_DOMAIN: authority})
    for number in range(10_000):
        with pytest.raises(Unauthenticated):
            verifier.verify(b"no certificate %d" % number, b"", now_ns())
    assert len(verifier._known) <= 4_096
