"""``billaged policy``: as it is typed, with exit codes, streams, and where the file comes from."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from billaged.identity.policy import METHODS_NEED
from billaged.identity.policy_file import parse

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "policy.md").read_text()
EXAMPLE = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]
METALD = "spiffe://example.org/metald/host-1"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text(EXAMPLE)
    return tmp_path


def run(directory: Path, *arguments: str, given: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    others = {name: text for name, text in os.environ.items() if not name.startswith("UNKEY_BILLAGED_")}
    return subprocess.run(
        [sys.executable, "-m", "billaged", "policy", *arguments],
        cwd=directory,
        input=given,
        env=others | {f"UNKEY_BILLAGED_{name}": text for name, text in variables.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_check_prints_what_each_rule_gives(directory: Path) -> None:
    outcome = run(directory, "check", "policy.toml")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    rows = [re.split(r" {2,}", line.strip()) for line in outcome.stdout.splitlines()]
    assert rows == [
        ["rule", "identity", "roles", "customers", "VMs", "instances"],
        ["1", "spiffe://example.org/metald/*", "ingest", "customer-1, acme-*", "vm-*", "metald-*"],
        ["2", "spiffe://example.org/operators/*, spiffe://partner.example/operator", "admin", "all", "all", "all"],
        ["2 rules; what none of them allows is denied"],
    ]


def test_check_takes_the_file_of_the_settings(directory: Path) -> None:
    outcome = run(directory, "check", POLICY_FILE="policy.toml")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert outcome.stdout == run(directory, "check", "policy.toml").stdout
    outcome = run(directory, "check")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("billaged: error: UNKEY_BILLAGED_POLICY_FILE is not set")
    # One that is named needs no settings, however wrong they are.
    assert run(directory, "check", "policy.toml", PORT="x").returncode == 0


def test_check_tells_all_that_is_wrong_and_exits_with_2(directory: Path) -> None:
    outcome = run(directory, "check", "-", given='[[allow]]\nidentity = "a b"\nroles = "ingst"\n')
    assert (outcome.returncode, outcome.stdout) == (2, "")
    lines = outcome.stderr.splitlines()
    assert len(lines) == 2
    assert lines[1] == (
        "billaged: error: standard input: line 1: allow[1].roles: 'ingst' is no role; did you mean ingest?"
    )
    outcome = run(directory, "check", "missing.toml")
    assert (outcome.returncode, outcome.stderr) == (
        2,
        "billaged: error: missing.toml: cannot be read: No such file or directory.\n",
    )


def test_a_warning_changes_no_exit_code(directory: Path) -> None:
    outcome = run(directory, "check", "-", given="allow = []")
    assert (outcome.returncode, outcome.stdout) == (0, "0 rules; what none of them allows is denied\n")
    assert outcome.stderr == "billaged: warning: standard input: has no rule: nobody is allowed anything\n"


def test_a_long_list_is_shown_by_its_beginning(directory: Path) -> None:
    names = ", ".join(f'"host-{number}"' for number in range(1000))
    outcome = run(directory, "check", "-", given=f'[[allow]]\nidentity = [{names}]\nroles = "read"\n')
    assert "  host-0, host-1, host-2, host-3, host-4 and 995 more  " in outcome.stdout


def test_explain_says_allowed_or_denied_and_why(directory: Path) -> None:
    outcome = run(directory, "explain", METALD, "SendHeartbeat", "--instance", "metald-9", POLICY_FILE="policy.toml")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert outcome.stdout.startswith(f"ALLOWED by rule 1: {METALD}: SendHeartbeat needs ingest\n  rule 1 matches by")
    outcome = run(directory, "explain", METALD, "SendHeartbeat", "--instance", "x", "--file", "policy.toml")
    assert (outcome.returncode, outcome.stderr) == (1, "")
    assert outcome.stdout.startswith(f"DENIED: {METALD}: SendHeartbeat needs ingest: outside of the limits")
    outcome = run(directory, "explain", "@token", "/billing.v1.BillingService/SendHeartbeat", "--file", "policy.toml")
    assert outcome.returncode == 1
    assert "a rule must say @token" in outcome.stdout
    assert run(directory, "explain", "x", "health", "--file", "policy.toml").returncode == 0


@pytest.mark.parametrize("option", ["--customer", "--vm"])
def test_explain_looks_at_what_the_request_names(directory: Path, option: str) -> None:
    arguments = ("explain", METALD, "SendMetricsBatch", "--file", "policy.toml", option)
    assert run(directory, *arguments, "customer-1" if option == "--customer" else "vm-1").returncode == 0
    assert run(directory, *arguments, "bravo").returncode == 1


def test_explain_lists_the_methods_for_an_unknown_one(directory: Path) -> None:
    outcome = run(directory, "explain", METALD, "SendHartbeat", "--file", "policy.toml")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert "Did you mean SendHeartbeat?" in outcome.stderr
    assert all(name in outcome.stderr for name in METHODS_NEED)


def test_a_broken_policy_explains_nothing(directory: Path) -> None:
    outcome = run(directory, "explain", METALD, "health", "--file", "-", given="allow = 1")
    assert (outcome.returncode, outcome.stdout) == (2, "")


def test_the_example_is_a_policy(directory: Path) -> None:
    for arguments in ((), (METALD,)):
        outcome = run(directory, "example", *arguments)
        assert (outcome.returncode, outcome.stderr) == (0, "")
        assert len(parse(outcome.stdout, "p").rules) == 1
        assert not arguments or f'"{METALD}"' in outcome.stdout


def test_the_commands_of_the_page_work(directory: Path) -> None:
    block = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]
    codes = []
    for command in block.splitlines():
        name, group, *arguments = shlex.split(command)
        assert (name, group) == ("billaged", "policy")
        codes.append(run(directory, *arguments).returncode)
    assert codes == [0, 0, 1]
