"""The commands that read, as they are typed: formats, exit codes, where the data is."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from report_fixtures import DAY, GIB, MIB, DataDir, at, batch, data_dir

from billaged.cli.errors import exit_code
from billaged.cli.main import billaged
from billaged.model.errors import BillagedError
from billaged.model.records import PossibleGap, VmStarted, VmStopped
from billaged.model.time import HOUR_NANOS, MINUTE_NANOS, NANOS

RECORDS = (
    VmStarted("vm-1", "acme", at("10:00:00")),
    batch("vm-1", (at("10:10:00"), 2 * GIB, 60 * NANOS, 10 * MIB, 20 * MIB, 1, 2)),
    batch("vm-1", (at("10:20:00"), 2 * GIB, 120 * NANOS, 10 * MIB, 20 * MIB, 1, 2)),
    VmStopped("vm-1", at("10:20:00")),
    batch("vm-2", (at("10:00:00"), GIB, 0), (at("12:00:00"), GIB, 1001)),
    batch("vm-3", (at("10:00:00"), GIB, 0), customer="bravo"),
    PossibleGap("vm-2", at("10:00:00"), at("11:59:00")),
)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("UNKEY_BILLAGED_"):
            monkeypatch.delenv(name)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return data_dir(tmp_path, *RECORDS)


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, and what stderr or the error says."""
    result = CliRunner().invoke(billaged, [str(argument) for argument in arguments])
    if isinstance(result.exception, BillagedError):
        return exit_code(result.exception), result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def answer(*arguments: str | Path) -> str:
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    return out


def lines_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_usage_of_a_vm_as_json_is_exact(directory: Path) -> None:
    found: dict[str, Any] = json.loads(
        answer("usage", "vm", "vm-1", "--from", DAY, "--to", DAY, "--format", "json", "--data-dir", directory)
    )
    assert found == {
        "vm_id": "vm-1",
        "from": f"{DAY}T00:00:00Z",
        "to": "2026-11-11T00:00:00Z",
        "from_ns": at("00:00:00"),
        "to_ns": at("00:00:00", "2026-11-11"),
        "by": "total",
        "score_weights": {"cpu_second": "1.0", "memory_gb": "0.5", "disk_mb": "0.3"},
        "total": {
            "cpu_time_ns": 120 * NANOS,
            "memory_mean_bytes": GIB,
            "memory_peak_bytes": 2 * GIB,
            "memory_byte_nanos": 2 * GIB * 10 * MINUTE_NANOS,
            "disk_read_bytes": 10 * MIB,
            "disk_write_bytes": 20 * MIB,
            "network_rx_bytes": 1,
            "network_tx_bytes": 2,
            "samples": 2,
            "measured_ns": 20 * MINUTE_NANOS,
            "gap_ns": 0,
            "gap_cpu_time_ns": 0,
            "gap_disk_read_bytes": 0,
            "gap_disk_write_bytes": 0,
            "gap_network_rx_bytes": 0,
            "gap_network_tx_bytes": 0,
            # 120 s, half of 1 GB, 0.3 of 30 MB.
            "resource_score": "129.500000",
            "cpu_seconds": "120",
            "memory_gib_hours": "0.333333",
            "measured_seconds": "1200",
            "gap_seconds": "0",
            "gap_cpu_seconds": "0",
        },
    }


