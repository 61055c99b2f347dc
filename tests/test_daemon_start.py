"""A daemon that cannot start says why in one line, with what to do, and harms nobody."""

from __future__ import annotations

import re
import shutil
import socket
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from daemon_calls import SECOND, batch
from daemon_process import DaemonProcess, Ended, fails_to_start, ledger_of

from billaged.intake.sqlite import SqliteJournal


def only_line(ended: Ended, exit_code: int) -> str:
    """The one line it left on stderr: nothing else there, no traceback anywhere."""
    assert ended.exit_code == exit_code, ended
    assert "Traceback" not in ended.stdout + ended.stderr, ended
    (line,) = ended.stderr.splitlines()
    assert line.startswith("billaged: error: ")
    return line


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon that others get in the way of; made under a lax umask, and no worse for it all at the end."""
    with DaemonProcess(tmp_path_factory.mktemp("running") / "var", umask=0o022) as daemon:
        yield daemon
        assert daemon.call("SendMetricsBatch", batch("vm-last", time.time_ns())).success
        assert daemon.stop() == 0
        assert "vm-last" in {row[0] for row in daemon.ledger()["sessions"]}


# --- its data directory --------------------------------------------------------------


def test_a_second_daemon_on_the_same_directory_is_refused(running: DaemonProcess) -> None:
    line = only_line(fails_to_start(running.data_dir), 1)
    assert str(running.data_dir) in line
    assert f"pid {running.pid}" in line
    assert "UNKEY_BILLAGED_DATA_DIR" in line


def test_the_directory_and_its_files_are_nobody_elses(running: DaemonProcess) -> None:
    assert running.call("SendMetricsBatch", batch("vm-1", time.time_ns())).success
    directory = running.data_dir
    assert directory is not None
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert {"journal.db", "ledger.db", "lock"} <= modes.keys()
    assert set(modes.values()) == {0o600}


def test_memory_mode_says_so_and_writes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "var"
    with DaemonProcess(directory, {"STORE": "memory", "AGGREGATION_INTERVAL": "1s"}) as daemon:
        (warning,) = [line["message"] for line in daemon.log if "STORE=memory" in line["message"]]
        assert "lost" in warning
        now_ns = time.time_ns()
        assert daemon.call("SendMetricsBatch", batch("vm-1", now_ns - SECOND, now_ns)).success
        assert daemon.wait_for(lambda line: line.get("vm_id") == "vm-1", "its summary")["session"]["samples"] == 2
        assert daemon.stop() == 0
        assert daemon.other_output == ""
    assert list(tmp_path.iterdir()) == []


# --- its settings --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"AGREGATION_INTERVAL": "1s"}, ("UNKEY_BILLAGED_AGREGATION_INTERVAL", "UNKEY_BILLAGED_AGGREGATION_INTERVAL")),
        ({"AGGREGATION_INTERVAL": "soon"}, ("UNKEY_BILLAGED_AGGREGATION_INTERVAL", "'soon'", "60s")),
        ({"TLS_MODE": "file"}, ("UNKEY_BILLAGED_TLS_CERT_FILE",)),
        ({"ADDRESS": "0.0.0.0"}, ("UNKEY_BILLAGED_ADDRESS=127.0.0.1", "UNKEY_BILLAGED_ALLOW_PLAINTEXT=true")),
        ({"HTTP_ADDRESS": "::"}, ("UNKEY_BILLAGED_HTTP_ADDRESS=127.0.0.1", "UNKEY_BILLAGED_ALLOW_PLAINTEXT=true")),
        ({"POLICY_FILE": "/nowhere/policy.toml"}, ("/nowhere/policy.toml", "No such file")),
        ({"HTTP_TOKEN": "short"}, ("UNKEY_BILLAGED_HTTP_TOKEN", "at least 16")),
        ({"HTTP_TOKEN_FILE": "/nowhere/token"}, ("UNKEY_BILLAGED_HTTP_TOKEN_FILE", "No such file")),
    ],
    ids=[
        "unknown",
        "bad value",
        "file without files",
        "plaintext gRPC for all",
        "plaintext HTTP for all",
        "no policy",
        "short token",
        "no token file",
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, settings: dict[str, str], names: tuple[str, ...]) -> None:
    ended = fails_to_start(tmp_path / "var", **settings)
    assert ended.exit_code == 2
    assert "Traceback" not in ended.stdout + ended.stderr
    assert all(line.startswith("billaged: error: ") for line in ended.stderr.splitlines())
    assert all(name in ended.stderr for name in names), ended.stderr
    # Never plaintext instead, not even for a moment; and nothing is left behind.
    assert "serving" not in ended.stdout
    assert not (tmp_path / "var").exists()


@pytest.mark.parametrize(
    ("setting", "other"), [("PORT", "grpc"), ("HTTP_PORT", "http"), ("OTEL_PROMETHEUS_PORT", "metrics")]
)
def test_a_port_in_use_names_the_setting(tmp_path: Path, setting: str, other: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        line = only_line(fails_to_start(tmp_path / "var", **{setting: port}), 2)
    assert f"127.0.0.1:{port}" in line
    assert f"UNKEY_BILLAGED_{setting} " in line


def test_a_running_daemons_port_is_not_shared(running: DaemonProcess, tmp_path: Path) -> None:
    port = running.grpc_address.rpartition(":")[2]
    assert "UNKEY_BILLAGED_PORT" in only_line(fails_to_start(tmp_path / "var", PORT=port), 2)


# --- its journal and ledger ----------------------------------------------------------


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of one data directory after its first and its second life, and of a stranger's."""
    folder = tmp_path_factory.mktemp("lives")
    start_ns = time.time_ns() - 3600 * SECOND
    for name, directory in (("first", "var"), ("second", "var"), ("stranger", "other")):
        with DaemonProcess(folder / directory) as daemon:
            daemon.call("SendMetricsBatch", batch(f"vm-{name}", start_ns, start_ns + SECOND))
            assert daemon.stop() == 0
        shutil.copytree(folder / directory, folder / name)
    return folder


