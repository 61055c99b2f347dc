"""The metrics of a real daemon: what is documented is there, and its numbers are what was sent."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from statistics import median

import grpc
import httpx
import pytest
from cryptography.x509 import load_pem_x509_certificate
from daemon_calls import SECOND, batch, call, until
from daemon_process import ROOT, DaemonProcess
from scraping import OPENMETRICS, TIMEOUT_SECONDS, Page, metrics_url, promtool_says, scrape
from tls_material import Authority

from billaged.wire.billing.v1 import billing_pb2 as pb
from billaged.wire.billing.v1.usage_stream_pb2 import WatchSummariesRequest

PAGE = ROOT / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| (.+) \|$", re.MULTILINE)
SEEDED = (
    "billaged_usage_records_processed_total",
    "billaged_aggregation_duration_seconds",
    "billaged_active_vms",
    "billaged_billing_errors_total",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon") / "var", {"SUMMARY_LOG": "off"}) as process:
        yield process
        assert process.stop() == 0
        assert process.other_output == ""
        assert [line for line in process.log if line["level"] == "error"] == []


def until_page(daemon: DaemonProcess, name: str, value: float, **labels: str) -> Page:
    """The scrape in which the sum of these series has this value."""

    def look() -> Page | None:
        page = scrape(daemon)
        return page if page.sum(name, **labels) == value else None

    return until(look, f"{name} {labels} of {value}")


def refused(daemon: DaemonProcess, method: str, request: object) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        daemon.call(method, request)  # type: ignore[arg-type]
    return str(caught.value.code().name)


# --- the list --------------------------------------------------------------------


def test_what_is_documented_is_what_is_served(daemon: DaemonProcess) -> None:
    documented = {name: (kind, text) for name, kind, _, text in ROW.findall(PAGE.read_text())}
    page = scrape(daemon)
    assert {name: tuple(family) for name, family in page.families.items()} == documented
    assert set(SEEDED) <= documented.keys()


def test_the_documented_labels_are_those_that_are_served(daemon: DaemonProcess) -> None:
    labels = {
        name: {text.strip(" `") for text in texts.split(",")} for name, _, texts, _ in ROW.findall(PAGE.read_text())
    }
    for name, have in scrape(daemon).values:
        base = name if name in labels else re.sub("_(bucket|sum|count)$", "", name)
        expected = {label for label in labels[base] if label and not label.startswith("(")}
        assert {label for label, _ in have} - {"le"} == expected, name


def test_names_follow_the_conventions(daemon: DaemonProcess) -> None:
    for name, family in scrape(daemon).families.items():
        assert re.fullmatch(r"(billaged|process)(_[a-z]+)+", name)
        assert name.endswith("_total") == (family.type == "counter"), name
        assert family.help.endswith(".")
        if family.type == "histogram" and not name.endswith("_records"):
            assert name.endswith("_seconds"), name
    assert (said := promtool_says(scrape(daemon).text)) in (None, ""), said


def test_a_stale_page_of_metrics_is_noticed_and_renewed(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "generate_metrics_docs.py")]
    assert subprocess.run([*script, "--check"], cwd=ROOT, check=False).returncode == 0
    copy = shutil.copy(PAGE, tmp_path)
    Path(copy).write_text(PAGE.read_text().replace("| gauge |", "| counter |"))
    stale = subprocess.run([*script, "--check", "--page", copy], cwd=ROOT, check=False, capture_output=True, text=True)
    assert stale.returncode == 1
    assert "generate_metrics_docs.py" in stale.stderr
    subprocess.run([*script, "--page", copy], cwd=ROOT, check=True, capture_output=True)
    assert Path(copy).read_text() == PAGE.read_text()


# --- the port --------------------------------------------------------------------


def test_text_and_openmetrics_say_the_same(daemon: DaemonProcess) -> None:
    url = f"{metrics_url(daemon)}/metrics"
    text = httpx.get(url, timeout=TIMEOUT_SECONDS)
    assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    answer = httpx.get(url, headers=OPENMETRICS, timeout=TIMEOUT_SECONDS)
    assert answer.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert answer.text.endswith("# EOF\n")
    both = Page(text.text), Page(answer.text, is_open=True)
    assert both[0].families == both[1].families
    assert both[0].values.keys() == both[1].values.keys()


def test_head_has_the_headers_only(daemon: DaemonProcess) -> None:
    for path in ("/metrics", "/health"):
        answer = httpx.head(metrics_url(daemon) + path, timeout=TIMEOUT_SECONDS)
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) > 50


def test_health_is_there_and_nothing_else(daemon: DaemonProcess) -> None:
    url = metrics_url(daemon)
    assert httpx.get(f"{url}/health", timeout=TIMEOUT_SECONDS).json()["status"] == "ok"
    assert httpx.get(f"{url}/stats", timeout=TIMEOUT_SECONDS).status_code == 404
    assert httpx.post(f"{url}/metrics", timeout=TIMEOUT_SECONDS).status_code == 405


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "var", {"OTEL_PROMETHEUS_ENABLED": "false"}) as daemon:
        assert daemon.wait_for(lambda line: line["message"] == "serving", "serving")["metrics"] is None
        assert daemon.stop() == 0


def test_beyond_loopback_a_warning_says_who_can_read_it(tmp_path: Path) -> None:
    settings = {"OTEL_PROMETHEUS_INTERFACE": "0.0.0.0", "OTEL_HIGH_CARDINALITY_ENABLED": "true"}
    with DaemonProcess(tmp_path / "var", settings) as daemon:
        daemon.wait_for(
            lambda line: (
                line["message"]
                == "UNKEY_BILLAGED_OTEL_PROMETHEUS_INTERFACE=0.0.0.0: everybody who can connect reads the metrics,"
                " names of VMs and customers among them"
            ),
            "the warning",
        )
        assert daemon.stop() == 0


def test_who_hangs_or_takes_all_places_keeps_usage_out_for_no_moment(daemon: DaemonProcess) -> None:
    host, _, port = metrics_url(daemon).removeprefix("http://").partition(":")
    with ExitStack() as open_ones:
        for _ in range(40):
            with suppress(OSError):
                hanging = open_ones.enter_context(socket.create_connection((host, int(port))))
                hanging.sendall(b"GET /metrics HTTP/1.1\r\n")
        began = time.monotonic()
        daemon.call("SendHeartbeat", pb.SendHeartbeatRequest(instance_id="host-h"))
        assert daemon.get("/health").status_code == 200
        assert time.monotonic() - began < 5.0
    # They are gone, and their places free.
    until(lambda: _can_scrape(daemon), "a scrape")


def _can_scrape(daemon: DaemonProcess) -> bool:
    try:
        return bool(scrape(daemon).values)
    except httpx.TransportError:
        return False


# --- the numbers -----------------------------------------------------------------


def test_every_outcome_is_counted_as_it_was_sent(tmp_path: Path) -> None:
    now_ns = time.time_ns() - 3600 * SECOND
    with DaemonProcess(tmp_path / "var", {"SUMMARY_LOG": "off"}) as daemon:
        first = scrape(daemon)
        assert first("billaged_usage_records_processed_total") == 0
        assert set(first.labelled("billaged_billing_errors_total", "error_type").values()) == {0}
        times = [now_ns + 10 * SECOND * step for step in range(6)]
        daemon.call("SendMetricsBatch", batch("vm-1", *times[:4], times[5]))
        daemon.call("SendMetricsBatch", batch("vm-1", times[3]))
        between = batch("vm-1", times[4])
        daemon.call("SendMetricsBatch", between)
        between.metrics[0].memory_usage_bytes += 1
        daemon.call("SendMetricsBatch", between)
        daemon.call("SendMetricsBatch", batch("vm-1", times[0] + SECOND))
        # The counters grow by far more than any machine's.
        daemon.call("SendMetricsBatch", batch("vm-1", times[5] + 10 * SECOND, cpu_ns_per_second=1000 * SECOND))
        # Only what is folded is refused to another customer for certain.
        until_page(daemon, "billaged_usage_records_processed_total", 7)
        assert (
            refused(daemon, "SendMetricsBatch", batch("vm-1", *times[:3], customer_id="globex"))
            == "FAILED_PRECONDITION"
        )
        assert refused(daemon, "SendMetricsBatch", b"\xff\xff") == "INVALID_ARGUMENT"
        nobodys = {"vmId": "vm-1", "customerId": "", "metrics": [{"timestamp": "2024-01-01T12:00:00Z"}]}
        assert daemon.post("SendMetricsBatch", nobodys).status_code == 400
        assert daemon.post("SendHeartbeat", {"instanceId": "host-1", "activeVms": ["vm-1"]}).status_code == 200
        assert httpx.get(f"{daemon.http_url}/billing.v1.BillingService/SendHeartbeat").status_code == 405
        assert httpx.post(f"{daemon.http_url}/billing.v1.BillingService/Nothing").status_code == 404
        page = until_page(daemon, "billaged_usage_records_processed_total", 7)

        outcomes = page.labelled("billaged_samples_total", "outcome")
        assert outcomes["backfilled"] + outcomes["accepted"] == 7
        assert (outcomes["backfilled"], outcomes["duplicate"], outcomes["conflict"], outcomes["late"]) == (1, 1, 1, 1)
        # Three of another customer's, and the one without a customer.
        assert outcomes["refused"] == 4
        errors = page.labelled("billaged_billing_errors_total", "error_type")
        assert {name: value for name, value in errors.items() if value} == {"conflict": 1, "implausible": 1, "late": 1}
        assert page("billaged_anomalies_total", kind="conflict") == 1
        assert page("billaged_active_vms") == page("billaged_known_vms") == page("billaged_customers") == 1
        assert page("billaged_instances", state="heard") == 1
        assert 0 <= page("billaged_heartbeat_age_seconds") < 30

        method = "SendMetricsBatch"
        codes = {
            code: page("billaged_requests_total", door="grpc", method=method, code=code) for code in ("OK", "UNKNOWN")
        }
        assert codes == {"OK": 6, "UNKNOWN": 0}
        for code in ("FAILED_PRECONDITION", "INVALID_ARGUMENT"):
            assert page("billaged_requests_total", door="grpc", method=method, code=code) == 1
        assert page("billaged_request_duration_seconds_count", door="grpc", method=method) == 8
        assert 0 < page("billaged_request_duration_seconds_sum", door="grpc", method=method) < 60
        assert page("billaged_requests_total", door="http", method=method, code="INVALID_ARGUMENT") == 1
        assert page("billaged_requests_total", door="http", method="SendHeartbeat", code="OK") == 1
        assert page("billaged_requests_total", door="http", method="SendHeartbeat", code="UNIMPLEMENTED") == 1
        assert page.sum("billaged_requests_total") == 11

        # The ledger counts what the metrics count.
        assert daemon.stop() == 0
        tallies = dict(daemon.ledger()["tallies"])
        assert (tallies["samples"], tallies["backfilled"], tallies["duplicates"], tallies["conflicts"]) == (7, 1, 1, 1)


def test_journal_and_ledger_come_to_rest_together(daemon: DaemonProcess) -> None:
    daemon.call("SendHeartbeat", pb.SendHeartbeatRequest(instance_id="host-j"))
    page = until_page(daemon, "billaged_ledger_lag_records", 0)
    assert page("billaged_ledger_lag_seconds") == 0
    assert page("billaged_journal_position") == page("billaged_ledger_position") == page("billaged_journal_rows") > 0
    assert page("billaged_journal_group_records_sum") == page("billaged_journal_position")
    assert page("billaged_journal_commit_duration_seconds_count") == page("billaged_journal_group_records_count")
    assert page("billaged_ledger_flush_duration_seconds_count") > 0
    assert page("billaged_aggregation_duration_seconds_count") > 0
    assert page("billaged_queue_records") == page("billaged_queue_bytes") == 0
    assert page("billaged_queue_records_limit") == 65_536
    assert page("billaged_taking_usage") == 1
    assert page("billaged_disk_free_bytes") > page("billaged_disk_needed_bytes") == 2**28
    for store in ("journal", "ledger"):
        assert page("billaged_store_bytes", store=store) > 4096
    assert page("billaged_build_info", **{"version": "0.1.0", "tls": "disabled", "store": "sqlite"} | _python()) == 1
    assert page("billaged_threads") >= 4
    assert page("billaged_asyncio_tasks") >= 4


def _python() -> dict[str, str]:
    return {"python": sys.version.split()[0]}


def test_watchers_are_counted_while_they_watch(daemon: DaemonProcess) -> None:
    before = scrape(daemon).sum("billaged_requests_total", method="WatchSummaries")
    with daemon.channel() as channel:
        watch = channel.unary_stream(
            "/billing.v1.UsageStreamService/WatchSummaries",
            request_serializer=WatchSummariesRequest.SerializeToString,
        )
        stream = watch(WatchSummariesRequest())
        stream.initial_metadata()
        until_page(daemon, "billaged_watchers", 1)
        stream.cancel()
        until_page(daemon, "billaged_watchers", 0)
    page = until_page(daemon, "billaged_requests_total", before + 1, method="WatchSummaries")
    assert page("billaged_requests_total", door="grpc", method="WatchSummaries", code="CANCELLED") == 1


def test_scrapes_under_load_never_go_back_and_end_with_what_was_acknowledged(tmp_path: Path) -> None:
    senders, each, vms = 4, 300, 25
    settings = {"SUMMARY_LOG": "off", "LEDGER_FLUSH_INTERVAL": "100ms"}
    with DaemonProcess(tmp_path / "var", settings) as daemon:
        began_ns = time.time_ns() - 3600 * SECOND

        def send(sender: int) -> None:
            with daemon.channel() as channel:
                for nth in range(each):
                    vm_id = f"vm-{sender}-{nth % vms}"
                    call(
                        channel, "SendMetricsBatch", batch(vm_id, began_ns + nth * SECOND, began_ns + nth * SECOND + 1)
                    )

        threads = [threading.Thread(target=send, args=(sender,)) for sender in range(senders)]
        for thread in threads:
            thread.start()
        pages, seconds = [], []
        while any(thread.is_alive() for thread in threads):
            began = time.perf_counter()
            pages.append(scrape(daemon, OPENMETRICS if len(pages) % 2 else None))
            seconds.append(time.perf_counter() - began)
        for thread in threads:
            thread.join()
        last = until_page(daemon, "billaged_usage_records_processed_total", 2 * senders * each)
        pages.append(last)
        assert len(pages) > 3
        assert median(seconds) < 1.0
        counters = [key for key in last.values if re.search("_(total|bucket|count|position)$", key[0])]
        # Formats are written at different moments; each goes forward.
        for one_format in (pages[0:-1:2], [*pages[1:-1:2], last]):
            for earlier, later in pairwise(one_format):
                for key in counters:
                    assert earlier.values[key] <= later.values[key], key
        assert last("billaged_requests_total", door="grpc", method="SendMetricsBatch", code="OK") == senders * each
        assert last("billaged_active_vms") == senders * vms
        assert (said := promtool_says(last.text)) in (None, ""), said
        assert daemon.stop() == 0


def test_high_cardinality_names_vms_and_customers_and_sums_up_to_the_same(tmp_path: Path) -> None:
    settings = {"OTEL_HIGH_CARDINALITY_ENABLED": "true", "SUMMARY_LOG": "off"}
    began_ns = time.time_ns() - 1800 * SECOND
    # Ids may look like anything; one of them like ours for the rest.
    sent = {"vm-a": ("acme", 3), "vm-b": ("acme", 5), "other": ("other", 2), "a:b/c@d": ("globex", 1)}
    with DaemonProcess(tmp_path / "var", settings) as daemon:
        for vm_id, (customer_id, count) in sent.items():
            times = [began_ns + step * SECOND for step in range(count)]
            daemon.call("SendMetricsBatch", batch(vm_id, *times, customer_id=customer_id))
        # One is put in between: its usage moves, and it is one more.
        daemon.call("SendMetricsBatch", batch("vm-b", began_ns + 3 * SECOND + SECOND // 2))
        page = until_page(daemon, "billaged_usage_records_processed_total", 12)
        by_vm = {vm_id: page.sum("billaged_usage_records_processed_total", vm_id=vm_id) for vm_id in sent}
        assert by_vm == {"vm-a": 3, "vm-b": 6, "other": 2, "a:b/c@d": 1}
        assert page("billaged_usage_records_processed_total", vm_id="vm-b", customer_id="acme") == 6
        assert page.labelled("billaged_active_vms", "customer_id") == {"acme": 2, "globex": 1, "other": 1}
        assert page.labelled("billaged_metrics_labels_full", "label") == {"vm_id": 0, "customer_id": 0}
        assert page.sum("billaged_samples_total", outcome="accepted") == 11
        assert (said := promtool_says(page.text)) in (None, ""), said
        assert daemon.stop() == 0


def test_a_restart_tells_what_it_folded_again_and_how_long_it_was_away(tmp_path: Path) -> None:
    now_ns = time.time_ns() - 60 * SECOND
    with DaemonProcess(tmp_path / "var", {"LEDGER_FLUSH_INTERVAL": "1m"}) as daemon:
        assert scrape(daemon)("billaged_downtime_before_start_seconds") == 0
        daemon.call("SendMetricsBatch", batch("vm-1", now_ns, now_ns + SECOND))
        until(lambda: daemon.stats()["samples"] == 2, "the fold")
        page = scrape(daemon)
        # Folded, and not in the ledger yet, unless the start's own flush took it along.
        assert page("billaged_usage_records_processed_total") in (0, 2)
        daemon.call("SendHeartbeat", pb.SendHeartbeatRequest(instance_id="host-1"))
        until(lambda: scrape(daemon)("billaged_ledger_lag_seconds") > 0.5, "a ledger that is behind")
        assert scrape(daemon)("billaged_ledger_lag_records") >= 1
        daemon.kill()
    with DaemonProcess(tmp_path / "var") as daemon:
        page = scrape(daemon)
        assert page("billaged_usage_records_processed_total") + page("billaged_replayed_records") >= 2
        assert 0 < page("billaged_downtime_before_start_seconds") < 60
        assert page("billaged_active_vms") == 1
        assert daemon.stop() == 0


def test_certificates_say_when_they_end(tmp_path: Path) -> None:
    authority = Authority()
    pair = authority.sign("billaged", names=("localhost",))
    certificate, key = pair.write(tmp_path, "server")
    roots = tmp_path / "roots.pem"
    roots.write_bytes(authority.pem)
    settings = {
        "TLS_MODE": "file",
        "TLS_CERT_FILE": str(certificate),
        "TLS_KEY_FILE": str(key),
        "TLS_CA_FILE": str(roots),
    }
    with DaemonProcess(tmp_path / "var", settings) as daemon:
        page = scrape(daemon)
        ends = page.labelled("billaged_certificate_expiry_timestamp_seconds", "use")
        assert ends["identity"] == pair.leaf.not_valid_after_utc.timestamp()
        assert ends["trust"] == load_pem_x509_certificate(authority.pem).not_valid_after_utc.timestamp()
        assert page("billaged_identity_changes_total") == 1
        assert page("billaged_policy_stale") == 0
        # No certificate, no grants.
        credentials = grpc.ssl_channel_credentials(authority.pem)
        with (
            grpc.secure_channel(
                daemon.grpc_address, credentials, [("grpc.ssl_target_name_override", "localhost")]
            ) as channel,
            pytest.raises(grpc.RpcError),
        ):
            call(channel, "SendHeartbeat", pb.SendHeartbeatRequest(instance_id="host-1"))
        assert daemon.stop() == 0
