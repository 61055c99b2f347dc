"""TLS of the gRPC server: credentials from files, checked before they are used.

gRPC accepts a wrong pair or an expired certificate silently and then refuses every
connection without a word; here each of these stops the start with its reason.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from billaged.model.errors import StartError
from billaged.settings import Tls

_MODE: Final = "UNKEY_BILLAGED_TLS_MODE"
_CERT: Final = "UNKEY_BILLAGED_TLS_CERT_FILE"
_KEY: Final = "UNKEY_BILLAGED_TLS_KEY_FILE"
_CA: Final = "UNKEY_BILLAGED_TLS_CA_FILE"
_SOCKET: Final = "UNKEY_BILLAGED_SPIFFE_SOCKET"

_EXPIRES_SOON: Final = timedelta(days=7)


class ServerTls(NamedTuple):
    """How the gRPC server is secured. ``credentials`` None is plaintext; ``warnings`` are for the log."""

    credentials: grpc.ServerCredentials | None
    requires_client_certificate: bool
    warnings: tuple[str, ...]


def server_tls(tls: Tls, now: datetime) -> ServerTls:
    """The server's credentials as the settings want them, never weaker.

    ``now`` carries a time zone.

    Raises:
        StartError: a file is missing, unreadable, wrong or expired, or the mode cannot be had.
    """
    if tls.mode == "disabled":
        return ServerTls(None, False, (f"{_MODE}=disabled: usage arrives in plaintext from anyone who can connect",))
    if tls.mode == "file":
        return _from_files(tls, now)
    found = "is there" if tls.spiffe_socket.exists() else "was not found"
    raise StartError(
        f"{_MODE}=spiffe: no SPIFFE support in this version yet ({_SOCKET}: {tls.spiffe_socket} {found}).",
        f"Set {_MODE}=file with {_CERT} and {_KEY} (and {_CA} for mTLS), or {_MODE}=disabled for development.",
    )


def _from_files(tls: Tls, now: datetime) -> ServerTls:
    if tls.cert_file is None or tls.key_file is None:
        raise StartError(f"{_MODE}=file needs a certificate and its key.", f"Set {_CERT} and {_KEY}.")
    chain, key = _read(tls.cert_file, _CERT), _read(tls.key_file, _KEY)
    leaf = _certificates(chain, tls.cert_file, _CERT)[0]
    _check_validity(leaf, tls.cert_file, now)
    _check_pair(leaf, key, tls.cert_file, tls.key_file)
    warnings = []
    if leaf.not_valid_after_utc - now < _EXPIRES_SOON:
        warnings.append(f"{tls.cert_file}: the certificate expires at {_text(leaf.not_valid_after_utc)}")
    if tls.key_file.stat().st_mode & 0o007:
        warnings.append(f"{tls.key_file}: every user of this machine can reach the key; make its mode 0600")
    roots: bytes | None = None
    if tls.ca_file is None:
        warnings.append(f"{_CA} is not set: usage is taken from anyone who can connect (TLS, but no mTLS)")
    else:
        roots = _read(tls.ca_file, _CA)
        authorities = _certificates(roots, tls.ca_file, _CA)
        if all(authority.not_valid_after_utc <= now for authority in authorities):
            raise StartError(
                f"{tls.ca_file}: every certificate in it has expired, so no caller could connect.",
                f"Renew it, or point {_CA} to another.",
            )
    credentials = grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=roots is not None)
    return ServerTls(credentials, roots is not None, tuple(warnings))


def _read(path: Path, variable: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"{variable}: {path} cannot be read: {error.strerror}.") from error


def _certificates(pem: bytes, path: Path, variable: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise StartError(f"{variable}: {path} holds no certificate in PEM form.") from error


def _check_validity(leaf: x509.Certificate, path: Path, now: datetime) -> None:
    if leaf.not_valid_after_utc <= now:
        raise StartError(f"{path}: the certificate has expired at {_text(leaf.not_valid_after_utc)}.", "Renew it.")
    if leaf.not_valid_before_utc > now:
        raise StartError(
            f"{path}: the certificate is not valid before {_text(leaf.not_valid_before_utc)}.",
            "Check this machine's clock.",
        )


def _check_pair(leaf: x509.Certificate, key_pem: bytes, cert_path: Path, key_path: Path) -> None:
    try:
        key = load_pem_private_key(key_pem, password=None)
    except TypeError as error:
        raise StartError(f"{key_path}: the key is encrypted.", "Give one without a passphrase, mode 0600.") from error
    except ValueError as error:
        raise StartError(f"{_KEY}: {key_path} holds no private key in PEM form.") from error
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*spki) != leaf.public_key().public_bytes(*spki):
        raise StartError(
            f"{key_path} is not the key of the first certificate in {cert_path}.",
            "The server's own certificate must stand first, before those that signed it.",
        )


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
