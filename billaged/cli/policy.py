"""``billaged policy``: what the policy's file says, and what that means for one caller."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from billaged.cli.reading import load_settings, print_sheet
from billaged.model.errors import EXIT_FAILURE, SettingError

if TYPE_CHECKING:
    from billaged.identity.patterns import Patterns
    from billaged.identity.policy import Policy
    from billaged.reports.sheet import Sheet


@click.group()
def policy() -> None:
    """Check the policy's file, or ask it what somebody may do.

    The file is FILE, else that of UNKEY_BILLAGED_POLICY_FILE; - is the standard input.
    These read it as it is now: a running daemon has what it read at its start or at the last SIGHUP.
    """


_FILE = click.Path(path_type=Path, allow_dash=True)


@policy.command()
@click.argument("file", type=_FILE, required=False)
def check(file: Path | None) -> None:
    """Print what each rule gives, and what looks like a mistake.

    Exit code 2 where the file cannot be used: all that is wrong is on stderr.
    Warnings are on stderr, too, and change no exit code.
    """
    found = _policy(file)
    if found.rules:
        print_sheet(_sheet(found))
    count = len(found.rules)
    click.echo(f"{'1 rule' if count == 1 else f'{count:,} rules'}; what none of them allows is denied")
    for warning in found.warnings:
        click.echo(f"billaged: warning: {warning}", err=True)


@policy.command()
@click.argument("identity")
@click.argument("method")
@click.option("--customer", metavar="ID", help="The customer named, or the one the named VM belongs to.")
@click.option("--vm", metavar="ID", help="The VM named.")
@click.option("--instance", metavar="ID", help="The instance named (heartbeats).")
@click.option("--file", "file", type=_FILE, metavar="FILE", help="Another policy's file.")
def explain(
    identity: str, method: str, customer: str | None, vm: str | None, instance: str | None, file: Path | None
) -> None:
    """Say whether IDENTITY may call METHOD, and which rule makes it so.

    IDENTITY is a SPIFFE ID or the name in a certificate, or for callers without one
    @plaintext, @anonymous or @token. METHOD is SendMetricsBatch, 'GET /stats',
    health, reflection, or a full name as billing.v1.BillingService/SendMetricsBatch.
    What the request names is checked where it is given.

    Exit code 0 for allowed, 1 for denied.
    """
    from billaged.identity.explain import explain as run

    explanation = run(_policy(file), identity, method, customer=customer, vm=vm, instance=instance)
    for line in explanation.lines:
        click.echo(line)
    if not explanation.allowed:
        sys.exit(EXIT_FAILURE)


@policy.command()
@click.argument("identity", required=False)
def example(identity: str | None) -> None:
    """Print a policy to start from, in which IDENTITY may send usage."""
    from billaged.identity.policy_file import minimal_policy

    click.echo(minimal_policy(identity), nl=False)


def _policy(file: Path | None) -> Policy:
    from billaged.identity.policy_file import FILE_BYTES_MAX, load, parse_bytes

    if file is None:
        file = load_settings().tls.policy_file
    if file is None:
        raise SettingError(
            "UNKEY_BILLAGED_POLICY_FILE is not set, so there is no policy to look at.",
            "Set it or name a file; 'billaged policy example' prints one.",
        )
    if str(file) == "-":
        return parse_bytes(sys.stdin.buffer.read(FILE_BYTES_MAX + 1), "standard input")
    return load(file)


def _sheet(found: Policy) -> Sheet:
    from billaged.identity.explain import patterns_text, roles_text
    from billaged.reports.sheet import Column, Sheet

    def cell(limit: Patterns | None) -> str:
        return "all" if limit is None else patterns_text(limit)

    headings = ("identity", "roles", "customers", "VMs", "instances")
    return Sheet(
        [Column("rule", number=True), *map(Column, headings)],
        [
            [
                str(grant.rule),
                patterns_text(identities),
                roles_text(grant),
                cell(grant.customers),
                cell(grant.vms),
                cell(grant.instances),
            ]
            for identities, grant in found.rules
        ],
    )
