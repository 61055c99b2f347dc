"""The installed service under a real systemd: its sandbox, its watchdog, its commands, its upgrades."""

from __future__ import annotations

import os
import re
import shutil

import booted_machine
import pytest
from checkout import copy_to, make_next_version
from installed_machine import staged
from operations_page import FILES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Each line of what it finds: a name, a tab, a value.
SESSION = r"""
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
found() { printf '%s\t%s\n' "$1" "$(printf '%s' "$2" | tr '\n' ' ')"; }
property() { systemctl show --property "$1" --value billaged; }
until_is() { for _ in $(seq 300); do [ "$(property "$1")" = "$2" ] && return; sleep 0.1; done; }
send() { billaged send metrics --vm-id vm-a --customer-id acme --cpu-time-nanos "$1" >/dev/null; }
install() { /mnt/shared/checkout/scripts/install.sh "$@" 2>&1; echo "exit $?"; }

cat >>/etc/billaged/billaged.env <<'END'
UNKEY_BILLAGED_TLS_MODE=disabled
UNKEY_BILLAGED_ADDRESS="127.0.0.1"
UNKEY_BILLAGED_LOG_AUDIT_FILE=/var/log/billaged/audit.log
END
systemctl start billaged
found start $?
found status "$(property StatusText)"
pid=$(property MainPID)
found user "$(stat -c %U /proc/$pid)"
found sandbox "$(grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/$pid/status | tr -d '\t')"
found data "$(stat -c '%U %a' /var/lib/billaged /var/lib/billaged/journal.db)"
send 1000000000; found sent $?; send 2000000000
systemctl reload billaged; found reload "$? $(property ActiveState)"
found audit "$(stat -c '%U %a' /var/log/billaged /var/log/billaged/audit.log)"
if [ -x /mnt/shared/logrotate ]; then
    echo '{"message": "request denied"}' >>/var/log/billaged/audit.log
    /mnt/shared/logrotate --force --state /run/logrotate /etc/logrotate.d/billaged; found rotated $?
    open() { readlink /proc/$pid/fd/* | grep -x /var/log/billaged/audit.log; }
    for _ in $(seq 300); do [ -n "$(open)" ] && break; sleep 0.1; done
    found audit_anew "$(open) $(stat -c '%n %U %a' /var/log/billaged/*)"
fi
found security "$(systemd-analyze security --no-pager --threshold=20 billaged >/dev/null; echo $?)"

cat >/etc/billaged/commands/acme.env <<'END'
COMMAND=bill --customer "acme" --period this-month --format json
OUTPUT="acme bill.json"
END
# What was sent is in the ledger with its next commit.
as_billaged() { setpriv --reuid billaged --regid billaged --clear-groups billaged "$@"; }
for _ in $(seq 300); do as_billaged vms | grep -q vm-a && break; sleep 0.1; done
systemctl start billaged-command@acme; found command $?
cd /var/lib/billaged-reports
found report "$(stat -c '%U %a' "acme bill.json") $(grep -c vm-a "acme bill.json")"
cp /mnt/shared/backup.env /etc/billaged/commands/
systemctl start billaged-command@backup; found backup $?
cd /var/lib/billaged-backups
found backups "$(stat -c '%n %U %a' *)"
restored() { billaged restore *.tar --data-dir /run/restored && billaged verify --data-dir /run/restored; }
found restored "$(restored; echo "exit $?")"
echo 'COMMAND=bill --customer acme --period never' >/etc/billaged/commands/wrong.env
systemctl start billaged-command@wrong 2>/dev/null; found wrong_command $?
systemctl --quiet enable --now billaged-command@acme.timer
found timer "$(systemctl is-active billaged-command@acme.timer)"

printf 'BILLAGED_ADDRESS=127.0.0.1:8081\nAGENT_OPTIONS=--vm-id this-host --customer-id acme --interval 1s\n' \
    >/etc/billaged/agent.env
systemctl start billaged-agent
for _ in $(seq 100); do as_billaged vms | grep -q this-host && break; sleep 0.1; done
found agent "$(systemctl is-active billaged-agent) $(as_billaged vms | grep -c this-host)"
systemctl stop billaged-agent

# A write lock on the ledger is a disk that does not answer, to the fold.
mkdir -p /etc/systemd/system/billaged.service.d
printf '[Service]\nWatchdogSec=3s\n' >/etc/systemd/system/billaged.service.d/quick.conf
systemctl daemon-reload; systemctl restart billaged
sleep 5; found idle "$(property NRestarts)"
/opt/billaged/current/bin/python -c '
import pathlib, sqlite3, time
lock = sqlite3.connect("/var/lib/billaged/ledger.db", isolation_level=None)
lock.execute("BEGIN IMMEDIATE")
pathlib.Path("/run/locked").touch()
while not pathlib.Path("/run/release").exists():
    time.sleep(0.05)' &
until [ -e /run/locked ]; do sleep 0.05; done
for seconds in 3 4 5 6; do send ${seconds}000000000; sleep 0.3; done
until_is NRestarts 1; found hung "$(property NRestarts)"
touch /run/release
until_is ActiveState active; found recovered "$(property ActiveState)"
found samples "$(as_billaged vms --format csv)"

found rollback "$(install --rollback)"
found version "$(billaged --version)"
install --rollback >/dev/null
echo UNKEY_BILLAGED_PORT=99999 >>/etc/billaged/billaged.env
found wrong_setting "$(install --rollback)"
sleep 2; found stays_failed "$(property ActiveState) $(property NRestarts) $(property ExecMainStatus)"
sed -i /99999/d /etc/billaged/billaged.env
systemctl start billaged; systemctl stop billaged; found stopped "$(property Result) $(property ExecMainStatus)"
systemctl start billaged
found uninstalled "$(install --uninstall)"
found left "$(systemctl is-active billaged) $(ls /opt/billaged /usr/local/bin/billaged 2>/dev/null | wc -l)"
found kept "$(ls /etc/billaged/billaged.env /var/lib/billaged/journal.db | wc -l)"
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the session has found, by name; ``journal`` is what the machine logged."""
    if reason := booted_machine.problem():
        pytest.skip(reason)
    made = staged(tmp_path_factory)
    folder = tmp_path_factory.mktemp("machine")
    shutil.copytree(made.checkout, folder / "shared" / "checkout")
    # The first release is there already, as after an installation that was broken off: it takes a minute to make.
    # The other one is made on this machine.
    shutil.copytree(
        made.machine.home / "releases", folder / "shared" / "releases", symlinks=True, copy_function=_linked
    )
    if logrotate := shutil.which("logrotate"):
        shutil.copy(logrotate, folder / "shared")
    (folder / "shared" / "backup.env").write_text(FILES["commands/backup"])
    # Everybody's to read, as a checkout in /usr/src is.
    for place in (folder, folder / "shared"):
        place.chmod(0o755)
    newer = copy_to(folder / "shared" / "newer", made.checkout)
    make_next_version(newer, "99.1")
    first = (
        "mkdir /opt/billaged && cp -a /mnt/shared/releases /opt/billaged/ && make -C /mnt/shared/checkout install"
        " && make -C /mnt/shared/newer install INSTALL='--extras agent'"
    )
    shared = booted_machine.boot(folder, first, SESSION)
    said = (shared / "first").read_text()
    assert "made the system user billaged" in said, said
    assert "systemd does not run here; the service is enabled for the next boot" in said, said
    output = (shared / "output").read_text()
    lines = [line.partition("\t") for line in output.splitlines() if "\t" in line]
    assert lines[-1][0] == "kept", output
    return {name: value for name, _, value in lines} | {"journal": (shared / "journal").read_text(errors="replace")}


