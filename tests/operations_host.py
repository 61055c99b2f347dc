"""A host to try docs/operations.md on: its /etc, /var/lib and /backup are folders, its service is a real daemon."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
from daemon_calls import SECOND, batch, call, until
from daemon_process import ROOT, DaemonProcess
from old_ledgers import OLDER, old_ledger
from tls_material import Authority

from billaged.intake.sqlite import SqliteJournal
from billaged.ledger.cuts import cuts_in, make_cut
from billaged.settings.section import PREFIX
from billaged.wire.billing.v1 import billing_pb2 as pb

COMMAND_SECONDS = 60
METALD = "spiffe://example.org/metald/host-1"


class Done(NamedTuple):
    exit_code: int
    output: str


def settings_in(text: str) -> dict[str, str]:
    """The lines of a settings' file."""
    pairs = (line.partition("=") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


class Host:
    """Freshly upgraded from an older version, with an operator's and a sender's certificates in the working folder."""

    def __init__(self, root: Path, policy: str) -> None:
        self.etc, self.data, self.reports = root / "etc", root / "lib" / "billaged", root / "lib" / "reports"
        self.backup, self.backups = root / "backup", root / "lib" / "backups"
        self.tmp, self.work = root / "tmp", root / "work"
        self._bin, self.log = root / "bin", root / "log"
        for folder in (self.etc, self.data, self.reports, self.backups, self.backup, self.tmp, self.work, self._bin):
            folder.mkdir(parents=True)
        self.data.chmod(0o700)
        self._daemon: DaemonProcess | None = None
        self._write_commands()
        self._write_material(policy)
        with closing(SqliteJournal(self.data / "journal.db")) as journal:
            old_ledger(self.data / "ledger.db", OLDER[-1], journal_id=journal.journal_id)
        with closing(sqlite3.connect(self.data / "ledger.db")) as ledger, ledger:
            # As it is before the first row: what comes after can be compared with a replay.
            ledger.execute("DELETE FROM anomalies")
            ledger.execute("""UPDATE checkpoint SET clock = '{"closed_through_ns": 0, "waiting": []}'""")

    def _write_commands(self) -> None:
        command = self._bin / "billaged"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m billaged "$@"\n')
        command.chmod(0o755)
        shutil.copy(ROOT / "systemd" / "billaged-command", self._bin)

    def _write_material(self, policy: str) -> None:
        authority = Authority()
        self._metald = authority.sign("metald", uris=(METALD,))
        self._roots = authority.pem
        authority.sign("billaged", names=("localhost", "127.0.0.1")).write(self.work, "server")
        authority.sign("operator", uris=("spiffe://example.org/operators/anna",)).write(self.work, "operator")
        tls = self.etc / "tls"
        tls.mkdir()
        for folder in (self.work, tls):
            self._metald.write(folder, "metald")
            (folder / "ca.pem").write_bytes(authority.pem)
        (self.work / "clients-ca.pem").write_bytes(authority.pem)
        (self.work / "policy.toml").write_text(policy)

    # --- the service -------------------------------------------------------------

    @property
    def daemon(self) -> DaemonProcess:
        assert self._daemon is not None, "billaged is not started"
        return self._daemon

    @property
    def metrics_address(self) -> str:
        [line] = [line for line in self.daemon.log if line["message"] == "serving"]
        return str(line["metrics"])

    def start(self) -> None:
        """With the settings of its file, on free ports; the first start is followed by some usage."""
        assert self._daemon is None or self._daemon.ended()
        named = settings_in((self.etc / "billaged.env").read_text())
        settings = {name.removeprefix(PREFIX): value for name, value in named.items()}
        # The log as it is written: what journalctl gives back.
        under = ("bash", "-c", 'exec "$@" > >(tee -a "$0")', str(self.log))
        first = self._daemon is None
        self._daemon = DaemonProcess(self.data, settings, under=under)
        if first:
            self._send_usage()

    def stop(self) -> None:
        assert self.daemon.stop() == 0, self.daemon.other_output

    def restart(self) -> None:
        if self._daemon is not None:
            self.stop()
        self.start()

    def reload(self) -> None:
        def times_read() -> int:
            return sum(line["message"] == "policy in use" for line in self.daemon.log)

        before = times_read()
        self.daemon.send_signal(signal.SIGHUP)
        until(lambda: times_read() > before, "the policy is read again")

    def close(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()

    def _send_usage(self) -> None:
        now = time.time_ns()
        credentials = grpc.ssl_channel_credentials(self._roots, self._metald.key, self._metald.cert)
        with grpc.secure_channel(self.daemon.grpc_address, credentials) as channel:
            start = pb.NotifyVmStartedRequest(vm_id="vm-a", customer_id="acme", start_time=now - 5 * SECOND)
            call(channel, "NotifyVmStarted", start)
            call(channel, "SendMetricsBatch", batch("vm-a", *(now - ago * SECOND for ago in (4, 3, 2, 1))))
        token = (self.etc / "http-token").read_text().strip()
        until(lambda: self._stats(token)["journal"]["lag"] == 0, "the ledger has it all")

    def _stats(self, token: str) -> dict[str, dict[str, int]]:
        answer = httpx.get(f"{self.daemon.http_url}/stats", headers={"Authorization": f"Bearer {token}"})
        answer.raise_for_status()
        return dict(answer.json())

    # --- what happens to it ------------------------------------------------------

    def lose_ledger(self) -> None:
        for path in self.data.glob("ledger.db*"):
            path.unlink()

    def lose_journals_end(self) -> None:
        with closing(sqlite3.connect(self.data / "journal.db")) as journal, journal:
            journal.execute("DELETE FROM journal WHERE sequence > (SELECT max(sequence) - 2 FROM journal)")

    def lose_disk(self) -> None:
        """All but the copies of the ledger, as if they had a disk of their own."""
        for path in self.data.iterdir():
            if path.is_file():
                path.unlink()
            elif path.name != "backups":
                shutil.rmtree(path)

    def cut(self) -> str:
        """The newest cut, as if the daemon had run for a day."""
        snapshots = self.data / "snapshots"
        if not cuts_in(snapshots):
            make_cut(self.data / "ledger.db", snapshots, time.time_ns(), lambda: None)
        return str(cuts_in(snapshots)[-1].position)

    def backed_up_head(self) -> str:
        """The journal's head, as the newest whole backup says it."""
        manifest = json.loads(Path(self.newest(self.backup, "billaged-2*"), "backup.json").read_text())
        return f"{manifest['journal_position']}:{manifest['journal_chain']}"

    def newest(self, folder: Path, pattern: str) -> str:
        return str(max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns))

    # --- commands ----------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Of somebody who has just logged in; all that is told is where this host's /var/lib/billaged is."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("UNKEY_", "BILLAGED_"))}
        return clean | {
            "PATH": f"{self._bin}:{clean['PATH']}",
            "PYTHONPATH": str(ROOT),
            "UNKEY_BILLAGED_DATA_DIR": str(self.data),
        }

    def run(self, text: str, folder: Path | None = None, more: Mapping[str, str] | None = None) -> Done:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", text],
            env=self.environment() | dict(more or {}),
            cwd=folder or self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        return Done(done.returncode, done.stdout)

    def run_command(self, name: str) -> Done:
        """What billaged-command@.service does with a file of /etc/billaged/commands."""
        settings = settings_in((self.etc / "commands" / f"{name}.env").read_text())
        done = self.run(f"billaged-command {settings['COMMAND']}", self.reports, settings)
        assert done.exit_code == 0, done.output
        written = done.output.splitlines()[-1].removeprefix("wrote ")
        assert (self.reports / written).stat().st_size > 0, done.output
        return done
