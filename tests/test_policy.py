"""The policy: patterns against a slow reference, denied by default, rules that only add, reasons, explanations."""

from __future__ import annotations

import threading
import timeit
from functools import cache

import pytest
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from hypothesis import given
from hypothesis import strategies as st

from billaged.doors.methods import BILLING_SERVICES, METHODS, STREAM_SERVICE, WATCH_METHOD
from billaged.identity import policy as policy_module
from billaged.identity.explain import FULL_NAMES, UnknownMethod, explain, method_named
from billaged.identity.patterns import PATTERN_CHARACTERS_MAX, Pattern, Patterns
from billaged.identity.policy import (
    LIMITS,
    METHODS_NEED,
    NAMES,
    SUBJECTS,
    Grant,
    Need,
    Policy,
    Role,
    Rule,
    needs_of,
)
from billaged.identity.policy_file import parse

INGEST, READ, STATS = Need(Role.INGEST), Need(Role.READ), Need(Role.READ, unlimited=True)
METALD = "spiffe://example.org/metald/host-1"


@cache
def slowly_matches(pattern: str, text: str) -> bool:
    """What the words say, tried out one by one."""
    if pattern.startswith("**"):
        return any(slowly_matches(pattern[2:], text[length:]) for length in range(len(text) + 1))
    if pattern.startswith("*"):
        return any(
            "/" not in text[:length] and slowly_matches(pattern[1:], text[length:]) for length in range(len(text) + 1)
        )
    if not pattern:
        return not text
    return text[:1] == pattern[0] and slowly_matches(pattern[1:], text[1:])


pattern_texts = (
    st.lists(st.sampled_from(["a", "b", "/", "*", "**", "ab", "@"]), min_size=1, max_size=9)
    .map("".join)
    .filter(lambda text: "***" not in text)
)
texts = st.text("ab/@*", max_size=10)


@given(pattern_texts, texts)
def test_a_pattern_matches_what_the_slow_reference_matches(pattern: str, text: str) -> None:
    assert Pattern(pattern).matches(text) == slowly_matches(pattern, text)


@given(pattern_texts, st.data())
def test_a_pattern_matches_what_was_made_to_fit_it(pattern: str, data: st.DataObject) -> None:
    text = ""
    rest = pattern
    while rest:
        if rest.startswith("**"):
            text, rest = text + data.draw(st.text("ab/", max_size=4)), rest[2:]
        elif rest.startswith("*"):
            text, rest = text + data.draw(st.text("ab", max_size=4)), rest[1:]
        else:
            text, rest = text + rest[0], rest[1:]
    assert Pattern(pattern).matches(text)
    assert Patterns(["x", pattern]).matches(text)


@given(st.lists(pattern_texts, max_size=4), texts)
def test_several_patterns_match_where_one_does(patterns: list[str], text: str) -> None:
    assert Patterns(patterns).matches(text) == any(slowly_matches(pattern, text) for pattern in patterns)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("vm-1", ["vm-1"], ["vm-10", "vm-", "xvm-1", "VM-1", ""]),
        ("vm-*", ["vm-1", "vm-", "vm-é\n"], ["vm-1/2", "vm", "a-vm-1"]),
        ("**", ["", "/", "a/b"], []),
        ("*", ["", "a"], ["/", "a/b"]),
        ("a.c", ["a.c"], ["abc"]),
        ("a[b]?(c)+\\d$", ["a[b]?(c)+\\d$"], ["ab", "a[b]?(c)+1"]),
        ("a*a", ["aa", "aba", "aaa"], ["a", "a/a"]),
        ("a**a", ["aa", "a/a"], ["a"]),
        ("**a*b**", ["a/ab", "xaxbx/"], ["a/b", "b/a"]),
        ("*a/b*c", ["a/bc", "xa/bxc"], ["a/b/c", "x/a/bc"]),
        (
            "spiffe://example.org/*",
            ["spiffe://example.org/a"],
            ["spiffe://example.org/a/b", "spiffe://example.org.evil/a"],
        ),
        ("spiffe://example.org/**", ["spiffe://example.org/a/b"], ["spiffe://example.orga/b", "spiffe://example.org"]),
    ],
)
def test_patterns_by_example(pattern: str, matching: list[str], others: list[str]) -> None:
    assert [text for text in [*matching, *others] if Pattern(pattern).matches(text)] == matching


