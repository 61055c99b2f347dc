"""The policy's file: TOML in, a ``Policy`` out, or everything that is wrong with it at once.

A rule is an ``[[allow]]`` table; rules are counted from 1, in errors as in the audit log.
"""

from __future__ import annotations

import difflib
import json
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from billaged.identity.patterns import Patterns
from billaged.identity.policy import LIMITS, Grant, Policy, Role, Rule
from billaged.identity.policy_check import doubts, identity_problem, limit_problem
from billaged.identity.reading import read_file
from billaged.model.errors import StartError
from billaged.settings.kinds import printable, shown

FILE_BYTES_MAX: Final = 2**20
RULES_MAX: Final = 10_000
_PROBLEMS_SHOWN_MAX: Final = 50
_COMPARED_CHARACTERS_MAX: Final = 64

_KEYS: Final = ("identity", "roles", *LIMITS)
_HEADER: Final = re.compile(r"[ \t]*\[\[[ \t]*allow[ \t]*\]\]")


class PolicyError(StartError):
    """The policy cannot be used; a line for each thing that is wrong, each beginning with the file."""


def load(path: Path | str) -> Policy:
    """The policy in a file.

    Raises:
        PolicyError: it cannot be read, or is no policy.
    """
    name = printable(str(path))
    try:
        content, mode = read_file(path, FILE_BYTES_MAX)
    except OSError as error:
        raise PolicyError(f"{name}: cannot be read: {error.strerror}.") from error
    policy = parse_bytes(content, name)
    if mode & stat.S_IWOTH:
        warning = f"{name}: every user of this machine can write it, and so give itself any role; make its mode 0644"
        return Policy(policy.rules, (warning, *policy.warnings))
    return policy