def _linked(source: str, target: str) -> str:
    os.link(source, target, follow_symlinks=False)
    return target


def test_it_starts_and_is_ready_when_it_serves(session: dict[str, str]) -> None:
    assert (session["start"], session["sent"]) == ("0", "0")
    assert session["status"] == "serving gRPC on port 8081, HTTP on port 8082"
    assert session["reload"] == "0 active"


def test_it_works_in_its_sandbox(session: dict[str, str]) -> None:
    assert session["user"] == "billaged"
    assert session["sandbox"].split() == ["CapEff:0000000000000000", "NoNewPrivs:1", "Seccomp:2"]
    assert session["data"] == "billaged 700 billaged 600"
    assert session["security"] == "0", "exposure is 2.0 or more"
    said = [line for line in session["journal"].splitlines() if " billaged[" in line]
    assert said
    assert not any("Operation not permitted" in line for line in said)


def test_a_command_writes_its_report_and_a_wrong_one_fails(session: dict[str, str]) -> None:
    assert session["command"] == "0"
    assert session["report"].startswith("billaged 600 ")
    assert int(session["report"].split()[2]) > 0
    assert session["wrong_command"] == "1"
    assert session["timer"] == "active"


def test_the_backup_of_each_night_is_whole(session: dict[str, str]) -> None:
    """With the settings that docs/operations.md gives, and nothing else."""
    assert session["backup"] == "0"
    assert re.fullmatch(r"billaged-\d{4}-\d\d-\d\d\.tar billaged 600", session["backups"])
    assert session["restored"].endswith("exit 0")


def test_the_audit_log_has_its_file_and_is_rotated(session: dict[str, str]) -> None:
    assert session["audit"] == "billaged 700 billaged 600"
    if "rotated" not in session:
        pytest.skip("there is no logrotate")
    assert session["rotated"] == "0"
    log = "/var/log/billaged/audit.log"
    assert session["audit_anew"].split() == [log, log, "billaged", "600", f"{log}.1", "billaged", "600"]


def test_the_agent_meters_in_its_sandbox(session: dict[str, str]) -> None:
    assert session["agent"] == "active 1"
    assert not [line for line in session["journal"].splitlines() if "billaged-agent" in line and "Traceback" in line]


def test_the_watchdog_ends_what_hangs_and_only_that(session: dict[str, str]) -> None:
    assert session["idle"] == "0"
    assert session["hung"] == "1"
    assert session["recovered"] == "active"
    journal = session["journal"]
    assert "billaged.service: Watchdog timeout" in journal
    assert "none was folded for" in journal
    assert "Fatal Python error: Aborted" in journal
    # Six samples were acknowledged, those of the hung daemon among them: all are in the ledger.
    assert "vm-a,acme,running" in session["samples"], session["samples"]


def test_a_release_is_taken_back_and_a_failed_start_is_told(session: dict[str, str]) -> None:
    assert "billaged.service is serving" in session["rollback"]
    assert session["rollback"].endswith("exit 0")
    assert session["version"] != "billaged 99.1"
    assert "billaged.service is failed" in session["wrong_setting"]
    assert session["wrong_setting"].endswith("exit 1")
    # A wrong setting does not heal: no restarts.
    assert session["stays_failed"] == "failed 0 2"
    assert session["stopped"] == "success 0"


def test_uninstalling_stops_it_and_keeps_settings_and_data(session: dict[str, str]) -> None:
    assert session["uninstalled"].endswith("exit 0")
    assert session["left"] == "inactive 0"
    assert session["kept"] == "2"
