"""``billaged config show`` and the translation of errors into lines and exit codes, in real processes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from billaged.cli.errors import exit_codes
from billaged.model.errors import (
    BillagedError,
    DurabilityLost,
    NotServing,
    SettingError,
    StartError,
    StorageError,
)
from billaged.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
PROGRAM = """
from billaged.cli.config import config
from billaged.cli.errors import exit_codes
with exit_codes():
    config(prog_name="billaged config")
"""
COMMAND = [sys.executable, "-c", PROGRAM, "show"]


def environment(**texts: str) -> dict[str, str]:
    """This process's environment without settings of its own, and with these."""
    others = {name: text for name, text in os.environ.items() if not name.upper().startswith("UNKEY_BILLAGED_")}
    return others | {f"UNKEY_BILLAGED_{name}": text for name, text in texts.items()}


def show(*arguments: str, **texts: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], env=environment(**texts), capture_output=True, timeout=60)


def test_columns_for_a_pipe_have_name_value_and_source() -> None:
    outcome = show(PORT="9000", AGGREGATION_INTERVAL="90s", HTTP_TOKEN="hunter2-hunter2-")
    assert outcome.returncode == 0, outcome.stderr
    rows = {line.split()[0]: line.split()[1:] for line in outcome.stdout.decode().splitlines()}
    assert rows["UNKEY_BILLAGED_PORT"] == ["9000", "environment"]
    assert rows["UNKEY_BILLAGED_AGGREGATION_INTERVAL"] == ["1m30s", "environment"]
    assert rows["UNKEY_BILLAGED_QUEUE_MAX_BYTES"] == ["256MiB", "default"]
    assert rows["UNKEY_BILLAGED_TLS_CA_FILE"] == ["(not", "set)", "default"]
    assert rows["UNKEY_BILLAGED_HTTP_TOKEN"] == ["***", "environment"]
    assert set(rows) == {line.name for line in Settings().lines()} | {"name"}


def test_json_is_for_programs() -> None:
    outcome = show("--format", "json", PORT="9000", VANISH_AFTER="2h", DATABASE_URL="postgresql://me:hunter2@db/b")
    settings = {item.pop("name"): item for item in json.loads(outcome.stdout)}
    assert settings["UNKEY_BILLAGED_PORT"] == {"value": "9000", "source": "environment", "not_yet": False}
    assert settings["UNKEY_BILLAGED_VANISH_AFTER"] == {"value": "2h", "source": "environment", "not_yet": False}
    assert settings["UNKEY_BILLAGED_TLS_CA_FILE"] == {"value": None, "source": "default", "not_yet": False}
    assert settings["UNKEY_BILLAGED_DATABASE_URL"] == {"value": "***", "source": "environment", "not_yet": True}


def test_env_can_be_fed_back() -> None:
    # A path may hold anything but NUL: quotes, a line's end, bytes that are no UTF-8.
    given = {
        "DATA_DIR": "/tmp/it's [red]\n\udcff",
        "GAP_THRESHOLD": "90m",
        "GAP_THRESHOLDS": "batch-co=2h,a:b/c@d=1h30m",
        "SCORE_CPU_WEIGHT": "1.50",
        "DATABASE_URL": "postgresql://me:hunter2@db/b",
    }
    outcome = show("--format", "env", **given)
    assert outcome.returncode == 0, outcome.stderr
    words = shlex.split(os.fsdecode(outcome.stdout), comments=True)
    again = Settings.load(dict(word.split("=", 1) for word in words))
    assert again.sections == Settings.load({f"UNKEY_BILLAGED_{name}": text for name, text in given.items()}).sections
    assert "UNKEY_BILLAGED_DATABASE_URL" not in again.given  # *** must never become the token


def test_a_terminal_gets_a_table_and_no_value_is_taken_for_markup() -> None:
    ours, theirs = pty.openpty()
    variables = environment(DATA_DIR="/tmp/[red]\x1b[2J") | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(COMMAND, env=variables, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        received = b""
        # EIO is how Linux says that the other end of a terminal is closed.
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 65_536):
                received += chunk
        os.close(ours)
        assert process.wait(60) == 0
    assert "│".encode() in received
    assert b"/tmp/[red]\\x1b[2J" in received
    assert b"\x1b[2J" not in received


def test_a_bad_environment_is_what_the_page_says() -> None:
    outcome = show(PORT="99999", PROT="1")
    lines = outcome.stderr.decode().splitlines()
    assert (outcome.returncode, outcome.stdout) == (2, b"")
    assert len(lines) == 2
    page = [line.strip() for line in PAGE.read_text().splitlines()]
    assert page[page.index(lines[0]) + 1] == lines[1]


def test_a_wrong_argument_is_a_usage_error() -> None:
    outcome = show("--format", "xml")
    assert outcome.returncode == 2
    assert b"'xml' is not one of 'table', 'json', 'env'" in outcome.stderr


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (SettingError("A: bad.\nB: bad."), 2, ["billaged: error: A: bad.", "billaged: error: B: bad."]),
        (
            StartError("port 8081 is in use.", "Stop the other."),
            2,
            ["billaged: error: port 8081 is in use. Stop the other."],
        ),
        (StorageError("/d is held by another daemon."), 1, ["billaged: error: /d is held by another daemon."]),
        (DurabilityLost("commit failed."), 1, ["billaged: error: commit failed."]),
        (NotServing("stopping"), 1, ["billaged: error: stopping"]),
        (BillagedError(), 1, ["billaged: error: BillagedError"]),
    ],
)
def test_an_error_is_a_line_and_an_exit_code(
    error: BillagedError, code: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    @exit_codes()
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == code
    assert capsys.readouterr() == ("", "".join(line + "\n" for line in lines))


def test_a_bug_keeps_its_traceback_and_success_its_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), exit_codes():
        raise ZeroDivisionError
    with exit_codes():
        pass
    assert capsys.readouterr() == ("", "")
