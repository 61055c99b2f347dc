"""The policy: which identity may do what. Pure; what no rule allows is denied.

Rules only ever add, so their order does not matter. A limit holds for requests that have
such a thing: one to instances says nothing about samples, which name none (``SUBJECTS``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from billaged.identity.names import NAMES
from billaged.identity.patterns import Pattern, Patterns

_IDENTITIES_KEPT_MAX: Final = 4096
_ANSWERS_KEPT_MAX: Final = 4 * _IDENTITIES_KEPT_MAX
_RULES_NAMED_MAX: Final = 5


class Role(StrEnum):
    """What a rule can give. ``admin`` includes the others."""

    INGEST = "ingest"
    USAGE = "usage"
    READ = "read"
    ADMIN = "admin"


class Need(NamedTuple):
    """What a method asks for. ``role`` None: any role; ``unlimited``: only a grant without limits will do."""

    role: Role | None
    unlimited: bool = False


_INGEST: Final = Need(Role.INGEST)

# By bare name. None: open to everybody, the policy is not asked.
METHODS_NEED: Final[Mapping[str, Need | None]] = MappingProxyType(
    {
        "SendMetricsBatch": _INGEST,
        "SendHeartbeat": _INGEST,
        "NotifyVmStarted": _INGEST,
        "NotifyVmStopped": _INGEST,
        "NotifyPossibleGap": _INGEST,
        "WatchSummaries": Need(Role.READ),
        "GET /stats": Need(Role.READ, unlimited=True),
        "reflection": Need(None),
        "health": None,
    }
)

# Which limits hold for a method's requests, for what they name or, where it is only a VM, for whom it belongs to.
SUBJECTS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "SendMetricsBatch": frozenset({"customers", "vms"}),
        "SendHeartbeat": frozenset({"customers", "vms", "instances"}),
        "NotifyVmStarted": frozenset({"customers", "vms"}),
        "NotifyVmStopped": frozenset({"customers", "vms"}),
        "NotifyPossibleGap": frozenset({"customers", "vms"}),
        "WatchSummaries": frozenset({"customers", "vms"}),
        "GET /stats": frozenset(),
        "reflection": frozenset(),
        "health": frozenset(),
    }
)

LIMITS: Final = ("customers", "vms", "instances")
SPOKEN: Final[Mapping[str, str]] = MappingProxyType({"customers": "customers", "vms": "VMs", "instances": "instances"})


def needs_of(method_name: str) -> Need | None:
    """What a method asks for, by its bare name; None where it is open to everybody.

    Raises:
        KeyError: there is no such method, so nobody may call it.
    """
    return METHODS_NEED[method_name]


@dataclass(frozen=True, slots=True)
class Grant:
    """What one rule gives. ``rule`` counts from 1, ``roles`` are as written; a limit that is None allows all."""

    rule: int
    roles: frozenset[Role]
    customers: Patterns | None = None
    vms: Patterns | None = None
    instances: Patterns | None = None

    @property
    def limits(self) -> Mapping[str, Patterns]:
        """The limits that are set, by name."""
        return {name: limit for name in LIMITS if (limit := getattr(self, name)) is not None}

    @property
    def limited(self) -> bool:
        return self.customers is not None or self.vms is not None or self.instances is not None

    def gives(self, role: Role | None) -> bool:
        """Whether the role is given, by itself or within admin; None is any role."""
        return role is None or role in self.roles or Role.ADMIN in self.roles

    def serves(self, need: Need) -> bool:
        return self.gives(need.role) and not (need.unlimited and self.limited)

    def allows_customer(self, customer_id: str) -> bool:
        return self.customers is None or self.customers.matches(customer_id)

    def allows_vm(self, vm_id: str) -> bool:
        return self.vms is None or self.vms.matches(vm_id)

    def allows_vms(self, vm_ids: Iterable[str]) -> bool:
        """Whether all of them are allowed."""
        return self.vms is None or all(map(self.vms.matches, vm_ids))

    def allows_instance(self, instance_id: str) -> bool:
        return self.instances is None or self.instances.matches(instance_id)

    def allows(self, *, customer: str | None = None, vm: str | None = None, instance: str | None = None) -> bool:
        """Whether all that a request names is within the limits; None is what it does not name."""
        return (
            (customer is None or self.allows_customer(customer))
            and (vm is None or self.allows_vm(vm))
            and (instance is None or self.allows_instance(instance))
        )

    def outside(self, *, customer: str | None = None, vm: str | None = None, instance: str | None = None) -> str:
        """The limits that ``allows`` finds broken, for the audit log: ``customers, vms``; empty where none is."""
        kept = (self.allows(customer=customer), self.allows(vm=vm), self.allows(instance=instance))
        return ", ".join(limit for limit, holds in zip(LIMITS, kept, strict=True) if not holds)


class Rule(NamedTuple):
    """Whom a rule is for, and what it gives them."""

    identities: Patterns
    grant: Grant

    def matched_by(self, identity: str) -> str | None:
        """The pattern that matches; None where none does. An ``@`` name is matched by itself only."""
        if identity in self.identities.literals:
            return identity
        return next((pattern.text for pattern in self.identities.wild if matches(pattern, identity)), None)


def matches(pattern: Pattern, identity: str) -> bool:
    """Whether an identity matches a pattern. Wildcards match no ``@`` name, and nothing matches nobody."""
    if not identity or (identity[0] == "@" and not pattern.literal):
        return False
    return pattern.matches(identity)


class Policy:
    """All rules. Answers are kept, so that asking again costs a look into a dict. Safe to share between threads.

    ``warnings`` is what an operator should look at: allowed to stand as it is, but hardly meant.
    """

    def __init__(self, rules: Iterable[Rule] = (), warnings: Iterable[str] = ()) -> None:
        self.rules: Final = tuple(rules)
        self.warnings: Final = tuple(warnings)
        # Both by the index of the rule, so that literals need no search.
        self._by_literal: dict[str, list[int]] = {}
        self._wild: list[tuple[Pattern, int]] = []
        for index, rule in enumerate(self.rules):
            for literal in rule.identities.literals:
                self._by_literal.setdefault(literal, []).append(index)
            self._wild += ((pattern, index) for pattern in rule.identities.wild)
        self._matching: dict[str, tuple[Grant, ...]] = {}
        self._answers: dict[tuple[str, Need], tuple[Grant, ...]] = {}

    @classmethod
    def everything(cls) -> Policy:
        """All is allowed to everybody: for mode ``disabled`` without a policy file."""
        return cls([Rule(Patterns(["**", *NAMES]), Grant(1, frozenset({Role.ADMIN})))])

    @classmethod
    def nothing(cls) -> Policy:
        """Nothing is allowed to anybody, but for what is open."""
        return cls()

    def grants_for(self, identity: str, need: Need) -> tuple[Grant, ...]:
        """The grants that serve the need; () means denied. A request is allowed if one of them covers all of it."""
        found = self._answers.get((identity, need))
        if found is None:
            # Two threads may both do this; they find the same.
            if len(self._answers) >= _ANSWERS_KEPT_MAX:
                self._answers.clear()
            found = tuple(grant for grant in self.matching(identity) if grant.serves(need))
            self._answers[identity, need] = found
        return found

    def matching(self, identity: str) -> tuple[Grant, ...]:
        """The grants of all rules that match the identity, in the order of the rules."""
        found = self._matching.get(identity)
        if found is None:
            if len(self._matching) >= _IDENTITIES_KEPT_MAX:
                # Identities of short-lived workloads would otherwise add up for as long as the daemon runs.
                self._matching.clear()
            indexes = {index for pattern, index in self._wild if matches(pattern, identity)}
            indexes.update(self._by_literal.get(identity, ()))
            found = self._matching[identity] = tuple(self.rules[index].grant for index in sorted(indexes))
        return found

    def why(self, identity: str, need: Need) -> str:
        """Why the need is denied, for the audit log: never for the caller."""
        if not self.rules:
            return "the policy has no rule"
        matching = self.matching(identity)
        if not matching:
            return "no rule matches the identity"
        giving = [grant for grant in matching if grant.gives(need.role)]
        if not giving:
            several = len(matching) > 1
            given = [role for role in Role if any(role in grant.roles for grant in matching)]
            return f"{named(matching)} {'match but give' if several else 'matches but gives'} only {', '.join(given)}"
        if any(grant.serves(need) for grant in giving):
            return f"{named([grant for grant in giving if grant.serves(need)])} would allow it"
        limits = [SPOKEN[name] for name in LIMITS if any(name in grant.limits for grant in giving)]
        return f"{named(giving)} {'give' if len(giving) > 1 else 'gives'} it only for some {' and '.join(limits)}"


def named(grants: Iterable[Grant]) -> str:
    """``rule 2``, ``rules 2, 5``; of many the first few and how many more."""
    numbers = [str(grant.rule) for grant in grants]
    more = len(numbers) - _RULES_NAMED_MAX
    text = ", ".join(numbers[:_RULES_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
    return f"{'rule' if len(numbers) == 1 else 'rules'} {text}"