def put_together(lives: Path, into: Path, *, journal: str, ledger: str) -> Path:
    into.mkdir()
    shutil.copy(lives / journal / "journal.db", into)
    shutil.copy(lives / ledger / "ledger.db", into)
    return into


def test_a_journal_older_than_its_ledger_is_refused(lives: Path, tmp_path: Path) -> None:
    """Its acknowledged rows would else be journaled under numbers that the ledger has passed: never billed."""
    directory = put_together(lives, tmp_path / "var", journal="first", ledger="second")
    line = only_line(fails_to_start(directory), 1)
    assert "the journal is older than the ledger" in line
    assert "Put back the newer journal.db" in line


def test_an_older_ledger_catches_up_from_its_journal(lives: Path, tmp_path: Path) -> None:
    directory = put_together(lives, tmp_path / "var", journal="second", ledger="first")
    with DaemonProcess(directory) as daemon:
        assert daemon.stop() == 0
        assert any(line.get("replayed", 0) > 0 for line in daemon.log)
    ours, theirs = ledger_of(directory), ledger_of(lives / "second")
    assert ours["sessions"] == theirs["sessions"]
    assert ours["facts"] == theirs["facts"]


def test_a_ledger_older_than_what_the_journal_still_holds_is_refused(lives: Path, tmp_path: Path) -> None:
    directory = put_together(lives, tmp_path / "var", journal="second", ledger="first")
    journal = SqliteJournal(directory / "journal.db")
    journal.prune(journal.position - 1)
    journal.close()
    line = only_line(fails_to_start(directory), 1)
    assert "the ledger is older than what the journal still holds" in line
    assert "Put back a newer ledger.db" in line


def test_a_ledger_of_another_journal_is_refused(lives: Path, tmp_path: Path) -> None:
    directory = put_together(lives, tmp_path / "var", journal="stranger", ledger="second")
    line = only_line(fails_to_start(directory), 1)
    assert re.search(r"folded from journal \S{36}, but the journal beside it is \S{36}", line)
    assert "Put back the journal.db that belongs to it" in line


def test_a_ledger_of_a_newer_version_is_refused(lives: Path, tmp_path: Path) -> None:
    directory = put_together(lives, tmp_path / "var", journal="second", ledger="second")
    with closing(sqlite3.connect(directory / "ledger.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = (directory / "ledger.db").read_bytes()
    line = only_line(fails_to_start(directory), 1)
    assert "schema 9999" in line
    assert "Use the version of billaged that wrote it" in line
    assert (directory / "ledger.db").read_bytes() == before


@pytest.mark.parametrize("name", ["journal.db", "ledger.db"])
def test_a_file_that_is_no_database_is_refused(lives: Path, tmp_path: Path, name: str) -> None:
    directory = put_together(lives, tmp_path / "var", journal="second", ledger="second")
    (directory / name).write_bytes(b"these are not the bytes of a database, whoever wrote them" * 100)
    line = only_line(fails_to_start(directory), 1)
    assert name in line
    assert "Restore a backup" in line
