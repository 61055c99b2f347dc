"""The daemon, its command and grpcurl with SPIRE's own server and agent: nothing in it is a stand-in.

Needs ``spire-server`` and ``spire-agent`` on the PATH; docs/security.md has the same commands.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_calls import until
from daemon_process import ROOT, DaemonProcess
from free_ports import free_port

MISSING = [tool for tool in ("spire-server", "spire-agent") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

DOMAIN = "spiffe://example.org"
# SPIRE tells workloads of one user apart by their group here; only root can be another group.
METALD_GROUP = 54_321 if os.geteuid() == 0 else os.getegid()
HAS_OWN_GROUP = os.getegid() != METALD_GROUP
METALD = f"{DOMAIN}/metald" if HAS_OWN_GROUP else f"{DOMAIN}/billaged"
POLICY = f"""
[[allow]]
identity = ["{METALD}", "spiffe://partner.example/metald"]
roles = ["ingest"]

[[allow]]
identity = "@plaintext"
roles = ["read"]
"""

SERVER = """
server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  trust_domain = "{domain}"
  data_dir = "{folder}/server"
  socket_path = "{folder}/server.sock"
  default_x509_svid_ttl = "{svid_ttl}"
  log_level = "WARN"
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{folder}/server/data.sqlite3" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
}}
"""
AGENT = """
agent {{
  data_dir = "{folder}/agent"
  server_address = "127.0.0.1"
  server_port = "{port}"
  socket_path = "{folder}/agent.sock"
  trust_domain = "{domain}"
  insecure_bootstrap = true
  log_level = "WARN"
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"""


class Spire:
    """A trust domain's server and agent. ``enter`` makes an entry for who runs with a group."""

    def __init__(self, folder: Path, domain: str, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.id = f"spiffe://{domain}"
        self._stack = stack
        self.socket = folder / "agent.sock"
        port = free_port()
        for name in ("server", "agent"):
            (folder / name).mkdir()
        # The shortest life that SPIRE gives: renewed at half of it.
        facts = {"port": port, "folder": folder, "domain": domain}
        (folder / "server.conf").write_text(SERVER.format(**facts, svid_ttl="20s"))
        (folder / "agent.conf").write_text(AGENT.format(**facts))
        self._run("server", "spire-server", "run", "-config", str(folder / "server.conf"))
        until(lambda: self._try("healthcheck") is not None, "SPIRE's server")
        token = self.server("token", "generate", "-spiffeID", f"{self.id}/host-1").split()[-1]
        self._run("agent", "spire-agent", "run", "-config", str(folder / "agent.conf"), "-joinToken", token)
        until(self._agent_is_well, "SPIRE's agent")

    def _run(self, name: str, *command: str) -> None:
        log = self._stack.enter_context((self.folder / f"{name}.log").open("w"))
        process = self._stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
        self._stack.callback(process.kill)

    def server(self, *arguments: str) -> str:
        """What a command to the server prints."""
        done = self._try(*arguments)
        assert done is not None, (self.folder / "server.log").read_text()
        return done

    def _try(self, *arguments: str) -> str | None:
        command = ["spire-server", *arguments, "-socketPath", str(self.folder / "server.sock")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout if done.returncode == 0 else None

    def enter(self, name: str, group: int, *options: str) -> None:
        names = ("-parentID", f"{self.id}/host-1", "-spiffeID", f"{self.id}/{name}")
        self.server("entry", "create", *names, "-selector", f"unix:gid:{group}", *options)

    def trust(self, other: Spire) -> None:
        """Take the other domain's bundle, as somebody would bring it over."""
        bundle = self.folder / "other.bundle"
        bundle.write_text(other.server("bundle", "show", "-format", "spiffe"))
        self.server("bundle", "set", "-id", other.id, "-path", str(bundle), "-format", "spiffe")

    def _agent_is_well(self) -> bool:
        command = ["spire-agent", "healthcheck", "-socketPath", str(self.socket)]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0

    def as_metald(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the workload that the entry of metald is for."""
        return subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            group=METALD_GROUP if HAS_OWN_GROUP else None,
        )


@pytest.fixture(scope="module")
def spire() -> Iterator[Spire]:
    # Sockets have short paths.
    with tempfile.TemporaryDirectory(prefix="spire-") as folder, contextlib.ExitStack() as stack:
        ours = Spire(Path(folder), "example.org", stack)
        ours.enter("billaged", os.getegid(), "-dns", "billaged")
        if HAS_OWN_GROUP:
            ours.enter("metald", METALD_GROUP)
        yield ours


@pytest.fixture(scope="module")
def partner(spire: Spire) -> Iterator[Spire]:
    with tempfile.TemporaryDirectory(prefix="spire-") as folder, contextlib.ExitStack() as stack:
        theirs = Spire(Path(folder), "partner.example", stack)
        theirs.trust(spire)
        theirs.enter("metald", METALD_GROUP, "-federatesWith", spire.id)
        yield theirs


@pytest.fixture(scope="module")
def daemon(spire: Spire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("spire")
    (folder / "policy.toml").write_text(POLICY)
    settings = {
        "TLS_MODE": "spiffe",
        "SPIFFE_SOCKET": str(spire.socket),
        "POLICY_FILE": str(folder / "policy.toml"),
    }
    with DaemonProcess(folder / "var", settings) as process:
        yield process


def send(spire: Spire, daemon: DaemonProcess, *options: str) -> subprocess.CompletedProcess[str]:
    """A heartbeat of metald, which has its identity from this agent."""
    command = (sys.executable, "-m", "billaged", "send", "heartbeat", "--instance-id", "host-1")
    return spire.as_metald(
        *command, "--address", daemon.grpc_address, "--spiffe-socket", str(spire.socket), "--timeout", "20s", *options
    )


def test_metald_is_let_in_by_its_entry(spire: Spire, daemon: DaemonProcess) -> None:
    identity = daemon.wait_for(lambda line: line["message"] == "identity in use", "an identity")
    assert identity["identity"] == f"{DOMAIN}/billaged"
    done = send(spire, daemon)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_server_of_another_name_is_not_talked_to(spire: Spire, daemon: DaemonProcess) -> None:
    done = send(spire, daemon, "--tls-server-name", "somebody-else")
    assert done.returncode == 1
    assert "somebody-else" in done.stderr


def test_spire_renews_and_nobody_notices(spire: Spire, daemon: DaemonProcess) -> None:
    """SVIDs of 20 s: renewed several times within this test, and each call is answered."""
    before = daemon.stats()["security"]["identity_changes"]
    calls = 0
    while daemon.stats()["security"]["identity_changes"] < before + 2:
        done = send(spire, daemon)
        assert (done.returncode, done.stderr) == (0, ""), f"call {calls}"
        calls += 1
    assert calls > 2


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
def test_the_grpcurl_line_of_the_security_page(spire: Spire, daemon: DaemonProcess, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    [fetch] = re.findall(r"^spire-agent api fetch.*$", page, re.MULTILINE)
    [call] = re.findall(r"^grpcurl -cacert .*?SendHeartbeat$", page, re.MULTILINE | re.DOTALL)
    folder = tmp_path / "svid"
    folder.mkdir()
    script = (
        f"{fetch}\n{call}".replace("/tmp/svid", str(folder))
        .replace("/var/lib/spire/agent/agent.sock", str(spire.socket))
        .replace("localhost:8081", daemon.grpc_address)
    )
    done = spire.as_metald("sh", "-ec", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"success": true' in done.stdout


def test_a_partners_metald_is_let_in_once_both_federate(
    spire: Spire, partner: Spire, daemon: DaemonProcess, tmp_path: Path
) -> None:
    stranger = send(partner, daemon, "--spiffe-trust-domain", "example.org")
    assert stranger.returncode == 1, "before we trust its domain"
    spire.trust(partner)
    [entry] = re.findall(r"Entry ID\s*: (\S+)", spire.server("entry", "show", "-spiffeID", f"{DOMAIN}/billaged"))
    names = ("-parentID", f"{DOMAIN}/host-1", "-spiffeID", f"{DOMAIN}/billaged", "-dns", "billaged")
    group = ("-selector", f"unix:gid:{os.getegid()}")
    spire.server("entry", "update", "-entryID", entry, *names, *group, "-federatesWith", partner.id)
    daemon.wait_for(lambda line: "partner.example" in line.get("trust_domains", ()), "the partner's bundle")
    done = send(partner, daemon, "--spiffe-trust-domain", "example.org")
    assert (done.returncode, done.stderr) == (0, "")
    assert send(spire, daemon).returncode == 0, "and ours still is"
