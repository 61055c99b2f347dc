"""docs/operations.md from its first line to its last: each command on it is run, in its order, on one host.

A new one that is neither run here nor listed in operations_tables.py, with what tests it instead, fails.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import pytest
from daemon_process import ROOT
from operations_host import Done, Host, settings_in
from operations_page import COMMANDS, FENCE, FILES, PAGE, POLICY, Command
from operations_tables import (
    BEFORE,
    DRILL,
    ELSEWHERE,
    EXIT_CODES,
    NAMED,
    RUN_HERE,
    SAYS,
    SUBSTITUTIONS,
    SYSTEMCTL,
)

from billaged.settings import Settings
from billaged.settings.section import PREFIX

pytestmark = pytest.mark.timeout(300)

# For the whole page, so that it can stay in every test run; a busy machine takes longer by the clock.
CPU_SECONDS_MAX = 60.0

# Not everybody has them; without one, its command is skipped.
TOOLS = {"curl", "grpcurl", "sqlite3", "zstd"}
READS = re.compile(
    r"billaged (vms|usage|bill|gaps|verify|policy|ledger check|journal (?!replay --into|begin-anew))|.*--help$"
)


def in_file(host: Host, text: str) -> str:
    """As ``at_home``, for settings that are written before there is a daemon."""
    return text.replace("/etc/billaged", str(host.etc)).replace("/var/lib/billaged-backups", str(host.backups))


def missing(command: Command) -> str:
    """The tool that it needs and that is not here; empty for none."""
    used = TOOLS & set(re.findall(r"[\w-]+", command.text))
    return next((tool for tool in sorted(used) if shutil.which(tool) is None), "")


# Places of a real host.
OUTSIDE = re.compile(r"(?<![\w./-])/(?:backup|etc|opt|run|var)\b")
_ANY = re.compile("|".join(f"({pattern})" for pattern, _ in SUBSTITUTIONS))


def at_home(host: Host, text: str) -> str:
    """In one pass: what stands for something is not looked at again."""
    return _ANY.sub(lambda found: SUBSTITUTIONS[(found.lastindex or 0) - 1][1](host), text)


# --- the walk --------------------------------------------------------------------


def is_run_here(command: Command) -> bool:
    text = command.text
    is_ours = text.startswith("billaged ") or DRILL.fullmatch(text)
    return text not in ELSEWHERE and (bool(is_ours) or text in RUN_HERE or text in SYSTEMCTL)


def done_here(host: Host, command: Command) -> Done:
    if stood_in := SYSTEMCTL.get(command.text):
        stood_in(host)
        return Done(0, "")
    if scene := BEFORE.get(command.text):
        scene(host)
    if command.text in NAMED:
        words = " ".join(word for word in command.text.split() if word.islower() and not word.startswith("-"))
        return host.run(f"{words} --help")
    text = at_home(host, command.text)
    assert not OUTSIDE.search(text), f"{text}: what stands for this place?"
    return host.run(text)


def run_agent(host: Host) -> Done:
    """As billaged-agent.service does it, but for one sample."""
    settings = settings_in(at_home(host, FILES["agent"]))
    options = settings.pop("AGENT_OPTIONS")
    return host.run(f"billaged agent --spool-dir {host.tmp}/spool {options} --once", more=settings)


def all_done_here(host: Host, here: Sequence[Command]) -> dict[Command, Done]:
    """One after the other; those that only read may overlap."""
    asked: dict[Command, Future[Done]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for command in here:
            if not READS.match(command.text):
                wait(asked.values())
            asked[command] = pool.submit(done_here, host, command)
            if not READS.match(command.text):
                wait(asked.values())
        return {command: future.result() for command, future in asked.items()}


def cpu_seconds() -> float:
    """What this process and those that it has waited for have used so far."""
    return sum(resource.getrusage(who)[0] for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Walk(NamedTuple):
    done: dict[Command, Done]
    agent: Done
    cpu_seconds: float


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """Every command that is run here, in the page's order: later ones stand on what earlier ones have made."""
    host = Host(tmp_path_factory.mktemp("host"), POLICY)
    for name, text in FILES.items():
        (host.etc / f"{name}.env").parent.mkdir(exist_ok=True)
        (host.etc / f"{name}.env").write_text(in_file(host, text))
    began = cpu_seconds()
    try:
        here = [command for command in COMMANDS if is_run_here(command) and not missing(command)]
        done = all_done_here(host, here)
        agent = run_agent(host)
        yield Walk(done, agent, cpu_seconds() - began)
    finally:
        host.close()


def test_it_fits_into_every_test_run(walk: Walk) -> None:
    assert walk.cpu_seconds < CPU_SECONDS_MAX


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.line}-{command.text[:40]}")
def test_the_command_works(walk: Walk, command: Command) -> None:
    if elsewhere := ELSEWHERE.get(command.text):
        pytest.skip(f"{elsewhere.why}: {elsewhere.test}")
    if tool := missing(command):
        pytest.skip(f"{tool} is not installed")
    assert command in walk.done, "is in none of ELSEWHERE, RUN_HERE and SYSTEMCTL: say where it is run"
    done = walk.done[command]
    expected = next((code for part, code in EXIT_CODES.items() if part in command.text), 0)
    assert done.exit_code == expected, done.output
    assert "Traceback" not in done.output
    for part, said in SAYS.items():
        if command.text.endswith(part) or command.text.startswith(part):
            assert re.search(said, done.output), done.output


def test_the_agent_takes_its_settings(walk: Walk) -> None:
    assert walk.agent.exit_code == 0, walk.agent.output


# --- the page itself -------------------------------------------------------------


def test_what_is_run_elsewhere_is_on_the_page_and_has_a_test() -> None:
    texts = {command.text for command in COMMANDS}
    for text, elsewhere in ELSEWHERE.items():
        assert text in texts, text
        file, _, name = elsewhere.test.partition("::")
        assert re.search(rf"^(?:async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), elsewhere.test


def test_no_table_has_a_line_that_the_page_has_not() -> None:
    texts = {command.text for command in COMMANDS}
    assert {*NAMED, *RUN_HERE, *SYSTEMCTL, *BEFORE} <= texts
    for part in (*SAYS, *EXIT_CODES):
        assert any(part in text for text in texts), part
    everything = "\n".join([*texts, *FILES.values()])
    for pattern, _ in SUBSTITUTIONS:
        assert re.search(pattern, everything, re.MULTILINE), pattern


def test_every_block_says_what_it_is() -> None:
    assert {fence[1] for fence in FENCE.finditer(PAGE)} <= {"bash", "ini", "toml", "conf"}
    assert PAGE.count("\n```") == 2 * len(FENCE.findall(PAGE))


def test_settings_that_are_named_exist() -> None:
    known = {line.name for line in Settings().lines()}
    named = set(re.findall(rf"`({PREFIX}\w+)(?:=[^`]*)?`", PAGE))
    assert len(named) > 15
    assert named <= known
    assert settings_in(FILES["billaged"]).keys() <= known


def test_links_within_the_page_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", PAGE), re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= set(anchors)
