"""What docs/security.md says of settings, limits, tests and commands is so."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import grpc
import pytest
from google.protobuf import json_format

from billaged.cli.main import billaged
from billaged.doors.extras import STREAMS_MAX
from billaged.doors.rate import Limiter
from billaged.identity.explain import FULL_NAMES
from billaged.identity.names import NAMES
from billaged.identity.policy_file import parse
from billaged.identity.verification import _DEPTH_MAX
from billaged.settings import Settings
from billaged.settings.section import PREFIX
from billaged.web.protocol import REQUEST_SECONDS
from billaged.web.server import REQUESTS_MAX
from billaged.wire.billing.v1 import billing_pb2

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text()
FLAT = " ".join(PAGE.split())
DEFAULTS = {line.name.removeprefix(PREFIX): line.default for line in Settings().lines()}
STATUSES = {code.name for code in grpc.StatusCode} | {"SERVING", "NOT_SERVING"}

# An amount as the page writes it: 4,096 or 15 min or 4 MiB.
AMOUNT = re.compile(r"\d{1,3}(?:,\d{3})*(?: (?:s|min|h|KiB|MiB)\b)?")
NAME = re.compile(rf"`(?:{PREFIX})?([A-Z][A-Z_]+)(?:=[^`]*)?`")


def section(heading: str) -> str:
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a table without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def amount(name: str) -> str | None:
    """A setting's default as the page writes it; None where the default is no limit."""
    found = re.fullmatch(r"(\d+)(h|m|s|KiB|MiB|)", DEFAULTS[name] or "")
    assert found, f"{name} is by default {DEFAULTS[name]}, which the page cannot write"
    number, unit = int(found[1]), {"m": "min"}.get(found[2], found[2])
    return f"{number:,} {unit}".strip() if number else None


# --- settings --------------------------------------------------------------------


def test_every_setting_that_is_named_exists() -> None:
    written = set(re.findall(rf"{PREFIX}(\w+)", PAGE)) | set(NAME.findall(PAGE))
    assert len(written) > 20
    assert written - STATUSES <= DEFAULTS.keys()


def test_every_short_form_is_the_end_of_a_setting_beside_the_one_before() -> None:
    """`UNKEY_BILLAGED_TLS_CERT_FILE` and `_KEY_FILE`."""
    before, short_forms = "", 0
    for name, short in re.findall(rf"`{PREFIX}(\w+)[^`]*`|`(_[A-Z_]+)`", PAGE):
        before = name or before
        if short:
            short_forms += 1
            words = before.split("_")
            meant = {"_".join(words[:count]) + short for count in range(1, len(words) + 1)}
            assert meant & DEFAULTS.keys(), f"{short} after {before}"
    assert short_forms >= 3


def test_values_that_are_given_are_taken() -> None:
    given = dict(re.findall(rf"`({PREFIX}\w+)=([^`]+)`", PAGE))
    assert given
    assert Settings.load(given).given == given.keys()


def test_the_mode_called_the_default_is_it() -> None:
    [mode] = re.findall(rf"`{PREFIX}TLS_MODE`: `(\w+)` \(default", PAGE)
    assert mode == DEFAULTS["TLS_MODE"]


def test_ports_and_sockets_in_examples_are_the_defaults() -> None:
    assert set(re.findall(r"\b(?:localhost|HOST|127\.0\.0\.1):(\d+)", PAGE)) == {DEFAULTS["PORT"]}
    assert set(re.findall(r"/[\w/.]+\.sock\b", PAGE)) == {DEFAULTS["SPIFFE_SOCKET"]}


# --- limits ----------------------------------------------------------------------


@pytest.mark.parametrize("row", rows(section("Limits")), ids=lambda row: str(row[0]))
def test_a_limits_row_states_the_defaults_of_its_settings(row: list[str]) -> None:
    _, limit, settings = row
    names = NAME.findall(settings)
    assert names
    defaults = [amount(name) for name in names]
    assert AMOUNT.findall(limit) == [default for default in defaults if default is not None]
    assert ("if that is set" in limit) == (None in defaults)


def test_limits_named_beside_the_table_are_the_defaults() -> None:
    found = re.findall(rf"({AMOUNT.pattern}) [a-z]+ \({NAME.pattern}\)", FLAT)
    assert found
    for stated, name in found:
        assert stated == amount(name), name


def test_limits_that_nobody_can_set_are_those_of_the_code() -> None:
    assert inspect.signature(Limiter).parameters["burst_seconds"].default == 5
    assert "five seconds' worth at once" in FLAT
    assert f"{REQUESTS_MAX} requests at once and {REQUEST_SECONDS:g} s for each" in FLAT
    assert f"Health and reflection have at most {STREAMS_MAX} streams together" in FLAT
    assert f"at most {_DEPTH_MAX} certificates between" in FLAT


# --- identities and the policy ---------------------------------------------------


def test_callers_without_a_certificate_have_these_names() -> None:
    assert set(re.findall(r"`(@\w+)`", section("Identities"))) == set(NAMES)
    assert set(re.findall(r"`(@\w+)`", PAGE)) == set(NAMES)


@pytest.mark.parametrize("text", blocks("toml"))
def test_a_policy_on_the_page_is_one(text: str) -> None:
    policy = parse(text, "docs/security.md")
    assert policy.rules
    assert policy.warnings == ()


# --- tests -----------------------------------------------------------------------


@pytest.mark.parametrize("row", rows(section("How each promise is tested")), ids=lambda row: str(row[0]))
def test_the_tests_of_a_promise_exist(row: list[str]) -> None:
    found = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row[1])
    assert len(found) == row[1].count("`") / 2 > 0, "each is written as a path, with :: and a name or without"
    for file, name in found:
        test = name or r"test_\w+"
        assert re.search(rf"^(?:async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"


# --- commands --------------------------------------------------------------------

COMMANDS = [
    shlex.split(line, comments=True)
    for block in blocks("sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


def flags_of(command: list[str]) -> list[str]:
    return [word for word in command if word.startswith("-")]


def subcommand_of(command: list[str]) -> list[str]:
    """The program and what it shall do: the words before the first flag."""
    first = next((index for index, word in enumerate(command) if word.startswith("-")), len(command))
    return command[:first]


def test_the_page_has_commands_for_each_tool() -> None:
    assert {command[0] for command in COMMANDS} == {"spire-server", "spire-agent", "grpcurl"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(subcommand_of(command)))
def test_the_tool_knows_the_flags(command: list[str]) -> None:
    tool = command[0]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not on the PATH")
    # Each of them prints its help on the one or the other, and ends as it likes.
    done = subprocess.run([*subcommand_of(command), "-help"], capture_output=True, text=True, timeout=30, check=False)
    known = set(re.findall(r"^\s+(-[\w-]+)", done.stdout + done.stderr, re.MULTILINE))
    assert flags_of(command)
    assert set(flags_of(command)) <= known


def test_the_grpcurl_line_calls_a_method_with_its_request() -> None:
    [command] = [command for command in COMMANDS if command[0] == "grpcurl"]
    method = FULL_NAMES[command[-1]]
    request = getattr(billing_pb2, f"{method}Request")()
    json_format.Parse(command[command.index("-d") + 1], request)
    assert request.ListFields()


@pytest.mark.parametrize("line", sorted(set(re.findall(r"`(billaged [^`]+)`", PAGE))))
def test_billaged_takes_its_own_commands(line: str) -> None:
    _, *words = shlex.split(line)
    command: click.Command = billaged
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command = found
    command.make_context("billaged", words)