def test_the_weights_are_settings(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNKEY_BILLAGED_SCORE_CPU_WEIGHT", "2")
    monkeypatch.setenv("UNKEY_BILLAGED_SCORE_DISK_WEIGHT", "0")
    text = answer("usage", "vm", "vm-1", "--from", DAY, "--to", DAY, "--format", "csv", "--data-dir", directory)
    assert lines_of(text)[0]["resource_score"] == "240.500000"


def test_usage_of_a_customer_by_vm_as_csv(directory: Path) -> None:
    text = answer(
        *("usage", "customer", "acme", "--from", f"{DAY}T10:00:00Z", "--to", f"{DAY}T11:00:00Z"),
        *("--by", "vm", "--format", "csv", "--data-dir", directory),
    )
    header, *rest = text.splitlines()
    assert header.startswith("vm_id,cpu_time_ns,memory_mean_bytes,")
    assert len(rest) == 2
    first, second = lines_of(text)
    assert (first["vm_id"], first["cpu_time_ns"]) == ("vm-1", str(120 * NANOS))
    # Half of the gap: floor(1001 / 2).
    assert (second["vm_id"], second["cpu_time_ns"], second["gap_cpu_time_ns"]) == ("vm-2", "500", "500")
    assert second["gap_ns"] == str(HOUR_NANOS)


@pytest.mark.parametrize(
    ("kind", "by", "keys"),
    [
        ("vm", "session", {"vm_id", "customer_id", "session", "session_start", "explicit_start", "session_end"}),
        ("vm", "bucket", {"bucket_start", "bucket_end"}),
        ("vm", "total", {"from", "to"}),
        ("customer", "bucket", {"bucket_start", "bucket_end"}),
        ("customer", "vm", {"vm_id"}),
        ("customer", "total", {"from", "to"}),
    ],
)
def test_every_grouping_in_every_format(directory: Path, kind: str, by: str, keys: set[str]) -> None:
    subject = "vm-2" if kind == "vm" else "acme"
    command = ("usage", kind, subject, "--by", by, "--from", DAY, "--to", DAY, "--data-dir", directory, "--format")
    records = lines_of(answer(*command, "csv"))
    assert keys <= set(records[0])
    found = json.loads(answer(*command, "json"))
    if by == "total":
        assert "lines" not in found
        return
    # The same lines, and they add up.
    assert [line["cpu_time_ns"] for line in found["lines"]] == [int(record["cpu_time_ns"]) for record in records]
    assert sum(line["cpu_time_ns"] for line in found["lines"]) == found["total"]["cpu_time_ns"] > 0
    table = answer(*command, "table")
    assert len(table.splitlines()) == 1 + len(records) + 1
    assert table.splitlines()[-1].startswith("total")


def test_a_total_for_people_is_a_list(directory: Path) -> None:
    text = answer("usage", "vm", "vm-1", "--from", DAY, "--to", DAY, "--data-dir", directory)
    rows = dict(line.split("  ", 1) for line in text.splitlines())
    shown = {name: value.strip() for name, value in rows.items()}
    assert shown["usage"] == "vm-1"
    assert shown["cpu"] == "120.00 s"
    assert shown["memory mean"] == "1.00 GiB"
    assert shown["measured"] == "20m"
    assert shown["score"] == "129.50"


def test_vms_in_every_format(directory: Path) -> None:
    command = ("vms", "--data-dir", directory, "--format")
    found = json.loads(answer(*command, "json"))
    assert [(vm["vm_id"], vm["state"], vm["explicit_start"]) for vm in found] == [
        ("vm-1", "ended", True),
        ("vm-2", "running", False),
        ("vm-3", "running", False),
    ]
    # The newest sample is at a time fixed above, and now is later.
    assert found[1]["pending_ns"] == found[1]["age_ns"] > 0
    records = lines_of(answer(*command, "csv"))
    assert [(row["vm_id"], row["explicit_start"], row["end"]) for row in records] == [
        ("vm-1", "1", f"{DAY}T10:20:00Z"),
        ("vm-2", "0", ""),
        ("vm-3", "0", ""),
    ]
    header, *rows = answer(*command, "table").splitlines()
    headings = ["vm", "customer", "state", "start", "opened", "newest sample", "age", "samples", "measured", "gap"]
    assert re.split(" {2,}", header) == [*headings, "pending"]
    assert [row.split()[0] for row in rows] == ["vm-1", "vm-2", "vm-3"]
    assert [row["vm_id"] for row in lines_of(answer(*command, "csv", "--running"))] == ["vm-2", "vm-3"]
    assert [row["vm_id"] for row in lines_of(answer(*command, "csv", "--customer", "bravo"))] == ["vm-3"]


def test_gaps_in_every_format(directory: Path) -> None:
    command = ("gaps", "--vm", "vm-2", "--data-dir", directory, "--format")
    closed, reported, pending = json.loads(answer(*command, "json"))
    assert (closed["state"], closed["kind"], closed["cpu_time_ns"], closed["duration_seconds"]) == (
        *("closed", "step", 1001),
        "7200",
    )
    assert (reported["state"], reported["end"], reported["cpu_time_ns"]) == ("reported", f"{DAY}T11:59:00Z", None)
    assert (pending["state"], pending["start"], pending["end"]) == ("pending", f"{DAY}T12:00:00Z", None)
    assert [row["state"] for row in lines_of(answer(*command, "csv"))] == ["closed", "reported", "pending"]
    assert len(answer(*command, "table").splitlines()) == 4
    before = (*command, "csv", "--from", "2026-11-01", "--to", f"{DAY}T10:00:00Z")
    assert lines_of(answer(*before)) == []
    assert len(lines_of(answer("gaps", "--data-dir", directory, "--format", "csv", "--customer", "bravo"))) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["usage", "vm", "nobody"], 1, "the ledger knows no VM nobody."),
        (["usage", "customer", "nobody"], 1, "the ledger knows no customer nobody."),
        (["vms", "--customer", "nobody"], 1, "the ledger knows no customer nobody."),
        (["gaps", "--vm", "nobody"], 1, "the ledger knows no VM nobody."),
        (["usage", "vm", "vm-1", "--from", f"{DAY}T10:15:00Z", "--to", DAY], 2, f"Take --from {DAY}T10:00:00Z"),
        (["usage", "vm", "vm-1", "--from", "noon"], 2, "--from: 'noon' is not a time"),
        (["usage", "vm", "vm-1", "--from", DAY, "--to", f"{DAY}T00:00:00Z"], 2, "is not before"),
        (["gaps", "--from", DAY, "--to", "2026-11-01"], 2, "is not before"),
        (["usage", "vm", "vm-1", "--by", "vm"], 2, "'vm' is not one of"),
        (["usage", "customer", "acme", "--by", "session"], 2, "'session' is not one of"),
        (["vms", "--format", "xml"], 2, "'xml' is not one of"),
    ],
)
def test_what_cannot_be_answered(directory: Path, arguments: list[str], code: int, problem: str) -> None:
    got, out, err = run(*arguments, "--data-dir", directory)
    assert (got, out) == (code, "")
    assert problem in " ".join(err.split())


