"""What is written into the folder: pairs of certificate and key, and the policy, which is never written twice."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from billaged.identity.development.minting import Minted
from billaged.identity.development.wish import spiffe_id

POLICY_FILE: Final = "policy.toml"

_ROLES: Final = {"metald": ("ingest",), "operator": ("read", "admin")}
_POLICY_HEAD: Final = """\
# Who may do what: the identities that `billaged certs dev` has made. For development only.
# Nothing else is allowed. Check it with `billaged policy check`.
"""
_POLICY_TAIL: Final = """\
# HTTP on loopback is plaintext: everybody on this machine may look, at /stats for example.
[[allow]]
identity = "@plaintext"
roles = ["read"]
"""


def write_pair(directory: Path, stem: str, minted: Minted, *, replace: bool) -> None:
    """STEM.key and STEM.pem. Raises OSError; FileExistsError where one is there that may not be replaced."""
    key_pem = minted.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write(directory / f"{stem}.key", key_pem, replace=replace)
    write(directory / f"{stem}.pem", minted.certificate.public_bytes(Encoding.PEM), replace=replace)


def write_policy(directory: Path, clients: Iterable[str]) -> bool:
    """A policy for these clients, unless there is one; whether it was written. Raises OSError."""
    path = directory / POLICY_FILE
    if os.path.lexists(path):
        return False
    write(path, "\n".join([_POLICY_HEAD, *map(_rule_or_comment, clients), _POLICY_TAIL]).encode(), replace=False)
    return True


def write(path: Path, content: bytes, *, replace: bool) -> None:
    """All of it or nothing, mode 0600. A file that is there stays if it may not be replaced, even one just come."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        if replace:
            Path(temporary).replace(path)
        else:
            path.hardlink_to(temporary)
    finally:
        Path(temporary).unlink(missing_ok=True)


def rule(client: str) -> str:
    """A client's rule in the policy, TOML."""
    roles = ", ".join(f'"{role}"' for role in _ROLES.get(client, ("ingest",)))
    return f'[[allow]]\nidentity = "{spiffe_id(client)}"\nroles = [{roles}]'


def _rule_or_comment(client: str) -> str:
    # What a client of another name may do is not ours to guess.
    lines = rule(client).splitlines()
    return "".join(f"{line}\n" if client in _ROLES else f"# {line}\n" for line in lines)
