"""What is wrong with a rule of the policy: what can never match, and what was hardly meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from billaged.identity.names import ANONYMOUS, NAMES, PLAINTEXT
from billaged.identity.patterns import Pattern, Patterns
from billaged.identity.policy import METHODS_NEED, SUBJECTS, Grant, Role
from billaged.model.ids import MAX_ID_BYTES
from billaged.settings.kinds import shown

_SCHEME: Final = "spiffe://"
# Certificates hold DNS names and URIs in ASCII.
_VISIBLE: Final = re.compile(r"[!-~]+")
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._*-]*")
_PATH: Final = re.compile(r"[A-Za-z0-9._*/-]*")
_ID: Final = re.compile(r"[A-Za-z0-9._:/@*-]+")


def identity_problem(text: str) -> str | None:
    """Why no identity can match; None where one can."""
    if (problem := _pattern_problem(text)) is not None:
        return problem
    if not _VISIBLE.fullmatch(text):
        return "can never match: no identity has white space, control characters or characters beyond ASCII"
    if text.startswith("@"):
        if text in NAMES:
            return None
        return f"is no name of a caller without a certificate; these are {', '.join(NAMES)}, without wildcards"
    if text.lower().startswith(_SCHEME):
        return _spiffe_problem(text)
    return None


def _spiffe_problem(text: str) -> str | None:
    if not text.startswith(_SCHEME):
        return f"can never match: {_SCHEME} is in lower case"
    rest = text.removeprefix(_SCHEME)
    head, slash, path = rest.partition("/")
    # Behind a ** may already be the path.
    domain, crossing, tail = head.partition("**")
    if not head:
        return "can never match: it names no trust domain"
    if not _TRUST_DOMAIN.fullmatch(domain):
        return "can never match: a trust domain has only lower-case letters, digits and ._-"
    if not slash and not crossing:
        return "can never match: it names a trust domain and no workload in it; /** after it matches all of them"
    if not _PATH.fullmatch(tail + slash + path):
        return "can never match: the path of a SPIFFE ID has only letters, digits and ._-/"
    if rest.endswith("/"):
        return "can never match: no SPIFFE ID ends with /"
    steps = path.split("/")
    if slash and not {"", ".", ".."}.isdisjoint(steps):
        return "can never match: no step of a SPIFFE ID's path is empty, . or .."
    return None


def _identity_warning(text: str) -> str | None:
    """What an operator should know of a pattern that can be right; None for the others."""
    if text in (PLAINTEXT, ANONYMOUS):
        return "is everybody who can connect without a certificate"
    if text == "**":
        return "matches everybody who has a certificate, of any trust domain"
    head, star, _ = text.partition("*")
    if head.startswith(_SCHEME):
        any_domain = star and "/" not in head.removeprefix(_SCHEME)
    else:
        any_domain = "**" in text and _SCHEME.startswith(head)
    if any_domain:
        return "matches identities of more than one trust domain; anybody can name a domain so that it fits"
    return None


def limit_problem(text: str) -> str | None:
    """Why no id can match; None where one can."""
    if (problem := _pattern_problem(text)) is not None:
        return problem
    if not _ID.fullmatch(text):
        return "can never match: an id has only letters, digits and ._:/@-"
    if len(text.replace("*", "")) > MAX_ID_BYTES:
        return f"can never match: no id has more than {MAX_ID_BYTES} characters"
    return None


def doubts(identities: Patterns, grant: Grant) -> Iterator[str]:
    """What an operator hardly meant, though it is a rule."""
    for text in identities.texts:
        if (warning := _identity_warning(text)) is not None:
            yield f"identity: {shown(text)} {warning}"
    for name, limit in grant.limits.items():
        if "**" in limit.texts:
            yield f"{name}: '**' is no limit; leave {name} out"
    if grant.roles == {Role.USAGE}:
        yield "roles: no method of this version needs usage"
    if grant.limited:
        unbound = [
            method
            for method, need in METHODS_NEED.items()
            if need is not None
            and need.role is not None
            and grant.serves(need)
            and not SUBJECTS[method] & grant.limits.keys()
        ]
        if unbound:
            yield (
                f"{' and '.join(grant.limits)}: does not limit {', '.join(unbound)}, whose requests name none;"
                " add vms or customers where that matters"
            )


def _pattern_problem(text: str) -> str | None:
    try:
        Pattern(text)
    except ValueError as error:
        return str(error)
    return None