@pytest.mark.parametrize("pattern", ["", "a***", "****", "a" * (PATTERN_CHARACTERS_MAX + 1)])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"is empty|in a row|more than"):
        Pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "a*a*a*a*b*",
        "*a*a*a*a*a*a*a*a*ba",
        "**a**a**a**a*b**a*b**",
        "*".join("a" * 1000) + "*b*",
        "**".join("a" * 600) + "**b**",
        "*" + "a" * 1000 + "b*",
    ],
)
def test_no_pattern_takes_long_on_a_long_text(pattern: str) -> None:
    # One that goes back would take years for some of these; this one takes milliseconds, on a slow machine too.
    compiled = Pattern(pattern)
    longest = "a" * 2048
    assert not compiled.matches(longest)
    assert min(timeit.repeat(lambda: compiled.matches(longest), number=1, repeat=5)) < 0.05


def rules_from(*texts_and_grants: tuple[str | list[str], Grant]) -> Policy:
    return Policy(
        Rule(Patterns([patterns] if isinstance(patterns, str) else patterns), grant)
        for patterns, grant in texts_and_grants
    )


def grant(number: int, *roles: Role, **limits: str) -> Grant:
    return Grant(number, frozenset(roles), **{name: Patterns([text]) for name, text in limits.items()})


roles_given = st.frozensets(st.sampled_from(Role), min_size=1)
limits = st.none() | st.lists(pattern_texts, min_size=1, max_size=2).map(Patterns)
identity_patterns = st.lists(
    st.sampled_from(["**", "*", "a", "b", "a/*", "a/**", "@token", "@plaintext", "*a*", "@anonymous"]),
    min_size=1,
    max_size=3,
)
rule_lists = st.lists(
    st.tuples(
        identity_patterns, st.builds(Grant, st.just(0), roles_given, customers=limits, vms=limits, instances=limits)
    ),
    max_size=6,
)
identities = st.sampled_from(["a", "b", "c", "a/b", "a/b/c", "@token", "@plaintext", "@anonymous", "@other", "", "ba"])
needs = st.sampled_from(
    [need for need in METHODS_NEED.values() if need is not None] + [Need(Role.USAGE), Need(Role.ADMIN)]
)


def policy_of(drawn: list[tuple[list[str], Grant]]) -> Policy:
    return Policy(
        Rule(Patterns(patterns), Grant(number, given.roles, given.customers, given.vms, given.instances))
        for number, (patterns, given) in enumerate(drawn, 1)
    )


@given(identities, needs)
def test_without_a_rule_all_is_denied(identity: str, need: Need) -> None:
    assert Policy.nothing().grants_for(identity, need) == ()
    assert parse("allow = []", "p").grants_for(identity, need) == ()


@given(rule_lists, identities, needs)
def test_what_is_given_is_what_matching_rules_give_and_no_more(
    drawn: list[tuple[list[str], Grant]], identity: str, need: Need
) -> None:
    policy = policy_of(drawn)
    expected = []
    for number, (patterns, rule) in enumerate(drawn, 1):
        fits = identity in patterns if identity[:1] in ("", "@") else any(slowly_matches(p, identity) for p in patterns)
        role = need.role is None or need.role in rule.roles or Role.ADMIN in rule.roles
        if fits and role and not (need.unlimited and rule.limits):
            expected.append(number)
    assert [found.rule for found in policy.grants_for(identity, need)] == expected
    assert [found.rule for found in policy.grants_for(identity, need)] == expected  # and again, as it was kept


@given(rule_lists, rule_lists, identities, needs, texts, texts)
def test_adding_a_rule_takes_nothing_away(
    drawn: list[tuple[list[str], Grant]],
    more: list[tuple[list[str], Grant]],
    identity: str,
    need: Need,
    customer: str,
    vm: str,
) -> None:
    def allowed(policy: Policy) -> bool:
        return any(found.allows(customer=customer, vm=vm) for found in policy.grants_for(identity, need))

    fewer, all_of_them, turned = policy_of(drawn), policy_of(drawn + more), policy_of((drawn + more)[::-1])
    assert allowed(all_of_them) or not allowed(fewer)
    assert allowed(turned) == allowed(all_of_them)


@given(rule_lists, identities)
def test_a_limited_grant_never_serves_an_unlimited_need(drawn: list[tuple[list[str], Grant]], identity: str) -> None:
    assert not any(found.limited for found in policy_of(drawn).grants_for(identity, STATS))