READING = (["vms"], ["usage", "vm", "vm-1"], ["gaps"], ["journal", "verify"], ["journal", "replay"])


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_the_data_directory_is_the_daemons_unless_given(
    directory: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("UNKEY_BILLAGED_DATA_DIR", str(empty))
    code, _, err = run(*arguments)
    assert code == 1
    assert "there is no" in err and str(empty) in err
    assert list(empty.iterdir()) == []
    assert run(*arguments, "--data-dir", directory)[0] == 0
    monkeypatch.setenv("UNKEY_BILLAGED_DATA_DIR", str(directory))
    assert run(*arguments)[0] == 0
    # A daemon that keeps everything in memory has no files; another's can still be named.
    monkeypatch.setenv("UNKEY_BILLAGED_STORE", "memory")
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith("UNKEY_BILLAGED_STORE is memory")
    assert run(*arguments, "--data-dir", directory)[0] == 0


def test_reading_changes_nothing_and_needs_no_stopped_daemon(tmp_path: Path) -> None:
    made = DataDir(tmp_path)
    made.put(*RECORDS)
    before = (tmp_path / "ledger.db").read_bytes()
    for arguments in READING:
        assert run(*arguments, "--data-dir", tmp_path)[0] == 0
    assert (tmp_path / "ledger.db").read_bytes() == before
    made.put(batch("vm-2", (at("12:10:00"), GIB, 2_000)))
    made.close()


def test_a_directory_with_a_name_full_of_marks(tmp_path: Path) -> None:
    odd = tmp_path / "odd #? %20 dir"
    odd.mkdir()
    data_dir(odd, *RECORDS)
    for arguments in READING:
        assert run(*arguments, "--data-dir", odd)[0] == 0
    assert list(tmp_path.iterdir()) == [odd]


def on_a_terminal(columns: int, *arguments: str | Path) -> str:
    """What a terminal of this width is shown; nothing else may be on it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, "-m", "billaged", *map(str, arguments)]
    environment = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm"}
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        received = b""
        # EIO is how Linux says that the other end of a terminal is closed.
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 65_536):
                received += chunk
        os.close(ours)
        assert process.wait(60) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", received.decode().replace("\r\n", "\n"))


def test_a_terminal_gets_a_table_where_it_fits_and_blocks_where_not(directory: Path) -> None:
    command = ("usage", "vm", "vm-1", "--by", "bucket", "--from", DAY, "--to", DAY, "--data-dir", directory)
    wide = on_a_terminal(200, *command)
    assert "──────" in wide
    narrow = on_a_terminal(80, *command)
    assert "──────" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    block, total = narrow.strip().split("\n\n")
    assert [line.split("  ")[0] for line in block.splitlines()][:3] == ["from", "cpu", "memory mean"]
    assert total.startswith("from          total\n")
    for text in ("120.00 s", "1.00 GiB", "129.50"):
        assert text in wide and text in narrow


def test_as_a_process(directory: Path) -> None:
    command = [sys.executable, "-m", "billaged"]
    environment = os.environ | {"UNKEY_BILLAGED_DATA_DIR": str(directory)}
    options: dict[str, Any] = {"env": environment, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run([*command, "usage", "customer", "acme", "--from", DAY, "--to", DAY], **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cpu in gap" in done.stdout
    failed = subprocess.run([*command, "usage", "customer", "nobody"], **options)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "billaged: error: the ledger knows no customer nobody.\n"
    refused = subprocess.run([*command, "usage", "vm", "vm-1", "--to", f"{DAY}T10:15:00Z"], **options)
    assert refused.returncode == 2
    assert refused.stderr.startswith("billaged: error: --to ")
