"""How each command of docs/operations.md is tried: here and with what for its names, or elsewhere, and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from daemon_process import ROOT
from operations_host import METALD, Host


class Elsewhere(NamedTuple):
    why: str
    test: str


_MACHINE = "needs root and a machine with systemd"
_BOOT = "tests/test_systemd_boot.py::"
_INSTALL = "tests/test_install.py::"
_PACKAGES = "tests/test_install_packages.py::"
# What cannot be run here, and where it, or what it stands for, is.
ELSEWHERE = {
    "apt install python3-venv": Elsewhere("changes this machine", _BOOT + "test_it_starts_and_is_ready_when_it_serves"),
    "make install": Elsewhere(_MACHINE, _BOOT + "test_it_starts_and_is_ready_when_it_serves"),
    "-E make install": Elsewhere(_MACHINE, _INSTALL + "test_the_installed_command_runs_and_is_what_was_tested"),
    'make install INSTALL="--extras agent"': Elsewhere(_MACHINE, _BOOT + "test_the_agent_meters_in_its_sandbox"),
    'make install INSTALL="--user meter --no-start"': Elsewhere(
        _MACHINE, "tests/test_install_upgrade.py::test_the_units_have_the_user_that_was_asked_for"
    ),
    "GRAFANA_URL=https://grafana.example GRAFANA_TOKEN=glsa_... billaged-import-dashboards": Elsewhere(
        "needs Grafana", _INSTALL + "test_dashboards_and_alert_rules_are_there_and_can_be_imported"
    ),
    "make uninstall": Elsewhere(_MACHINE, _BOOT + "test_uninstalling_stops_it_and_keeps_settings_and_data"),
    "make deb": Elsewhere("takes minutes", _PACKAGES + "test_the_debian_package_holds_the_same"),
    "make build": Elsewhere("takes minutes", "tests/test_build.py::test_the_executable_serves_meters_and_stops"),
    "podman build -t billaged .": Elsewhere("needs podman", _PACKAGES + "test_the_containerfile_says_what_works"),
    "docker build -f Containerfile -t billaged .": Elsewhere(
        "needs docker", _PACKAGES + "test_the_containerfile_says_what_works"
    ),
    "scripts/install.sh --prefix DIR": Elsewhere(
        "takes minutes", _INSTALL + "test_the_installed_command_runs_and_is_what_was_tested"
    ),
    "scripts/install.sh --extras otel": Elsewhere(_MACHINE, _BOOT + "test_the_agent_meters_in_its_sandbox"),
    "scripts/install.sh --rollback": Elsewhere(
        _MACHINE, _BOOT + "test_a_release_is_taken_back_and_a_failed_start_is_told"
    ),
    "pip install 'billaged[otel]'": Elsewhere(
        "changes this environment",
        "tests/test_tracing.py::test_without_its_libraries_it_does_not_start_and_says_what_to_install",
    ),
    "systemctl status billaged": Elsewhere(_MACHINE, _BOOT + "test_it_starts_and_is_ready_when_it_serves"),
    "systemctl edit billaged": Elsewhere("asks a person", _BOOT + "test_the_watchdog_ends_what_hangs_and_only_that"),
    "systemctl edit billaged-command@acme.timer": Elsewhere(
        "asks a person", _BOOT + "test_a_command_writes_its_report_and_a_wrong_one_fails"
    ),
    "systemctl reset-failed billaged": Elsewhere(
        _MACHINE, _BOOT + "test_a_release_is_taken_back_and_a_failed_start_is_told"
    ),
    "kill -9": Elsewhere(
        "is a word about the daemon's end",
        "tests/test_restart.py::test_nothing_acknowledged_is_lost_or_billed_twice_over_twenty_kills",
    ),
    "journalctl -u billaged -e": Elsewhere(_MACHINE, _BOOT + "test_it_works_in_its_sandbox"),
    "spire-server entry show": Elsewhere("needs SPIRE", "tests/test_spire.py::test_metald_is_let_in_by_its_entry"),
}

# What is run here besides billaged's own commands: nothing else, so that no new line does something to this machine.
RUN_HERE = {
    "scripts/install.sh --help",
    "install -g billaged -m 640 policy.toml server.pem server.key clients-ca.pem /etc/billaged/",
    "head -c 32 /dev/urandom | base64 | install -g billaged -m 640 /dev/stdin /etc/billaged/http-token",
    "sh -c 'set -a; . /etc/billaged/billaged.env; billaged config show'",
    "curl -s http://127.0.0.1:8082/health",
    'curl -s -H "Authorization: Bearer $(cat /etc/billaged/http-token)" http://127.0.0.1:8082/stats',
    "curl -s http://127.0.0.1:9465/metrics",
    "grpcurl -cacert ca.pem -cert operator.pem -key operator.key 127.0.0.1:8081 grpc.health.v1.Health/Check",
    "journalctl -u billaged -o cat",
    """journalctl -u billaged -o cat | grep -E '"level": "(warning|error|critical)"'""",
    'sqlite3 -readonly /var/lib/billaged/ledger.db "select * from anomalies"',
    'sqlite3 -readonly /var/lib/billaged/ledger.db "select * from dead_letters"',
    "rm /var/tmp/anew.db",
    "rm -r /tmp/drill",
}
DRILL = re.compile(r"(UNKEY_BILLAGED_\w+=\S+ +)+timeout 30 billaged serve")

# Names of commands that the page goes on to write out in a block: what is run here is their --help.
NAMED = {
    "billaged agent": "serves until it is stopped",
    "billaged backup": "is written out with --to",
    "billaged gaps --from": "is followed by a day",
    "billaged journal begin-anew": "is written out with --yes",
    "billaged ledger restore FILE": "is written out",
    "billaged restore BACKUP": "is written out",
}


# systemd's part is done by the test; the daemon is a real one. That systemd does it so: tests/test_systemd_boot.py.
SYSTEMCTL: dict[str, Callable[[Host], object]] = {
    "systemctl start billaged": Host.start,
    "systemctl stop billaged": Host.stop,
    "systemctl restart billaged": Host.restart,
    "systemctl reload billaged": Host.reload,
    "systemctl start billaged-command@acme": lambda host: host.run_command("acme"),
    "systemctl enable --now billaged-command@acme.timer": lambda host: None,
    "systemctl start billaged-command@backup": lambda host: host.run_command("backup"),
    "systemctl enable --now billaged-command@backup.timer": lambda host: None,
}

# What has happened to the host when somebody needs these lines.
BEFORE: dict[str, Callable[[Host], None]] = {
    "billaged ledger restore /var/lib/billaged/backups/ledger-20261121T030000Z.db": Host.lose_ledger,
    "billaged journal replay --into /var/tmp/anew.db": Host.lose_ledger,
    "billaged journal begin-anew --yes": Host.lose_journals_end,
    "billaged restore /backup/billaged-2026-11-21": Host.lose_disk,
}


# --- what stands for what --------------------------------------------------------

SUBSTITUTIONS: tuple[tuple[str, Callable[[Host], str]], ...] = (
    # Places, the longer ones first.
    (r"[^ ]+/ledger-2026\S+\.db|\bFILE$", lambda host: host.newest(host.data / "backups", "ledger-2*.db")),
    (r"[^ ]+/ledger-0002-before-\S+\.db", lambda host: host.newest(host.data / "backups", "ledger-0002-before-*.db")),
    (r"/etc/billaged", lambda host: str(host.etc)),
    (r"/var/lib/billaged-backups", lambda host: str(host.backups)),
    (r"/var/lib/billaged", lambda host: str(host.data)),
    (r"/backup/billaged-2026-11-21", lambda host: host.newest(host.backup, "billaged-2*")),
    (r"/backup\b", lambda host: str(host.backup)),
    (r"/var/tmp\b|/tmp(?=/drill)", lambda host: str(host.tmp)),
    (r"^scripts/", lambda host: f"{ROOT}/scripts/"),
    # Machines and users.
    (r"127\.0\.0\.1:8081", lambda host: host.daemon.grpc_address),
    (r"127\.0\.0\.1:8082", lambda host: host.daemon.http_url.removeprefix("http://")),
    (r"127\.0\.0\.1:9465", lambda host: host.metrics_address),
    (r"^journalctl -u billaged -o cat\b", lambda host: f"cat {host.log}"),
    (r"\bssh backup ", lambda host: "sh -c "),
    (r"-g billaged ", lambda host: ""),
    # Times.
    (r"\b2026-11-30\b", lambda host: f"{datetime.now(UTC):%Y-%m-%d}"),
    (r"\b2026-11-01\b", lambda host: f"{datetime.now(UTC):%Y-%m-01}"),
    (r"\btimeout 30\b", lambda host: "timeout 10"),
    # Names.
    (r"\bIDENTITY METHOD\b", lambda host: f"{METALD} SendMetricsBatch"),
    (r"--vm ID\b", lambda host: "--vm vm-a"),
    (r"--customer ID\b", lambda host: "--customer acme"),
    (r"--head HEAD\b", lambda host: "--head " + host.backed_up_head()),
    (r"--from 8640122\b", lambda host: f"--from {host.cut()}"),
    (r"^billaged COMMAND ", lambda host: "billaged vms "),
    (
        r"send heartbeat (?:…|--instance-id HOST)$",
        lambda host: (
            "send heartbeat --instance-id host-1 --address "
            f"{host.daemon.grpc_address} --tls-ca ca.pem --tls-cert metald.pem --tls-key metald.key"
        ),
    ),
)

EXIT_CODES = {
    # It was timeout that ended it.
    "timeout 30 billaged serve": 124,
}

# What says that it did what it is there for: an exit code of 0 alone does not, everywhere.
SAYS = {
    "billaged policy check policy.toml": "@token",
    "billaged policy explain": "ALLOWED",
    "billaged config show": r"TLS_CERT_FILE +\S+/server\.pem +environment",
    "127.0.0.1:8082/health": '"ok"',
    "127.0.0.1:8082/stats": '"active_vms": ?1',
    "127.0.0.1:9465/metrics": "(?m)^billaged_active_vms 1",
    "Health/Check": "SERVING",
    "-o cat": '"message": ',
    "-o cat | grep": '"level": "warning"',
    "billaged vms": "vm-a +acme",
    "billaged usage customer acme": "acme",
    "billaged bill --customer acme": "vm-a",
    "billaged gaps": "",
    "billaged journal head": r"\b\d+:[0-9a-f]{64}\b",
    "billaged journal cuts": "the beginning",
    "billaged journal begin-anew --yes": r"(?s)its rows end at \d+\..*begins after +\d+",
    "timeout 30 billaged serve": '"message": "serving"',
}