def parse_bytes(content: bytes, name: str) -> Policy:
    """As ``parse``, of what a file holds."""
    if len(content) > FILE_BYTES_MAX:
        raise PolicyError(f"{name}: has more than {FILE_BYTES_MAX} bytes.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PolicyError(f"{name}: line {line}: is not UTF-8.") from error
    return parse(text, name)


def parse(text: str, name: str) -> Policy:
    """The policy in a text; errors and warnings begin with ``name``.

    Raises:
        PolicyError: it is no policy.
    """
    if len(text) > FILE_BYTES_MAX:
        raise PolicyError(f"{name}: has more than {FILE_BYTES_MAX} characters.")
    try:
        document = tomllib.loads(text)
    except RecursionError as error:
        raise PolicyError(f"{name}: is no policy: its values are nested too deeply.") from error
    except ValueError as error:
        raise PolicyError(f"{name}: is not TOML: {printable(str(error))}.") from error
    reading = _Reading(name, [number for number, line in enumerate(text.split("\n"), 1) if _HEADER.match(line)])
    rules = reading.rules(document)
    if reading.problems:
        raise PolicyError("\n".join(_first(reading.problems, name)))
    return Policy(rules, reading.warnings)


def minimal_policy(identity: str | None) -> str:
    """A policy to start from, as the text of its file: this identity may send usage.

    Without one, and for one that no rule can name as it is, an example stands in its place.
    """
    if identity is None or "*" in identity or identity_problem(identity) is not None:
        identity = "spiffe://example.org/metald/*"
    domain = re.match(r"spiffe://[^/*]+/", identity)
    return f"""\
# Who may do what on billaged. What no rule allows is denied; rules only add, in any order.
# In patterns, * is any run of characters without /, and ** any run at all.
# To try it: billaged policy check FILE, billaged policy explain IDENTITY METHOD --file FILE

[[allow]]
identity = {json.dumps(identity)}
roles = ["ingest"]  # ingest sends usage, read sees summaries, admin does all
# customers = ["customer-1", "acme-*"]  # limits; without them, all
# vms = ["vm-*"]
# instances = ["metald-*"]

# [[allow]]
# identity = "{domain[0] if domain else "spiffe://example.org/"}operators/*"
# roles = ["read"]
"""


class _Reading:
    """One pass over a document; notes what is wrong and goes on."""

    def __init__(self, name: str, header_lines: list[int]) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._name = name
        self._header_lines = header_lines

    def rules(self, document: dict[str, Any]) -> list[Rule]:
        for key in (key for key in document if key != "allow"):
            self._problem("", f"{shown(key)}: unknown key{_near(key, ['allow'], 'a rule is an [[allow]] table')}")
        tables = document.get("allow")
        if tables is None:
            self._problem("", "has no [[allow]] table; write 'allow = []' if nobody shall be allowed anything")
            return []
        if isinstance(tables, dict):
            self._problem("", "allow: is one table; write [[allow]], with two brackets, above each rule")
            return []
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._problem("", "allow: must be tables; write [[allow]] above each rule")
            return []
        if len(tables) > RULES_MAX:
            self._problem("", f"has {len(tables)} rules, at most {RULES_MAX} are allowed")
            return []
        if not tables:
            self.warnings.append(f"{self._name}: has no rule: nobody is allowed anything")
        if len(self._header_lines) != len(tables):
            self._header_lines = []  # written in another way, so the lines found are not theirs
        return self._without_doubles(
            [rule for number, table in enumerate(tables, 1) if (rule := self._rule(number, table)) is not None]
        )

    def _rule(self, number: int, table: dict[str, Any]) -> Rule | None:
        place = f"allow[{number}]"
        problems_before = len(self.problems)
        for key in (key for key in table if key not in _KEYS):
            self._problem(place, f"{shown(key)}: unknown key{_near(key, _KEYS, 'keys are ' + ', '.join(_KEYS))}")
        identities = self._patterns(place, "identity", table, identity_problem)
        roles = self._roles(place, table)
        limits = {key: self._patterns(place, key, table, limit_problem) for key in LIMITS}
        if len(self.problems) > problems_before or identities is None:
            return None
        grant = Grant(number, roles, **limits)
        self.warnings += (self._located(place, warning) for warning in doubts(identities, grant))
        return Rule(identities, grant)

    def _patterns(
        self, place: str, key: str, table: dict[str, Any], problem_of: Callable[[str], str | None]
    ) -> Patterns | None:
        """The patterns under a key; None where there are none or one is wrong, which is noted."""
        if key not in table:
            if key == "identity":
                self._problem(f"{place}.{key}", "is missing: whom is the rule for?")
            return None
        texts = self._texts(f"{place}.{key}", table[key], "; leave it out for no limit" if key in LIMITS else "")
        problems = [f"{shown(text)} {problem}" for text in texts if (problem := problem_of(text)) is not None]
        for problem in problems:
            self._problem(f"{place}.{key}", problem)
        return None if problems or not texts else Patterns(texts)

    def _roles(self, place: str, table: dict[str, Any]) -> frozenset[Role]:
        place = f"{place}.roles"
        if "roles" not in table:
            self._problem(place, f"is missing; one or more of {', '.join(Role)}")
            return frozenset()
        roles = set()
        for text in self._texts(place, table["roles"], ""):
            if text in set(Role):
                roles.add(Role(text))
            else:
                self._problem(place, f"{shown(text)} is no role{_near(text, Role, 'roles are ' + ', '.join(Role))}")
        return frozenset(roles)

    def _texts(self, place: str, value: object, advice: str) -> list[str]:
        """A text or a list of texts, as a list; empty where it is neither, which is noted."""
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            self._problem(place, "must be a text or a list of texts")
            return []
        if not texts:
            self._problem(place, f"is an empty list{advice}")
        return list(dict.fromkeys(texts))

    def _without_doubles(self, rules: list[Rule]) -> list[Rule]:
        """The rules as they are; each that says again what an earlier one says is warned of."""
        first: dict[object, int] = {}
        for identities, grant in rules:
            content = (identities, grant.roles, grant.customers, grant.vms, grant.instances)
            earlier = first.setdefault(content, grant.rule)
            if earlier != grant.rule:
                self.warnings.append(self._located(f"allow[{grant.rule}]", f"says the same as allow[{earlier}]"))
        return rules

    def _problem(self, place: str, problem: str) -> None:
        self.problems.append(self._located(place, problem))

    def _located(self, place: str, text: str) -> str:
        number = re.match(r"allow\[(\d+)\]", place)
        line = f"line {self._header_lines[int(number[1]) - 1]}: " if number and self._header_lines else ""
        return f"{self._name}: {line}{place}{': ' if place else ''}{text}"


def _near(text: str, known: Iterable[str], otherwise: str) -> str:
    close = difflib.get_close_matches(text.strip().lower()[:_COMPARED_CHARACTERS_MAX], list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; {otherwise}"


def _first(problems: list[str], name: str) -> Iterator[str]:
    yield from problems[:_PROBLEMS_SHOWN_MAX]
    if len(problems) > _PROBLEMS_SHOWN_MAX:
        yield f"{name}: and {len(problems) - _PROBLEMS_SHOWN_MAX} more problems"
