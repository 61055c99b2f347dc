"""A real Prometheus that scrapes real daemons under load: every panel shows something, every rule can be computed."""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from daemon_calls import SECOND, batch, call, until
from daemon_process import DaemonProcess
from dashboard_files import ALERTS, BOARDS, FOLDER
from fake_workload_api import FakeWorkloadApi, Update
from free_ports import free_port
from scraping import metrics_url
from spiffe_material import TrustDomain
from tls_material import Authority

from billaged.wire.billing.v1 import billing_pb2 as pb

pytestmark = [pytest.mark.slow]

SCRAPE_SECONDS = 1
# Grafana's: four scrapes, or one more than a pixel.
RATE_INTERVAL = f"{4 * SCRAPE_SECONDS}s"
WITHIN_SECONDS = 30.0
SENDERS, VMS = 2, 5

CONFIGURATION = """
global: {{scrape_interval: {seconds}s, scrape_timeout: {seconds}s, evaluation_interval: {seconds}s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: billaged
    static_configs: [{{targets: {targets}}}]
  - job_name: prometheus
    static_configs: [{{targets: ["{own}"]}}]
"""


class Prometheus:
    """A running one, asked by its HTTP API."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        address = f"127.0.0.1:{free_port()}"
        self._client = httpx.Client(base_url=f"http://{address}", timeout=WITHIN_SECONDS)
        settings = folder / "prometheus.yml"
        settings.write_text(
            CONFIGURATION.format(
                seconds=SCRAPE_SECONDS, rules=FOLDER / "alerts.yml", targets=repr(targets), own=address
            )
        )
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={settings}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address={address}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            until(self._is_ready, "a Prometheus that is ready", WITHIN_SECONDS)
        except BaseException:
            self.stop()
            raise

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            pytest.fail(f"Prometheus ended: {self._log.read_text()}")
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait(WITHIN_SECONDS)

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, expression: str) -> list[float]:
        """The numbers that there are now; what is none (0/0) is left out."""
        values = [float(series["value"][1]) for series in self.get("query", query=expression)["result"]]
        return [value for value in values if not math.isnan(value)]

    def rules(self) -> dict[str, dict[str, Any]]:
        return {rule["name"]: rule for group in self.get("rules")["groups"] for rule in group["rules"]}

    def label_values(self, series: str, label: str) -> list[str]:
        """What Grafana's label_values() gives."""
        return sorted({found[label] for found in self.get("series", **{"match[]": series}) if label in found})


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Three daemons: one under load, with names of VMs; one with certificates from files; one with a SPIFFE agent."""
    if shutil.which("prometheus") is None:
        reason = "no prometheus on PATH (Debian: apt install prometheus)"
        # There .ci/run should have fetched it.
        if os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("watched")
    quiet = {"SUMMARY_LOG": "off"}
    with ExitStack() as stack:
        api = stack.enter_context(FakeWorkloadApi())
        domain = TrustDomain("example.org")
        api.set(Update.of(domain))
        authority = Authority()
        certificate, key = authority.sign("billaged", names=("localhost",)).write(folder, "server")
        roots = folder / "roots.pem"
        roots.write_bytes(authority.pem)
        files = {"TLS_CERT_FILE": str(certificate), "TLS_KEY_FILE": str(key), "TLS_CA_FILE": str(roots)}
        of_each = (
            {"OTEL_HIGH_CARDINALITY_ENABLED": "true", **quiet},
            {"TLS_MODE": "file", **files, **quiet},
            {"TLS_MODE": "spiffe", "SPIFFE_SOCKET": str(api.socket_path), **quiet},
        )
        daemons = [
            stack.enter_context(DaemonProcess(folder / f"var-{nth}", settings)) for nth, settings in enumerate(of_each)
        ]
        stack.enter_context(load(daemons[0]))
        yield [metrics_url(daemon).removeprefix("http://") for daemon in daemons]


@contextmanager
def load(daemon: DaemonProcess) -> Iterator[None]:
    """Senders that go on until the end; each with a host's heartbeats."""
    is_over = threading.Event()
    began_ns = time.time_ns() - 3600 * SECOND

    def send(sender: int) -> None:
        vm_ids = [f"vm-{sender}-{vm}" for vm in range(VMS)]
        heartbeat = pb.SendHeartbeatRequest(instance_id=f"host-{sender}", active_vms=vm_ids)
        with daemon.channel() as channel:
            for nth in itertools.count():
                at_ns = began_ns + nth * SECOND // 10
                call(channel, "SendMetricsBatch", batch(vm_ids[nth % VMS], at_ns, at_ns + 1))
                if nth % 20 == 0:
                    call(channel, "SendHeartbeat", heartbeat)
                if is_over.wait(0.02):
                    return

    with ThreadPoolExecutor(SENDERS) as pool:
        senders = [pool.submit(send, sender) for sender in range(SENDERS)]
        try:
            yield
        finally:
            is_over.set()
        for sender in senders:
            sender.result(WITHIN_SECONDS)


@pytest.fixture(scope="module")
def prometheus(targets: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), targets)
    try:
        until(
            lambda: len(running.query('up{job="billaged"} == 1')) == len(targets),
            "scrapes of all daemons",
            WITHIN_SECONDS,
        )
        yield running
    finally:
        running.stop()


