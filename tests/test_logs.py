"""The log: one event a line whatever is in the ids, no secrets, the audit log's own file."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from daemon_calls import SECOND, batch, until
from daemon_process import ROOT, DaemonProcess, environment, fails_to_start

from billaged.model.errors import StorageError
from billaged.telemetry import logs
from billaged.telemetry.traces import current
from billaged.telemetry.tracing import Tracing

HOSTILE = [
    'vm\n{"level":"info","logger":"billaged.daemon","message":"stopped"}',
    "vm\r\n2026-01-01T00:00:00Z [info     ] all is well [billaged.daemon]",
    "\x1b[2J\x1b[1;31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x00\x07\x08\x7f\x9b31m",
    "a\u2028b\u2029c\x85d\x0b\x0c",
    "\u202egnp.exe",
    "\ud800 half a character",
    '"quotes" \\ and \t tabs',
    "%s %(name)s {0}",
]


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """What a test does to the process's log is undone."""
    root, audit = logging.getLogger(), logging.getLogger(logs.AUDIT)
    before = (root.handlers[:], root.level, audit.propagate)
    names = ("billaged.summary", "billaged.doors", logs.AUDIT)
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    for handler in audit.handlers[:]:
        audit.removeHandler(handler)
        handler.close()
    root.handlers[:], root.level, audit.propagate = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    current.set(None)


def logged(style: str, **more: Any) -> tuple[io.StringIO, logging.Logger]:
    stream = io.StringIO()
    logs.configure("info", style, stream, **more)
    return stream, logging.getLogger("billaged.doors")


def uncoloured(said: bytes) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", bytes(said).decode())


# --- one event, one line --------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_json_is_one_line_of_ascii_and_says_what_was_said(text: str) -> None:
    stream, log = logged("json")
    log.warning("denied %s", text, extra={"vm_id": text, "ids": [text], "more": {"id": text}})
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("unexpected")
    first, second = stream.getvalue().splitlines()
    assert stream.getvalue().isascii() and "\x1b" not in stream.getvalue()
    line = json.loads(first)
    assert line["message"] == f"denied {text}"
    assert (line["vm_id"], line["ids"], line["more"]) == (text, [text], {"id": text})
    assert json.loads(second)["exception"][0]["exc_value"] == text
    assert "frames" not in line


@pytest.mark.parametrize("text", HOSTILE)
def test_on_a_terminal_nothing_that_was_sent_begins_a_line_or_moves_the_cursor(text: str) -> None:
    stream, log = logged("text")
    log.warning("denied %s", text, extra={"vm_id": text, "ids": [text], "more": {"id": text}})
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("unexpected")
    said = stream.getvalue()
    assert all(character.isprintable() or character == "\n" for character in said)
    # Each event begins with its time; what goes on is indented.
    begins = [line for line in said.split("\n") if line and not line.startswith(" ")]
    assert [line.split("]")[0].split("[")[1].strip() for line in begins] == ["warning", "error"]
    assert all(line[:4] == time.strftime("%Y", time.gmtime()) for line in begins)


def test_a_message_of_ours_may_have_lines() -> None:
    stream, log = logged("text")
    log.warning("begin with this file:\n[[allow]]\nroles = []")
    assert "begin with this file:\n    | [[allow]]\n    | roles = []" in stream.getvalue()


def test_a_hostile_id_is_one_line_of_a_real_daemon_on_a_terminal(tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    env = environment(tmp_path / "var", {"PORT": "0"}) | {"TERM": "xterm"}
    command = [sys.executable, "-m", "billaged", "serve"]
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=terminal, stderr=terminal)
    os.close(terminal)
    said = bytearray()

    def read() -> None:
        while True:
            try:
                said.extend(os.read(main, 65_536))
            except OSError:
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        until(lambda: "http=" in (plain := uncoloured(said)) and "\n" in plain.split("http=")[1], "it serves")
        address = uncoloured(said).split("http=")[1].split()[0]
        vm_id = "vm\x1b[2Jone"
        body = {"vmId": vm_id, "customerId": "acme", "metrics": []}
        httpx.post(f"http://{address}/billing.v1.BillingService/SendMetricsBatch", json=body)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()
        os.close(main)
    assert b"\x1b[2J" not in said