@given(rule_lists, identities, needs)
def test_a_denial_has_a_reason_without_the_identity(
    drawn: list[tuple[list[str], Grant]], identity: str, need: Need
) -> None:
    policy = policy_of(drawn)
    reason = policy.why(identity, need)
    assert reason
    assert ("would allow it" in reason) == bool(policy.grants_for(identity, need))


def test_everything_is_everything_for_everybody() -> None:
    for identity in (*NAMES, METALD, "host.example.org", "a/b c"):
        for need in METHODS_NEED.values():
            assert need is None or Policy.everything().grants_for(identity, need)
    assert not Policy.everything().grants_for("", INGEST)


def test_names_without_a_certificate_are_matched_by_themselves_only() -> None:
    wide = rules_from((["**", "*", "@**", "*plaintext", "@*"], grant(1, Role.ADMIN)))
    for name in NAMES:
        assert wide.grants_for(name, INGEST) == ()
        exact = rules_from((name, grant(1, Role.INGEST)))
        assert exact.grants_for(name, INGEST)
        assert not any(exact.grants_for(other, INGEST) for other in NAMES if other != name)
    assert wide.grants_for("x", INGEST)


@pytest.mark.parametrize(
    ("roles", "served"),
    [
        (
            {Role.INGEST},
            {"SendMetricsBatch", "SendHeartbeat", "NotifyVmStarted", "NotifyVmStopped", "NotifyPossibleGap"},
        ),
        ({Role.USAGE}, set()),
        ({Role.READ}, {"WatchSummaries", "GET /stats"}),
        ({Role.ADMIN}, METHODS_NEED.keys() - {"health", "reflection"}),
    ],
)
def test_what_each_role_may_call(roles: set[Role], served: set[str]) -> None:
    policy = rules_from(("a", Grant(1, frozenset(roles))))
    found = {name for name, need in METHODS_NEED.items() if need is not None and policy.grants_for("a", need)}
    assert found == served | {"reflection"}


def test_an_unknown_method_has_no_need() -> None:
    assert needs_of("health") is None
    with pytest.raises(KeyError):
        needs_of("StopDaemon")


def test_limits_are_about_what_a_request_names() -> None:
    limited = grant(1, Role.INGEST, customers="acme-*", vms="vm-*", instances="metald-1")
    assert limited.limited
    assert limited.allows()
    assert limited.allows(customer="acme-1", vm="vm-1", instance="metald-1")
    assert not limited.allows(customer="bravo", vm="vm-1")
    assert not limited.allows(customer="acme-1", vm="x")
    assert not limited.allows(instance="metald-2")
    assert limited.outside(customer="bravo", vm="vm-1", instance="metald-2") == "customers, instances"
    assert limited.outside(customer="acme-1") == ""
    assert limited.allows_vms(["vm-1", "vm-2"])
    assert not limited.allows_vms(["vm-1", "x"])
    # Of ids, @ means nothing in particular.
    assert grant(1, Role.INGEST, vms="*").allows_vm("@plaintext")


@pytest.mark.parametrize(
    ("policy", "need", "reason"),
    [
        (Policy.nothing(), INGEST, "the policy has no rule"),
        (rules_from(("b", grant(1, Role.ADMIN))), INGEST, "no rule matches the identity"),
        (rules_from(("a", grant(1, Role.READ))), INGEST, "rule 1 matches but gives only read"),
        (
            rules_from(("a", grant(2, Role.READ)), ("*", grant(5, Role.USAGE))),
            INGEST,
            "rules 2, 5 match but give only usage, read",
        ),
        (rules_from(("a", grant(2, Role.READ, customers="c"))), STATS, "rule 2 gives it only for some customers"),
        (
            rules_from(("a", grant(1, Role.READ, vms="c")), ("a", grant(3, Role.ADMIN, customers="c"))),
            STATS,
            "rules 1, 3 give it only for some customers and VMs",
        ),
        (rules_from(("a", grant(4, Role.READ))), STATS, "rule 4 would allow it"),
        (
            rules_from(*(("a", grant(number, Role.READ)) for number in range(1, 100))),
            INGEST,
            "rules 1, 2, 3, 4, 5 and 94 more match but give only read",
        ),
    ],
)
def test_the_reason_of_a_denial(policy: Policy, need: Need, reason: str) -> None:
    assert policy.why("a", need) == reason


