"""What is found in the folder: a CA of ours, certificates that can stay, and what is wrong with the others."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from billaged.identity.development.minting import ORGANIZATION, Minted
from billaged.identity.development.wish import Pair
from billaged.identity.material import text
from billaged.model.errors import StartError


class Found(NamedTuple):
    """``ca`` is one that may still sign, ``expired_ca`` one that may not any more; at most one of them is there.

    ``good`` has the certificates that can stay, by the stem of their pair. A problem begins with its file's name.
    """

    ca: Minted | None
    expired_ca: Minted | None
    good: Mapping[str, x509.Certificate]
    problems: tuple[str, ...]


def look(directory: Path, pairs: tuple[Pair, ...], now: datetime) -> Found:
    """What of the pairs is there, and what signs the others.

    Raises:
        StartError: the directory cannot be used, or a CA is in it that is not ours.
        OSError: it cannot be read.
    """
    _check_directory(directory)
    ca, expired_ca = _read_ca(directory), None
    good: dict[str, x509.Certificate] = {}
    problems = []
    if ca is not None and ca.certificate.not_valid_after_utc <= now:
        problems.append(f"ca.pem: has expired at {text(ca.certificate.not_valid_after_utc)}")
        ca, expired_ca = None, ca
    for pair in pairs:
        outcome = _look_at(directory, pair, ca, now)
        if isinstance(outcome, str):
            problems.append(outcome)
        elif outcome is not None:
            good[pair.stem] = outcome
    return Found(ca, expired_ca, good, tuple(problems))


def signed_by(directory: Path, ca: Minted) -> list[str]:
    """The names of the certificate files there that this CA has signed."""
    names = []
    for path in sorted(directory.glob("*.pem")):
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except ValueError:
            continue  # no certificate, so none of ours
        if ca.signed(certificate):
            names.append(path.name)
    return names


def names_in(certificate: x509.Certificate) -> list[str]:
    """Its names as texts."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def _check_directory(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise StartError(f"{directory}: is no directory.", "Name another with --dir.")
    # Whoever may write there may put a CA of his own in place of ours.
    if directory.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StartError(f"{directory}: other users may write there.", "chmod 700 it, or name another with --dir.")


def _read_ca(directory: Path) -> Minted | None:
    """The CA that was made here earlier. Any other one is not touched, not even where others may be replaced."""
    cert_path, key_path = directory / "ca.pem", directory / "ca.key"
    there = [path for path in (cert_path, key_path) if os.path.lexists(path)]
    if not there:
        return None
    others = StartError(
        f"{there[0]}: not a development CA that billaged made for this user, so it is left alone.",
        "Name another directory with --dir.",
    )
    if len(there) == 1 or any(path.is_symlink() or path.stat().st_uid != os.geteuid() for path in there):
        raise others
    try:
        certificate = x509.load_pem_x509_certificate(cert_path.read_bytes())
        key = load_pem_private_key(key_path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise others from error
    organizations = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    if organizations != [ORGANIZATION] or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise others
    ca = Minted(certificate, key)
    if key.public_key() != certificate.public_key() or not ca.signed(certificate):
        raise others
    return ca


def _look_at(directory: Path, pair: Pair, ca: Minted | None, now: datetime) -> x509.Certificate | str | None:
    """The certificate that is there and good; what is wrong with it, after its file's name; None where nothing is."""
    cert_path, key_path = directory / f"{pair.stem}.pem", directory / f"{pair.stem}.key"
    there = [path.name for path in (cert_path, key_path) if os.path.lexists(path)]
    if not there:
        return None
    if len(there) == 1:
        return f"{there[0]}: is there without its other half"
    try:
        certificate = x509.load_pem_x509_certificate(cert_path.read_bytes())
        key = load_pem_private_key(key_path.read_bytes(), None)
        belongs = key.public_key() == certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return f"{cert_path.name}: it or its key cannot be read as PEM"
    if not belongs:
        return f"{key_path.name}: is not the key of {cert_path.name}"
    if ca is None or not ca.signed(certificate):
        return f"{cert_path.name}: was not signed by the CA in this directory"
    if certificate.not_valid_after_utc <= now:
        return f"{cert_path.name}: has expired at {text(certificate.not_valid_after_utc)}"
    has = names_in(certificate)
    if missing := [str(name.value) for name in pair.needed if str(name.value) not in has]:
        return f"{cert_path.name}: lacks {', '.join(missing)}"
    return certificate