# --- the trace, the levels --------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_line_of_a_request_has_its_trace_sampled_or_not(rate: float) -> None:
    stream, log = logged("json")
    log.info("before")
    trace: Any = Tracing(rate).grpc().of("billing.v1.BillingService", "SendHeartbeat")(())
    log.info("within")
    trace.end("OK")
    log.info("after")
    before, within, after = map(json.loads, stream.getvalue().splitlines())
    assert (within["trace_id"], within["span_id"]) == (f"{trace.trace_id:032x}", f"{trace.span_id:016x}")
    assert "trace_id" not in before and "trace_id" not in after


def test_a_logger_may_have_a_level_of_its_own() -> None:
    levels = {"billaged.summary": "error", "billaged.doors": "debug"}
    stream, log = logged("json", levels=levels)
    logging.getLogger("billaged.summary").warning("a summary")
    log.debug("a detail")
    logging.getLogger("billaged.other").debug("another")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["a detail"]


def test_the_levels_are_a_setting(tmp_path: Path) -> None:
    settings = {"LOG_LEVELS": "billaged.summary=warning, billaged.daemon=info", "LOG_LEVEL": "info"}
    with DaemonProcess(tmp_path / "var", settings) as daemon:
        now = time.time_ns()
        daemon.call("SendMetricsBatch", batch("vm-1", now - 2 * SECOND, now - SECOND))
        assert daemon.stop() == 0
        assert not daemon.summaries()
        assert [line for line in daemon.log if line["message"] == "stopped"]


# --- the audit log ----------------------------------------------------------------------