def test_asking_again_costs_a_look_into_a_dict() -> None:
    policy = rules_from(*((f"spiffe://example.org/{n}/*", grant(n, Role.INGEST)) for n in range(1, 10_001)))
    need, identity = METHODS_NEED["SendMetricsBatch"], "spiffe://example.org/7/a"
    assert need is not None
    assert len(policy.grants_for(identity, need)) == 1
    best = min(timeit.repeat(lambda: policy.grants_for(identity, need), number=1000, repeat=20)) / 1000
    assert best < 1e-6
    # The first time, all patterns are looked at.
    assert min(timeit.repeat(lambda: Policy.matching(policy, f"spiffe://example.org/{id(object())}"), number=1)) < 0.1


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "_IDENTITIES_KEPT_MAX", 10)
    monkeypatch.setattr(policy_module, "_ANSWERS_KEPT_MAX", 10)
    policy = rules_from(("host-*", grant(1, Role.INGEST)))
    for number in range(100):
        assert policy.grants_for(f"host-{number}", INGEST)
        assert not policy.grants_for(f"other-{number}", READ)
        assert len(policy._matching) <= 10
        assert len(policy._answers) <= 10


def test_threads_may_share_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "_IDENTITIES_KEPT_MAX", 5)
    monkeypatch.setattr(policy_module, "_ANSWERS_KEPT_MAX", 5)
    policy = rules_from(("host-*", grant(1, Role.INGEST)))
    wrong: list[str] = []

    def ask() -> None:
        for number in range(3000):
            identity = f"{'host' if number % 2 else 'other'}-{number % 20}"
            if bool(policy.grants_for(identity, INGEST)) != bool(number % 2):
                wrong.append(identity)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_methods_are_those_that_the_doors_serve() -> None:
    names = {method.name for method in METHODS}
    assert METHODS_NEED.keys() == names | {WATCH_METHOD, "GET /stats", "reflection", "health"} == SUBJECTS.keys()
    served = {f"{service}/{name}": name for service in BILLING_SERVICES for name in names}
    served[f"{STREAM_SERVICE}/{WATCH_METHOD}"] = WATCH_METHOD
    for file, service, name in (
        (health_pb2, health.SERVICE_NAME, "health"),
        (reflection_pb2, reflection.SERVICE_NAME, "reflection"),
    ):
        descriptor = file.DESCRIPTOR.services_by_name[service.rpartition(".")[2]]
        served |= {f"{service}/{method.name}": name for method in descriptor.methods}
    assert served | {"GET /health": "health"} == FULL_NAMES
    assert all(SUBJECTS[name] <= set(LIMITS) for name in SUBJECTS)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SendMetricsBatch", "SendMetricsBatch"),
        ("/SendMetricsBatch", "SendMetricsBatch"),
        ("billing.v1.BillingService/SendMetricsBatch", "SendMetricsBatch"),
        ("/billaged.v1.BillingService/NotifyVmStopped", "NotifyVmStopped"),
        ("/billing.v1.UsageStreamService/WatchSummaries", "WatchSummaries"),
        ("GET /stats", "GET /stats"),
        ("GET /health", "health"),
        ("health", "health"),
        ("/grpc.health.v1.Health/Check", "health"),
        ("reflection", "reflection"),
    ],
)
def test_a_method_has_several_names(text: str, name: str) -> None:
    assert method_named(text) == name


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("sendmetricsbatch", "mean SendMetricsBatch?"),
        ("get /stats", "mean GET /stats?"),
        ("other.v1.BillingService/SendHeartbeat", "v1.BillingService/SendHeartbeat?"),
        ("\n", "Methods are"),
    ],
)
def test_an_unknown_method_is_told_with_those_there_are(text: str, advice: str) -> None:
    with pytest.raises(UnknownMethod) as caught:
        method_named(text)
    assert advice in str(caught.value)
    assert all(name in str(caught.value) for name in METHODS_NEED)
    assert "\n" not in str(caught.value)


EXPLAINED = parse(
    """
    [[allow]]
    identity = "spiffe://example.org/metald/*"
    roles = "ingest"
    customers = ["customer-1", "acme-*"]
    vms = "vm-*"

    [[allow]]
    identity = ["spiffe://example.org/**", "@token"]
    roles = "read"
    instances = "metald-1"
    """,
    "policy.toml",
)


