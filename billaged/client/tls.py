"""How a connection is secured: certificates from files or from a SPIFFE agent, and whose signature counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from billaged.client.patience import PatientSource
from billaged.identity.files import FileSource, PemFiles
from billaged.identity.keeper import Keeper, Source
from billaged.identity.material import Material
from billaged.identity.peer import name_of, spiffe_identity
from billaged.identity.trust import ANY_DOMAIN, Trust

_LOOK_SECONDS: Final = 1.0
# What the server's own certificate says; Python's gRPC cannot ask for a SPIFFE ID instead.
SPIFFE_SERVER_NAME: Final = "billaged"


class NoTrust(Exception):
    """Nobody's signature counts for the server that is meant. The message says what is missing, ``hint`` what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files; ``ca`` None trusts the system's roots, ``cert`` and ``key`` are this client's identity."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def source(self, keeper: Keeper, is_patient: bool) -> Source:
        """Unless it is patient, its start raises BadMaterial for files that cannot be used."""
        files = PemFiles(self.cert, self.key, self.ca, ("--tls-cert", "--tls-key", "--tls-ca"))
        source = FileSource(files, keeper, _LOOK_SECONDS)
        return PatientSource(source, keeper, _LOOK_SECONDS) if is_patient else source

    def nothing_yet(self) -> NoTrust:
        return NoTrust("the TLS files cannot be used", "Set them right: they are read again every second.")

    def roots_pem(self, material: Material) -> bytes | None:
        """None are the system's."""
        return material.trust.roots_pem if material.trust is not None else None

    def trusted(self, material: Material) -> str:
        """Who may sign the server's certificate, in words."""
        return f"a CA in {self.ca}" if self.ca is not None else "a CA that this system trusts (--tls-ca names others)"


@dataclass(frozen=True, slots=True)
class SpiffeAgent:
    """All of it from the agent behind ``socket``. The CAs of ``trust_domain`` (None: the own one) sign servers."""

    socket: Path
    server_name: str = SPIFFE_SERVER_NAME
    trust_domain: str | None = None

    def source(self, keeper: Keeper, is_patient: bool) -> Source:
        """Its start returns before there is an answer, patient or not."""
        from billaged.identity.spiffe import SpiffeSource  # its library takes its time to import

        return SpiffeSource(self.socket, keeper)

    def nothing_yet(self) -> NoTrust:
        return NoTrust(
            "the SPIFFE agent has not answered yet",
            "Is the SPIFFE agent running, and does it have an entry for this process?",
        )

    def roots_pem(self, material: Material) -> bytes:
        """Of one trust domain only: in one pool with others, each could sign for all of them.

        Raises:
            NoTrust: the agent has no bundle of it.
        """
        domain = self._domain(material)
        roots = material.trust.roots_for(domain) if material.trust is not None else ()
        if not roots:
            raise NoTrust(
                f"the SPIFFE agent has no bundle of the trust domain {domain}",
                "Federate with it, or name another one with --spiffe-trust-domain.",
            )
        return Trust({domain: roots}).roots_pem

    def trusted(self, material: Material) -> str:
        return f"the CAs of the trust domain {self._domain(material)} (--spiffe-trust-domain names another)"

    def _domain(self, material: Material) -> str:
        return self.trust_domain or spiffe_identity(material.chain[0])[1]


Tls = TlsFiles | SpiffeAgent


def identity_of(material: Material) -> str | None:
    """What the server's policy calls who shows this certificate; None where there is none, or it names nobody."""
    leaf: x509.Certificate | None = material.leaf
    if leaf is None:
        return None
    has_domains = material.trust is not None and ANY_DOMAIN not in material.trust.bundles
    try:
        return spiffe_identity(leaf)[0] if has_domains else name_of(leaf)
    except ValueError:
        return None