def test_the_audit_log_has_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    stream, log = logged("text", audit_file=path)
    audit = logging.getLogger(logs.AUDIT)
    audit.warning("request denied", extra={"identity": HOSTILE[0]})
    log.warning("something else")
    assert "request denied" not in stream.getvalue()
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["identity"] == HOSTILE[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    moved = path.rename(tmp_path / "audit.log.1")
    audit.warning("still in the old one")
    logs.reopen()
    audit.warning("in the new one")
    assert [json.loads(text)["message"] for text in moved.read_text().splitlines()][1:] == ["still in the old one"]
    assert json.loads(path.read_text())["message"] == "in the new one"


def test_what_cannot_be_written_to_it_goes_into_the_log() -> None:
    full = Path("/dev/full")
    with pytest.raises(StorageError, match="is no plain file"):
        logged("json", audit_file=full)


def test_a_disk_that_is_full_loses_no_denial(tmp_path: Path) -> None:
    stream, _ = logged("json", audit_file=tmp_path / "audit.log")
    audit = logging.getLogger(logs.AUDIT)
    (handler,) = audit.handlers
    with Path("/dev/full").open("w", buffering=1) as full:
        vars(handler)["_file"], usual = full, vars(handler)["_file"]
        audit.warning("request denied")
        audit.warning("and again")
        vars(handler)["_file"] = usual
        with pytest.raises(OSError, match="No space"):
            full.close()
    said = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert "No space left" in said[0] and said[1:] == ["request denied", "and again"]


def test_it_is_opened_again_where_the_end_of_the_old_one_has_no_room(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    stream, _ = logged("json", audit_file=path)
    audit = logging.getLogger(logs.AUDIT)
    (handler,) = audit.handlers
    vars(handler)["_file"].close()
    vars(handler)["_file"] = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115 - the handler's from here on
    audit.warning("request denied")
    logs.reopen()
    audit.warning("and again")
    assert "request denied" in stream.getvalue() and "cannot be written: No space left" in stream.getvalue()
    assert json.loads(path.read_text())["message"] == "and again"


def test_one_that_cannot_be_opened_again_stays(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    stream, _ = logged("json", audit_file=folder / "audit.log")
    folder.rename(tmp_path / "moved")
    logs.reopen()
    logging.getLogger(logs.AUDIT).warning("request denied")
    assert "stays in the file that was open" in stream.getvalue()
    assert "request denied" in (tmp_path / "moved" / "audit.log").read_text()


def test_a_daemon_writes_it_and_opens_it_again_on_sighup(tmp_path: Path) -> None:
    path, policy = tmp_path / "audit.log", tmp_path / "policy.toml"
    policy.write_text('[[allow]]\nidentity = "@plaintext"\nroles = ["read"]\n')
    settings = {"LOG_AUDIT_FILE": str(path), "POLICY_FILE": str(policy)}
    now = time.time_ns()

    def denied(daemon: DaemonProcess, vm_id: str) -> None:
        with pytest.raises(grpc.RpcError):
            daemon.call("NotifyVmStarted" if vm_id == "vm-2" else "SendMetricsBatch", batch(vm_id, now - SECOND))

    with DaemonProcess(tmp_path / "var", settings) as daemon:
        denied(daemon, "vm-1")
        moved = path.rename(tmp_path / "audit.log.1")
        daemon.send_signal(signal.SIGHUP)
        until(path.exists, "it is open again")
        denied(daemon, "vm-2")
        until(lambda: "NotifyVmStarted" in path.read_text(), "the second denial")
        assert daemon.stop() == 0
    assert not [line for line in daemon.log if line["logger"] == "billaged.audit"]
    lines = [json.loads(line) for line in moved.read_text().splitlines()]
    assert [line["method"] for line in lines if line["message"] == "request denied"] == ["SendMetricsBatch"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_daemon_does_not_start_without_the_audit_file_it_was_given(tmp_path: Path) -> None:
    ended = fails_to_start(tmp_path / "var", LOG_AUDIT_FILE=str(tmp_path / "nowhere" / "audit.log"))
    assert ended.exit_code == 1
    assert "the audit log" in ended.stderr and "UNKEY_BILLAGED_LOG_AUDIT_FILE" in ended.stderr


# --- no secrets -------------------------------------------------------------------------


def test_no_secret_is_said_at_any_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, password, key = "token-q8Zk2hV7", "password-W3nX", "key-9dKfL2"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer {key}")
    settings = {
        "HTTP_TOKEN": f"{token}-which-is-long",
        "DATABASE_URL": f"postgresql://me:{password}@host/ledger",
        "LOG_LEVEL": "debug",
        "LOG_LEVELS": "urllib3=debug,opentelemetry=debug,uvicorn=debug,asyncio=debug",
        "OTEL_ENABLED": "true",
        # Nobody is there.
        "OTEL_ENDPOINT": "127.0.0.1:9",
    }
    now = time.time_ns()
    with DaemonProcess(tmp_path / "var", settings) as daemon:
        daemon.call("SendMetricsBatch", batch("vm-1", now - SECOND))
        for said in (f"Bearer {token}-which-is-long", f"Bearer {token}-but-wrong", f"Basic {token}"):
            httpx.get(f"{daemon.http_url}/stats", headers={"Authorization": said})
            body = {"vmId": "vm-1", "customerId": "acme"}
            url = f"{daemon.http_url}/billing.v1.BillingService/SendMetricsBatch"
            httpx.post(url, json=body, headers={"Authorization": said})
        daemon.wait_for(lambda line: "cannot be sent" in line["message"], "the collector is away")
        assert daemon.stop() == 0
    output = "\n".join(map(json.dumps, daemon.log)) + daemon.other_output
    assert len(daemon.log) > 5
    for secret in (token, password, key):
        assert secret not in output