@pytest.mark.parametrize(
    ("identity", "method", "named", "lines"),
    [
        ("anybody", "health", {}, ["ALLOWED: health is open to everybody; the policy is not asked"]),
        (
            METALD,
            "/billing.v1.BillingService/SendMetricsBatch",
            {"customer": "acme-2"},
            [
                f"ALLOWED by rule 1: {METALD}: SendMetricsBatch needs ingest",
                "  rule 1 matches by 'spiffe://example.org/metald/*', gives ingest: yes,"
                " customer 'acme-2' is of customer-1, acme-*; for VMs vm-*",
                "  rule 2 matches by 'spiffe://example.org/**', gives read: no, not ingest",
            ],
        ),
        (
            METALD,
            "SendMetricsBatch",
            {"customer": "bravo", "vm": "x"},
            [
                f"DENIED: {METALD}: SendMetricsBatch needs ingest: outside of the limits of each rule that gives it",
                "  rule 1 matches by 'spiffe://example.org/metald/*', gives ingest: no,"
                " customer 'bravo' is none of customer-1, acme-*; VM 'x' is none of vm-*",
                "  rule 2 matches by 'spiffe://example.org/**', gives read: no, not ingest",
            ],
        ),
        (
            METALD,
            "NotifyVmStopped",
            {"vm": "vm-1", "instance": "i"},
            [
                f"ALLOWED by rule 1: {METALD}: NotifyVmStopped needs ingest",
                "  rule 1 matches by 'spiffe://example.org/metald/*', gives ingest: yes,"
                " for VMs known to be of customers customer-1, acme-*; VM 'vm-1' is of vm-*",
                "  rule 2 matches by 'spiffe://example.org/**', gives read: no, not ingest",
                "  note: NotifyVmStopped has no instance to look at; 'i' changes nothing",
            ],
        ),
        (
            METALD,
            "GET /stats",
            {},
            [
                f"DENIED: {METALD}: GET /stats needs read without limits: rule 2 gives it only for some instances",
                "  rule 1 matches by 'spiffe://example.org/metald/*', gives ingest: no, not read",
                "  rule 2 matches by 'spiffe://example.org/**', gives read: no, it is limited to some instances",
            ],
        ),
        (
            "@token",
            "reflection",
            {},
            [
                "ALLOWED by rule 2: @token: reflection needs any role",
                "  rule 2 matches by '@token', gives read: yes",
            ],
        ),
        (
            "@plaintext",
            "SendHeartbeat",
            {},
            [
                "DENIED: @plaintext: SendHeartbeat needs ingest: no rule matches the identity",
                "  hint: wildcards match no name that begins with @; a rule must say @plaintext",
            ],
        ),
        (
            "@nobody",
            "SendHeartbeat",
            {},
            [
                "DENIED: @nobody: SendHeartbeat needs ingest: no rule matches the identity",
                "  hint: names that begin with @ are @plaintext, @anonymous, @token only",
            ],
        ),
        (
            "spiffe://example.org.evil/\x1b[2J",
            "SendHeartbeat",
            {},
            ["DENIED: spiffe://example.org.evil/\\x1b[2J: SendHeartbeat needs ingest: no rule matches the identity"],
        ),
        (
            "spiffe://Example.org/metald/a",
            "SendHeartbeat",
            {},
            [
                "DENIED: spiffe://Example.org/metald/a: SendHeartbeat needs ingest: no rule matches the identity",
                "  hint: rule 1, 'spiffe://example.org/metald/*', would match but for upper and lower case",
            ],
        ),
    ],
)
def test_an_explanation(identity: str, method: str, named: dict[str, str], lines: list[str]) -> None:
    explanation = explain(EXPLAINED, identity, method, **named)
    assert list(explanation.lines) == lines
    assert explanation.allowed == lines[0].startswith("ALLOWED")


def test_a_star_that_stops_too_early_is_seen() -> None:
    policy = rules_from(("spiffe://example.org/*", grant(1, Role.INGEST)))
    assert explain(policy, METALD, "SendHeartbeat").lines[1] == (
        "  hint: rule 1, 'spiffe://example.org/*', would match with ** in place of *, which stops at each /"
    )


@given(rule_lists, identities, st.sampled_from(sorted(METHODS_NEED)), texts, texts, texts)
def test_an_explanation_agrees_with_the_grants(
    drawn: list[tuple[list[str], Grant]], identity: str, method: str, customer: str, vm: str, instance: str
) -> None:
    policy, need = policy_of(drawn), METHODS_NEED[method]
    named = {"customer": customer, "vm": vm, "instance": instance}
    of_use = {name: text for name, text in named.items() if f"{name}s" in SUBJECTS[method]}
    expected = need is None or any(found.allows(**of_use) for found in policy.grants_for(identity, need))
    explanation = explain(policy, identity, method, **named)
    assert explanation.allowed == expected
    assert explanation.lines[0].startswith("ALLOWED" if expected else "DENIED")
