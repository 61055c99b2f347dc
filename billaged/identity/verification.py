"""Verification of a certificate against given roots: RFC 5280 path building, by cryptography's verifier.

TLS has verified a caller already, but against one flat pool: there a federated trust
domain's CA may sign names of any other. Here the roots are those of one domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.x509 import verification as path
from cryptography.x509.oid import ExtendedKeyUsageOID

# Longer chains are no honest caller's, and each certificate costs a signature check.
_DEPTH_MAX: Final = 4


class Unverified(Exception):
    """The certificate does not follow from the roots; the message says why, for a log."""


def verify(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    now: datetime,
    *,
    as_client: bool = True,
) -> datetime:
    """When the first certificate of the path from the leaf to a root ends.

    ``as_client``: the leaf must be good for TLS clients, where it says what it is good for.

    Raises:
        Unverified: there is no such path at this time.
    """
    if not roots:
        raise Unverified("there are no roots for it")
    if len(intermediates) > _DEPTH_MAX:
        raise Unverified(f"its chain is longer than {_DEPTH_MAX} certificates")
    builder = (
        path.PolicyBuilder()
        .store(path.Store(list(roots)))
        .time(now.astimezone(UTC).replace(tzinfo=None))
        .max_chain_depth(_DEPTH_MAX)
        .extension_policies(ca_policy=_CA_POLICY, ee_policy=_CLIENT_POLICY if as_client else _ANY_LEAF_POLICY)
    )
    try:
        verified = builder.build_client_verifier().verify(leaf, list(intermediates))
    except (path.VerificationError, ValueError) as error:
        raise Unverified(_reason(error)) from error
    return min(certificate.not_valid_after_utc for certificate in verified.chain)


def _reason(error: Exception) -> str:
    # The library adds where it was when it failed and the certificate's repr: of no use in a log.
    text = str(error).partition(" (encountered processing")[0].replace("Python extension validator failed: ", "")
    return text.replace("ValueError: ", "") or type(error).__name__


def _signs_certificates(policy: path.Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("its key usage does not let it sign certificates")


def _is_for_clients(policy: path.Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    if usage is not None and not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(
        usage
    ):
        raise ValueError("its extended key usage does not let it be a TLS client")


def _ca_policy() -> path.ExtensionPolicy:
    # The rules of the public web ask for more than small private authorities write.
    return (
        path.ExtensionPolicy.webpki_defaults_ca()
        .may_be_present(x509.KeyUsage, path.Criticality.AGNOSTIC, _signs_certificates)
        .may_be_present(x509.AuthorityKeyIdentifier, path.Criticality.AGNOSTIC, None)
        .may_be_present(x509.SubjectKeyIdentifier, path.Criticality.AGNOSTIC, None)
        .may_be_present(x509.ExtendedKeyUsage, path.Criticality.AGNOSTIC, None)
    )


def _leaf_policy(*, as_client: bool) -> path.ExtensionPolicy:
    return (
        path.ExtensionPolicy.webpki_defaults_ee()
        .may_be_present(x509.AuthorityKeyIdentifier, path.Criticality.AGNOSTIC, None)
        .may_be_present(x509.ExtendedKeyUsage, path.Criticality.AGNOSTIC, _is_for_clients if as_client else None)
        .require_present(x509.SubjectAlternativeName, path.Criticality.AGNOSTIC, None)
    )


_CA_POLICY: Final = _ca_policy()
_CLIENT_POLICY: Final = _leaf_policy(as_client=True)
_ANY_LEAF_POLICY: Final = _leaf_policy(as_client=False)
