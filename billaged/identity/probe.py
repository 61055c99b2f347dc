"""Whether gRPC's TLS takes material. It reads certificates by rules of its own, and where one of them does not
hold it says nothing: it leaves out this CA and those behind it, or goes on with the old material until that ends.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from billaged.identity.material import BadMaterial, Material

_KEPT_MAX: Final = 20_000


class Probe:
    """Tries to listen with it, on a port of loopback that nobody is told of. For the thread that offers."""

    def __init__(self) -> None:
        self._good: set[bytes] = set()  # CAs that were taken, DER

    def __call__(self, material: Material) -> None:
        """
        Raises:
            BadMaterial: gRPC does not take the certificate, or one of its CAs.
        """
        if not material.chain:
            return
        _listen(material, None, f"{material.name}: gRPC's TLS does not take this certificate.")
        for roots in material.trust.bundles.values() if material.trust is not None else ():
            for root in roots:
                self._try(material, root)

    def _try(self, material: Material, root: x509.Certificate) -> None:
        # One by one: of several it takes those before the first that it does not.
        der = root.public_bytes(Encoding.DER)
        if der in self._good:
            return
        if len(self._good) >= _KEPT_MAX:
            self._good.clear()
        serial = f"{root.serial_number:x}"
        _listen(
            material,
            root.public_bytes(Encoding.PEM),
            f"{material.name}: gRPC's TLS does not take the CA certificate with serial number {serial[:64]}.",
        )
        self._good.add(der)


def _listen(material: Material, roots_pem: bytes | None, problem: str) -> None:
    credentials = grpc.ssl_server_credentials(
        [(material.key_pem, material.chain_pem)], roots_pem, require_client_auth=roots_pem is not None
    )
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    try:
        server.add_secure_port("127.0.0.1:0", credentials)
    except RuntimeError as error:
        raise BadMaterial(problem) from error
    finally:
        server.stop(None)
