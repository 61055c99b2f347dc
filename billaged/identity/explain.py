"""Why a request is allowed or denied: for the operator who asks, rule by rule."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from billaged.identity.names import NAMES
from billaged.identity.patterns import PATTERN_CHARACTERS_MAX, Pattern, Patterns
from billaged.identity.policy import (
    LIMITS,
    METHODS_NEED,
    SPOKEN,
    SUBJECTS,
    Grant,
    Need,
    Policy,
    Role,
    Rule,
    matches,
    named,
)
from billaged.model.errors import StartError
from billaged.settings.kinds import printable, shown

_PATTERNS_SHOWN_MAX: Final = 5

_BILLING: Final = ("SendMetricsBatch", "SendHeartbeat", "NotifyVmStarted", "NotifyVmStopped", "NotifyPossibleGap")
# Full names, as callers send them. Tests hold them against what the doors serve.
FULL_NAMES: Final[Mapping[str, str]] = {
    **{
        f"{service}/{method}": method
        for service in ("billing.v1.BillingService", "billaged.v1.BillingService")
        for method in _BILLING
    },
    "billing.v1.UsageStreamService/WatchSummaries": "WatchSummaries",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "reflection",
    "grpc.health.v1.Health/Check": "health",
    "grpc.health.v1.Health/List": "health",
    "grpc.health.v1.Health/Watch": "health",
    "GET /health": "health",
}
# How one of each is called, for sentences.
_SINGULAR: Final = {limit: plural.removesuffix("s") for limit, plural in SPOKEN.items()}


class UnknownMethod(StartError):
    """No method has this name; the message lists those there are."""


class Explanation(NamedTuple):
    """``lines`` are for people, the answer first."""

    allowed: bool
    lines: tuple[str, ...]


def method_named(text: str) -> str:
    """The bare name of a method, given that or its full name, with or without a leading slash.

    Raises:
        UnknownMethod: there is none of that name.
    """
    name = text.strip().removeprefix("/")
    if name in METHODS_NEED:
        return name
    if name in FULL_NAMES:
        return FULL_NAMES[name]
    known = [*METHODS_NEED, *FULL_NAMES]
    folded = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    advice = f"Did you mean {folded[close[0]]}? " if close else ""
    raise UnknownMethod(f"{shown(text)} is no method.", f"{advice}Methods are {', '.join(METHODS_NEED)}.")


def explain(
    policy: Policy,
    identity: str,
    method: str,
    *,
    customer: str | None = None,
    vm: str | None = None,
    instance: str | None = None,
) -> Explanation:
    """Whether a request would be allowed, and by which rule. ``method`` as ``method_named`` takes it.

    What is not given is not checked: the answer is then for a request within the limits
    that are shown.

    Raises:
        UnknownMethod: there is no such method.
    """
    name = method_named(method)
    need = METHODS_NEED[name]
    if need is None:
        return Explanation(True, (f"ALLOWED: {name} is open to everybody; the policy is not asked",))
    given = {key: text for key, text in zip(LIMITS, (customer, vm, instance), strict=True) if text is not None}
    of_use = {key: text for key, text in given.items() if key in SUBJECTS[name]}
    matching = [(rule, by) for rule in policy.rules if (by := rule.matched_by(identity)) is not None]
    deciding = [rule.grant for rule, _ in matching if _decides(rule.grant, need, of_use)]
    lines = [_answer(policy, identity, name, need, deciding)]
    lines += (f"  {_rule_line(rule, by, name, need, of_use)}" for rule, by in matching)
    if not matching:
        lines += (f"  {hint}" for hint in _hints(policy, identity))
    lines += (
        f"  note: {name} has no {_SINGULAR[key]} to look at; {shown(text)} changes nothing"
        for key, text in given.items()
        if key not in of_use
    )
    return Explanation(bool(deciding), tuple(lines))


def patterns_text(patterns: Patterns, shown_max: int = _PATTERNS_SHOWN_MAX) -> str:
    """The patterns in a line; of many the first few and how many more."""
    more = len(patterns.texts) - shown_max
    return ", ".join(patterns.texts[:shown_max]) + (f" and {more} more" if more > 0 else "")


def roles_text(grant: Grant) -> str:
    return ", ".join(role for role in Role if role in grant.roles)


def _decides(grant: Grant, need: Need, given: Mapping[str, str]) -> bool:
    return grant.serves(need) and not _outside(grant, given)


def _outside(grant: Grant, given: Mapping[str, str]) -> list[str]:
    """The limits that what is given breaks."""
    return [key for key, limit in grant.limits.items() if key in given and not limit.matches(given[key])]


def _answer(policy: Policy, identity: str, name: str, need: Need, deciding: list[Grant]) -> str:
    who = f"{printable(identity)}: {name}{_needs_text(need)}"
    if deciding:
        return f"ALLOWED by {named(deciding)}: {who}"
    if policy.grants_for(identity, need):
        return f"DENIED: {who}: outside of the limits of each rule that gives it"
    return f"DENIED: {who}: {policy.why(identity, need)}"


def _needs_text(need: Need) -> str:
    if need.role is None:
        return " needs any role"
    return f" needs {need.role}{' without limits' if need.unlimited else ''}"


def _rule_line(rule: Rule, by: str, name: str, need: Need, given: Mapping[str, str]) -> str:
    grant = rule.grant
    head = f"rule {grant.rule} matches by {shown(by)}, gives {roles_text(grant)}"
    if not grant.gives(need.role):
        return f"{head}: no, not {need.role}"
    if not grant.serves(need):
        return f"{head}: no, it is limited to some {' and '.join(SPOKEN[key] for key in grant.limits)}"
    if broken := _outside(grant, given):
        reasons = (f"{_SINGULAR[key]} {shown(given[key])} is none of {_limit(grant, key)}" for key in broken)
        return f"{head}: no, {'; '.join(reasons)}"
    conditions = [_condition(grant, key, name, given) for key in grant.limits if key in SUBJECTS[name]]
    return f"{head}: yes{', ' if conditions else ''}{'; '.join(conditions)}"


def _condition(grant: Grant, key: str, name: str, given: Mapping[str, str]) -> str:
    if key in given:
        return f"{_SINGULAR[key]} {shown(given[key])} is of {_limit(grant, key)}"
    if key != "customers":
        return f"for {SPOKEN[key]} {_limit(grant, key)}"
    if name in ("NotifyVmStopped", "NotifyPossibleGap"):
        return f"for VMs known to be of customers {_limit(grant, key)}"
    if name == "SendHeartbeat":
        return f"while the VMs it lists are of customers {_limit(grant, key)}, or not known"
    return f"for customers {_limit(grant, key)}"


def _limit(grant: Grant, key: str) -> str:
    return patterns_text(grant.limits[key])


def _hints(policy: Policy, identity: str) -> Iterator[str]:
    """What may have been meant, where no rule matches."""
    if identity.startswith("@"):
        if identity not in NAMES:
            yield f"hint: names that begin with @ are {', '.join(NAMES)} only"
        else:
            yield f"hint: wildcards match no name that begins with @; a rule must say {identity}"
        return
    for rule in policy.rules:
        for text in rule.identities.texts:
            if (hint := _near_miss(text, identity)) is not None:
                yield f"hint: rule {rule.grant.rule}, {shown(text)}, {hint}"
                return


def _near_miss(text: str, identity: str) -> str | None:
    widened = text.replace("**", "*").replace("*", "**")
    if len(widened) <= PATTERN_CHARACTERS_MAX and matches(Pattern(widened), identity):
        return "would match with ** in place of *, which stops at each /"
    if matches(Pattern(text.lower()), identity.lower()):
        return "would match but for upper and lower case"
    return None
