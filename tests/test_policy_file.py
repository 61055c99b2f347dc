"""The policy's file: what it may say, everything that is wrong with it at once, and the page that describes it."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billaged.identity.explain import explain
from billaged.identity.names import NAMES
from billaged.identity.policy import METHODS_NEED, Need, Policy, Role
from billaged.identity.policy_file import FILE_BYTES_MAX, RULES_MAX, PolicyError, load, minimal_policy, parse
from billaged.model.errors import StartError

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "policy.md").read_text()
EXAMPLE = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]
METALD = "spiffe://example.org/metald/host-1"
INGEST, READ, STATS = Need(Role.INGEST), Need(Role.READ), Need(Role.READ, unlimited=True)

RULE = '[[allow]]\nidentity = "a"\nroles = "ingest"\n'


def problems(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        parse(text, "p")
    return str(caught.value).splitlines()


def problem(line: str, *, without: str = "") -> str:
    """The only problem of a rule with this line in it, without its place; ``without`` names a key it has not."""
    keys = {"identity": 'identity = "a"', "roles": 'roles = "ingest"'}
    keys = {key: text for key, text in keys.items() if key != without and not line.startswith(f"{key} ")}
    found = problems("[[allow]]\n" + "\n".join([*keys.values(), line]))
    assert len(found) == 1
    assert found[0].startswith("p: line 1: allow[1]")
    return found[0].removeprefix("p: line 1: allow[1]")


def test_the_example_of_the_page_gives_what_it_says() -> None:
    policy = parse(EXAMPLE, "policy.toml")
    assert policy.warnings == ()
    (host,) = policy.grants_for(METALD, INGEST)
    assert host.rule == 1
    assert host.allows(customer="acme-7", vm="vm-1", instance="metald-1")
    assert host.allows(customer="customer-1")
    assert not host.allows(customer="customer-12")
    assert not host.allows(vm="vm/1")
    assert policy.grants_for(METALD, READ) == ()
    assert policy.grants_for(METALD + "/x", INGEST) == ()
    for operator in ("spiffe://example.org/operators/jo", "spiffe://partner.example/operator"):
        assert [found.rule for found in policy.grants_for(operator, STATS)] == [2]
    assert policy.grants_for("@plaintext", INGEST) == ()


def test_the_page_shows_what_is_said() -> None:
    with pytest.raises(PolicyError) as caught:
        parse(EXAMPLE.replace('"admin"', '"ingst"'), "policy.toml")
    assert f"\n    {caught.value}\n" in PAGE
    explanation = explain(parse(EXAMPLE, "p"), METALD, "SendMetricsBatch", customer="acme-1")
    assert "\n".join(f"    {line}" for line in explanation.lines) in PAGE


def test_the_page_has_every_role_and_method() -> None:
    for role in Role:
        assert re.search(rf"^\| `{role}` \|", PAGE, re.MULTILINE)
    for name in METHODS_NEED:
        assert name in PAGE
    for name in NAMES:
        assert f"`{name}`" in PAGE


def test_a_text_stands_for_a_list_of_one() -> None:
    one = parse(RULE + 'vms = "v"', "p")
    several = parse('[[allow]]\nidentity = ["a"]\nroles = ["ingest", "ingest"]\nvms = ["v", "v"]', "p")
    assert one.rules == several.rules


def test_tables_may_be_written_inline() -> None:
    assert parse('allow = [{identity = "a", roles = "ingest"}]', "p").rules == parse(RULE, "p").rules
    found = problems('allow = [{identity = "a", roles = "ingest"}, {identity = "a", roles = "ingst"}]')
    assert found == ["p: allow[2].roles: 'ingst' is no role; did you mean ingest?"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "p: has no [[allow]] table; write 'allow = []' if nobody shall be allowed anything"),
        ("[allow]\nroles = 'read'", "p: allow: is one table; write [[allow]], with two brackets, above each rule"),
        ("allow = 'a'", "p: allow: must be tables; write [[allow]] above each rule"),
        ("allow = [1]", "p: allow: must be tables; write [[allow]] above each rule"),
        (RULE + "[[deny]]\nx = 1", "p: 'deny': unknown key; a rule is an [[allow]] table"),
        (RULE + "[[alow]]\nx = 1", "p: 'alow': unknown key; did you mean allow?"),
        ('[[allow]]\nidentity = "a\n', "p: is not TOML: Illegal character '\\n' (at line 2, column 14)."),
        ("[[allow]]\nidentity = '\x1b'\n", "p: is not TOML: Found invalid character '\\x1b' (at line 2, column 13)."),
        ("x = " + "[" * 100_000, "p: is no policy: its values are nested too deeply."),
        ("x = 1" + "0" * 5000, "p: is not TOML: Exceeds the limit (4300 digits) for integer string conversion"),
        ("#" * (FILE_BYTES_MAX + 1), "p: has more than 1048576 characters."),
        ("allow = [" + "{}," * (RULES_MAX + 1) + "]", "p: has 10001 rules, at most 10000 are allowed"),
    ],
    ids=range(12),
)
def test_what_is_no_policy(text: str, found: str) -> None:
    lines = problems(text)
    assert len(lines) == 1
    assert lines[0].startswith(found)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("role = 'read'", ": 'role': unknown key; did you mean roles?"),
        ("Customer = 'c'", ": 'Customer': unknown key; did you mean customers?"),
        ("zone = 'z'", ": 'zone': unknown key; keys are identity, roles, customers, vms, instances"),
        ('"\\u001b" = 1', ": '\\x1b': unknown key; keys are identity, roles, customers, vms, instances"),
        ("roles = 'Ingest'", ".roles: 'Ingest' is no role; did you mean ingest?"),
        ("roles = 'xyz'", ".roles: 'xyz' is no role; roles are ingest, usage, read, admin"),
        ("roles = []", ".roles: is an empty list"),
        ("roles = 1", ".roles: must be a text or a list of texts"),
        ("roles = ['read', 1]", ".roles: must be a text or a list of texts"),
        ("identity = []", ".identity: is an empty list"),
        ("identity = {}", ".identity: must be a text or a list of texts"),
        ("vms = []", ".vms: is an empty list; leave it out for no limit"),
        ("customers = ''", ".customers: '' is empty"),
        ("customers = 'a c'", ".customers: 'a c' can never match: an id has only letters, digits and ._:/@-"),
        ("instances = 'a***'", ".instances: 'a***' has more than two * in a row; write ** for any run"),
        (f"vms = '{'v' * 200}*{'v' * 56}'", f".vms: '{'v' * 60}…' can never match: no id has more than 255 characters"),
        ("identity = ''", ".identity: '' is empty"),
        ("identity = '@plaintxt'", ".identity: '@plaintxt' is no name of a caller without a certificate; these are"),
        ("identity = '@*'", ".identity: '@*' is no name of a caller without a certificate; these are @plaintext"),
        ("identity = 'a b'", ".identity: 'a b' can never match: no identity has white space"),
        ("identity = 'jürgen'", ".identity: 'jürgen' can never match: no identity has white space, control characters"),
        ("identity = 'SPIFFE://e.org/a'", ".identity: 'SPIFFE://e.org/a' can never match: spiffe:// is in lower case"),
        ("identity = 'spiffe://E.org/a'", ".identity: 'spiffe://E.org/a' can never match: a trust domain has only"),
        ("identity = 'spiffe://e.org:80/a'", ".identity: 'spiffe://e.org:80/a' can never match: a trust domain has"),
        ("identity = 'spiffe:///a'", ".identity: 'spiffe:///a' can never match: it names no trust domain"),
        ("identity = 'spiffe://e.org'", ".identity: 'spiffe://e.org' can never match: it names a trust domain and no"),
        ("identity = 'spiffe://e*'", ".identity: 'spiffe://e*' can never match: it names a trust domain"),
        ("identity = 'spiffe://e.org/'", ".identity: 'spiffe://e.org/' can never match: no SPIFFE ID ends with /"),
        ("identity = 'spiffe://e.org/*/'", ".identity: 'spiffe://e.org/*/' can never match: no SPIFFE ID ends with /"),
        ("identity = 'spiffe://e.org/a//b'", ".identity: 'spiffe://e.org/a//b' can never match: no step of a SPIFFE"),
        ("identity = 'spiffe://e.org/a/../b'", ".identity: 'spiffe://e.org/a/../b' can never match: no step of a"),
        ("identity = 'spiffe://e.org/a?b'", ".identity: 'spiffe://e.org/a?b' can never match: the path of a SPIFFE ID"),
    ],
)
def test_what_is_no_rule(line: str, found: str) -> None:
    assert problem(line).startswith(found)


def test_what_a_rule_needs() -> None:
    assert problem("", without="identity") == ".identity: is missing: whom is the rule for?"
    assert problem("", without="roles") == ".roles: is missing; one or more of ingest, usage, read, admin"


def test_everything_wrong_is_told_at_once_with_its_line() -> None:
    text = (
        "# a comment\n"
        + RULE
        + '\n\n  [[ allow ]]\nidentity = ["spiffe://E.org/x", "a b"]\nroles = ["ingst", "red"]\n[[alow]]\nx = 1\n'
    )
    assert [re.sub(r"(.*?'.*?').*", r"\1", line) for line in problems(text)] == [
        "p: 'alow'",
        "p: line 7: allow[2].identity: 'spiffe://E.org/x'",
        "p: line 7: allow[2].identity: 'a b'",
        "p: line 7: allow[2].roles: 'ingst'",
        "p: line 7: allow[2].roles: 'red'",
    ]


def test_no_more_is_told_than_can_be_read() -> None:
    lines = problems('[[allow]]\nidentity = "a"\nroles = "x"\n' * 60)
    assert len(lines) == 51
    assert lines[-1] == "p: and 10 more problems"


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        ("allow = []", ["p: has no rule: nobody is allowed anything"]),
        (RULE + RULE, ["p: line 4: allow[2]: says the same as allow[1]"]),
        (
            "[[allow]]\nidentity = '**'\nroles = 'read'",
            ["p: line 1: allow[1]: identity: '**' matches everybody who has a certificate, of any trust domain"],
        ),
        (
            "[[allow]]\nidentity='a'\nroles='usage'",
            ["p: line 1: allow[1]: roles: no method of this version needs usage"],
        ),
        (RULE + "vms = '**'", ["p: line 1: allow[1]: vms: '**' is no limit; leave vms out"]),
        (
            RULE + "instances = 'i'",
            [
                "p: line 1: allow[1]: instances: does not limit SendMetricsBatch, NotifyVmStarted, NotifyVmStopped,"
                " NotifyPossibleGap, whose requests name none; add vms or customers where that matters"
            ],
        ),
        *(
            (
                f"[[allow]]\nidentity = '{name}'\nroles = 'ingest'",
                [f"p: line 1: allow[1]: identity: '{name}' is everybody who can connect without a certificate"],
            )
            for name in ("@plaintext", "@anonymous")
        ),
    ],
)
def test_what_was_hardly_meant_is_a_warning(text: str, warnings: list[str]) -> None:
    assert list(parse(text, "p").warnings) == warnings


@pytest.mark.parametrize(
    ("pattern", "warned"),
    [
        ("spiffe://*/metald", True),
        ("spiffe://example.org**", True),
        ("spiffe://**/metald", True),
        ("**/metald", True),
        ("spi**", True),
        ("spiffe://example.org/**", False),
        ("spiffe://example.org/*/metald", False),
        ("spiffe://example.org/Host_1.a-b/**/x", False),
        ("spiffe://**/Metald", True),
        ("spiffe://**Metald", True),
        ("*.example.org", False),
        ("host-*", False),
        ("https://example.org/**", False),
        ("@token", False),
    ],
)
def test_a_pattern_that_reaches_over_trust_domains_is_warned_of(pattern: str, warned: bool) -> None:
    warnings = parse(f'[[allow]]\nidentity = "{pattern}"\nroles = "ingest"', "p").warnings
    assert ["trust domain" in warning for warning in warnings] == [True] * warned


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("\ufeff" + EXAMPLE)  # as some editors write it
    path.chmod(0o644)
    policy = load(path)
    assert len(policy.rules) == 2
    assert policy.warnings == ()
    assert load(str(path)).rules == policy.rules


def test_a_file_that_everybody_can_write_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(RULE)
    path.chmod(0o646)
    (warning,) = load(path).warnings
    assert warning.startswith(f"{path}: every user of this machine can write it")


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    def error(path: Path) -> str:
        with pytest.raises(PolicyError) as caught:
            load(path)
        assert isinstance(caught.value, StartError)
        return str(caught.value)

    descriptors_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a directory of this moment
    missing = tmp_path / "missing.toml"
    assert error(missing) == f"{missing}: cannot be read: No such file or directory."
    assert error(missing / "x").endswith("No such file or directory.")
    assert error(tmp_path) == f"{tmp_path}: cannot be read: Is a directory."
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert error(pipe) == f"{pipe}: cannot be read: it is no regular file."
    large = tmp_path / "large"
    large.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    assert error(large) == f"{large}: cannot be read: it has more than 1048576 bytes."
    binary = tmp_path / "bin\nary"
    binary.write_bytes(b"# \n\n# \xff\n")
    assert error(binary) == f"{tmp_path}/bin\\nary: line 3: is not UTF-8."
    binary.write_bytes(b"a = \x00")
    assert "is not TOML" in error(binary)
    assert len(os.listdir("/proc/self/fd")) == descriptors_before  # noqa: PTH208


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(RULE)
    path.chmod(0)
    with pytest.raises(PolicyError, match="Permission denied"):
        load(path)


def test_the_largest_policy_is_read_in_seconds() -> None:
    text = "".join(f"[[allow]]\nidentity='spiffe://e.org/{n}/*'\nroles='ingest'\nvms='v*'\n" for n in range(RULES_MAX))
    begun = time.perf_counter()
    policy = parse(text, "p")
    assert time.perf_counter() - begun < 10
    assert [found.rule for found in policy.grants_for("spiffe://e.org/9999/a", INGEST)] == [RULES_MAX]


@given(
    st.text(max_size=40)
    | st.sampled_from([*NAMES, METALD, "host.example.org", 'a"b', "a\\b", "*", "spiffe://e.org/a*"])
)
def test_the_minimal_policy_is_one_for_everybody(identity: str) -> None:
    policy = parse(minimal_policy(identity), "p")
    (rule,) = policy.rules
    assert rule.grant.roles == {Role.INGEST}
    # Never anybody else but the identity or, where no rule can name it, the example.
    assert rule.identities.texts in {(identity,), ("spiffe://example.org/metald/*",)}
    assert not rule.identities.wild or rule.identities.texts[0].startswith("spiffe://example.org/metald/")


@pytest.mark.parametrize("identity", [*NAMES, METALD, "host.example.org", 'https://e.org/"\\'])
def test_the_minimal_policy_lets_the_identity_send(identity: str) -> None:
    policy = parse(minimal_policy(identity), "p")
    assert policy.grants_for(identity, INGEST)
    assert not policy.grants_for(identity, READ)
    assert not policy.grants_for("other", INGEST)


def test_the_minimal_policy_becomes_whole_without_its_comment_signs() -> None:
    assert len(parse(minimal_policy(None), "p").rules) == 1
    text = minimal_policy("spiffe://prod.example.com/metald")
    uncommented = re.sub(r"^# (?=\S+ = |\[\[)", "", text, flags=re.MULTILINE)
    policy = parse(uncommented, "p")
    assert isinstance(policy, Policy)
    assert [bool(rule.grant.limited) for rule in policy.rules] == [True, False]
    assert policy.grants_for("spiffe://prod.example.com/operators/jo", STATS)
