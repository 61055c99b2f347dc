"""The folder: looked at as a whole, then what is missing is made."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from cryptography import x509

from billaged.identity.development.found import Found, look, names_in, signed_by
from billaged.identity.development.minting import Minted, issue, new_ca
from billaged.identity.development.wish import Pair, Wish, pairs
from billaged.identity.development.written import POLICY_FILE, write_pair, write_policy
from billaged.model.errors import StartError


class Line(NamedTuple):
    """What became of a pair, or of the policy: ``files`` are names in the directory."""

    files: tuple[str, ...]
    made: bool
    meaning: str
    valid_until: datetime | None


def make(wish: Wish, host_name: str, now: datetime) -> list[Line]:
    """Make what is missing of the wish; ``now`` has a time zone. The server answers to ``host_name`` as well.

    Everything is looked at before anything is written.

    Raises:
        StartError: something that is there is in the way, a name is wrong, or the directory cannot be written.
    """
    try:
        wanted = pairs(wish, host_name)
    except ValueError as error:
        raise StartError(f"{error}.") from error
    try:
        found = look(wish.directory, wanted, now)
        if found.problems and not wish.replace:
            listed = "\n".join(f"{wish.directory}/{problem}" for problem in found.problems)
            raise StartError(
                f"{listed}\nNothing was written.", "--force makes these anew; another --dir leaves them alone."
            )
        return list(_made(wish, wanted, found, now))
    except OSError as error:
        raise StartError(f"{error.filename2 or error.filename or wish.directory}: {error.strerror}.") from error


def _made(wish: Wish, wanted: tuple[Pair, ...], found: Found, now: datetime) -> Iterator[Line]:
    """Write what the folder lacks; a line as each is done."""
    directory = wish.directory
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca = found.ca
    if ca is None:
        ca = new_ca(now, wish.lifetime)
        write_pair(directory, "ca", ca, replace=found.expired_ca is not None)
    yield _line("ca", ca.certificate, "the CA", made=found.ca is None)
    for pair in wanted:
        kept = None if wish.replace else found.good.get(pair.stem)
        certificate = kept or _written(wish, pair, ca, now)
        yield _line(pair.stem, certificate, ", ".join(names_in(certificate)), made=kept is None)
    _, *clients = wanted
    written = write_policy(directory, [client.stem for client in clients])
    yield Line((POLICY_FILE,), written, "what the clients may do", None)
    if found.expired_ca is not None:
        for name in signed_by(directory, found.expired_ca):
            yield Line((name,), False, "no longer good: the CA that signed it is replaced", None)


def _written(wish: Wish, pair: Pair, ca: Minted, now: datetime) -> x509.Certificate:
    minted = issue(pair, ca, now, wish.lifetime)
    write_pair(wish.directory, pair.stem, minted, replace=wish.replace)
    return minted.certificate


def _line(stem: str, certificate: x509.Certificate, meaning: str, *, made: bool) -> Line:
    return Line((f"{stem}.pem", f"{stem}.key"), made, meaning, certificate.not_valid_after_utc)