def eventually(missing: Callable[[], list[str]]) -> None:
    """Until nothing is missing; what still is, else."""
    deadline = time.monotonic() + WITHIN_SECONDS
    pause = threading.Event()
    while (left := missing()) and time.monotonic() < deadline:
        pause.wait(0.2)
    assert left == []


def left_side(expression: str) -> str:
    """A rule without its last comparison, which is what makes it an alert."""
    depth, cut, quoted = 0, None, False
    for at, character in enumerate(expression):
        if character == '"':
            quoted = not quoted
        elif not quoted:
            depth += (character in "({[") - (character in ")}]")
            if depth == 0 and character in "<>=" and re.match(r" (==|<|>) ", expression[at - 1 :]):
                cut = at
    assert cut is not None, expression
    return expression[:cut].strip()


def filled_in(expression: str, values: Mapping[str, str]) -> str:
    """A panel's query as Grafana sends it."""
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expression)


def test_the_variables_offer_what_is_there(prometheus: Prometheus, targets: list[str]) -> None:
    for board in BOARDS:
        for variable in board.variables.values():
            if variable["type"] != "query":
                continue
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            assert found is not None
            series = found[1].replace("$job", ".+").replace("$instance", ".+")
            expected = {"job": ["billaged"], "instance": sorted(targets), "customer": ["acme"]}[variable["name"]]
            assert prometheus.label_values(series, found[2]) == expected


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.file.stem)
def test_every_panel_shows_something(prometheus: Prometheus, targets: list[str], board: Any) -> None:
    values = {
        "job": "(billaged)",
        "instance": "|".join(map(re.escape, targets)).replace("\\", "\\\\"),
        "customer": ".*",
        "top": "10",
        "__rate_interval": RATE_INTERVAL,
    }
    queries = {}
    for name, expression in board.queries():
        breakdowns = [option["value"] for option in board.variables.get("breakdown", {}).get("options", ())]
        for breakdown in breakdowns if "$breakdown" in expression else [""]:
            queries[f"{name} {breakdown}"] = filled_in(expression, values | {"breakdown": breakdown})
    # Marks are shown where something happened; alerts are tried with a fault, below.
    queries = {name: expression for name, expression in queries.items() if "ALERTS{" not in expression}
    marks = {name for name in queries if name.startswith(f"{board.file.stem}: Restarts")}
    for name in marks:
        queries[name] = left_side(queries[name])

    def missing() -> list[str]:
        for name in [name for name, expression in queries.items() if prometheus.query(expression)]:
            del queries[name]
        return list(queries)

    eventually(missing)


def test_every_rule_has_something_to_compare_and_the_labels_that_its_words_name(prometheus: Prometheus) -> None:
    left = {alert.name: alert for alert in ALERTS}

    def missing() -> list[str]:
        for alert in list(left.values()):
            found = prometheus.get("query", query=left_side(alert.expression))["result"]
            if any(not math.isnan(float(series["value"][1])) for series in found):
                del left[alert.name]
                named = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.description))
                for series in found:
                    assert named <= series["metric"].keys(), alert.name
        return list(left)

    eventually(missing)


def test_every_rule_is_computed_and_none_fires_while_all_is_well(prometheus: Prometheus) -> None:
    eventually(lambda: [name for name, rule in prometheus.rules().items() if rule["health"] == "unknown"])
    rules = prometheus.rules()
    assert rules.keys() == {alert.name for alert in ALERTS}
    for name, rule in rules.items():
        assert rule["health"] == "ok", (name, rule.get("lastError"))
    # The machine that runs this may be short of disk.
    firing = {name for name, rule in rules.items() if rule["state"] == "firing"} - {"BillagedDiskNearlyFull"}
    assert firing == set()


def test_a_real_fault_fires(targets: list[str], tmp_path: Path) -> None:
    """From what a sender does wrong to the words that somebody reads."""
    with DaemonProcess(tmp_path / "var", {"SUMMARY_LOG": "off"}) as daemon:
        watched = Prometheus(tmp_path, [metrics_url(daemon).removeprefix("http://")])
        try:
            until(lambda: watched.query('billaged_billing_errors_total{error_type="conflict"}'), "a first scrape")
            at_ns = time.time_ns() - 60 * SECOND
            first = batch("vm-1", at_ns)
            daemon.call("SendMetricsBatch", first)
            first.metrics[0].memory_usage_bytes += 1
            daemon.call("SendMetricsBatch", first)
            until(lambda: watched.rules()["BillagedUsageQuestionable"]["state"] == "firing", "the alert")
            [alert] = watched.rules()["BillagedUsageQuestionable"]["alerts"]
            assert alert["labels"]["error_type"] == "conflict"
            assert alert["annotations"]["summary"].endswith("got usage that cannot be right (conflict)")
            # Whoever is woken up goes by these words: nothing in them is left to be filled in.
            assert not re.search(r"\{\{|<no value>|error", "".join(alert["annotations"].values()))
            # And the dashboard shows it.
            [shown] = [query for board in BOARDS for query in board.expressions if "ALERTS{" in query]
            shown = filled_in(shown, {"job": "billaged", "instance": ".+"})
            until(lambda: watched.query(shown) == [1.0], "the alert on the dashboard")
        finally:
            watched.stop()
        assert daemon.stop() == 0
