"""A real OpenTelemetry Collector between a daemon and a receiver that decodes what the collector passes on.

Needs ``otelcol`` on the PATH or in ``.dev/bin``, of any distribution: it uses the OTLP receiver and exporter only.
Tried with 0.158.0, built of these two by ``go.opentelemetry.io/collector/cmd/builder``: some minutes, too long for CI.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import httpx
import pytest
from daemon_calls import BILLING, SECOND, batch, until
from daemon_process import ROOT, DaemonProcess
from free_ports import free_port
from otlp_receiver import OtlpReceiver
from scraping import Page, scrape

OTELCOL = shutil.which("otelcol", path=os.pathsep.join([os.environ.get("PATH", ""), str(ROOT / ".dev" / "bin")]))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(OTELCOL is None, reason="no otelcol, a collector of OpenTelemetry, on the PATH"),
]

SEND = f"{BILLING}/SendMetricsBatch"
WITHIN_SECONDS = 30.0

CONFIGURATION = """
receivers:
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}
exporters:
  otlphttp: {{endpoint: "http://{onward}"}}
service:
  pipelines:
    traces: {{receivers: [otlp], exporters: [otlphttp]}}
    metrics: {{receivers: [otlp], exporters: [otlphttp]}}
  telemetry: {{metrics: {{level: none}}}}
"""


@contextmanager
def collector(folder: Path, port: int, onward: str) -> Iterator[subprocess.Popen[bytes]]:
    """One that takes OTLP over HTTP on this port and hands it on."""
    assert OTELCOL is not None
    settings, said = folder / "collector.yaml", folder / "collector.log"
    settings.write_text(CONFIGURATION.format(port=port, onward=onward))
    with said.open("ab") as log:
        process = subprocess.Popen([OTELCOL, f"--config={settings}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ready() -> bool:
        assert process.poll() is None, said.read_text()
        try:
            return httpx.post(f"http://127.0.0.1:{port}/v1/traces", json={}).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(ready, "a collector that takes traces", WITHIN_SECONDS)
        yield process
    finally:
        process.kill()
        process.wait()


def traced(port: int) -> dict[str, str]:
    endpoint = f"127.0.0.1:{port}"
    return {"OTEL_ENABLED": "true", "OTEL_ENDPOINT": endpoint, "OTEL_SAMPLING_RATE": "1", "SUMMARY_LOG": "off"}


def parent_of(nth: int) -> tuple[str, str]:
    """The trace and the span of the nth caller."""
    return f"{nth + 1:032x}", f"{nth + 0x1000:016x}"


def send_each(daemon: DaemonProcess, requests: list[Any]) -> tuple[list[int], list[float]]:
    """Each in its caller's trace: the statuses that the callers hear, and the seconds that they wait."""
    heard, waited = [], []
    with daemon.channel() as channel:
        method: Any = channel.unary_unary(f"/{SEND}", request_serializer=None, response_deserializer=None)
        for nth, request in enumerate(requests):
            trace_id, span_id = parent_of(nth)
            began = time.perf_counter()
            try:
                metadata = (("traceparent", f"00-{trace_id}-{span_id}-01"),)
                method(request.SerializeToString(), metadata=metadata, timeout=WITHIN_SECONDS)
                heard.append(0)
            except grpc.RpcError as error:
                heard.append(error.code().value[0])  # type: ignore[attr-defined]
            waited.append(time.perf_counter() - began)
    return heard, waited


def test_every_rpc_comes_out_as_one_span_with_its_children_and_the_metrics_with_it(tmp_path: Path) -> None:
    now_ns = time.time_ns() - 600 * SECOND
    requests = [batch(f"vm-{nth % 10}", now_ns + nth * SECOND, now_ns + nth * SECOND + 1) for nth in range(600)]
    # Refused for their field, and for their customer.
    requests[100], requests[200] = batch("", now_ns), batch("vm-1", now_ns + 999, customer_id="globex")
    port = free_port()
    with OtlpReceiver() as receiver, collector(tmp_path, port, receiver.endpoint):
        with DaemonProcess(tmp_path / "var", traced(port)) as daemon:
            heard, _ = send_each(daemon, requests)
            until(lambda: daemon.stats()["journal"]["lag"] == 0, "everything in the ledger")
            page = scrape(daemon)
            assert daemon.stop() == 0
        assert Counter(heard) == {0: 598, 3: 1, 9: 1}
        spans = receiver.of(SEND)
        until(lambda: len(receiver.spans) >= 600 + 2 * 598, "all spans on the other side", WITHIN_SECONDS)
    by_trace = {span.trace: span for span in spans}
    assert len(spans) == len(by_trace) == 600
    for nth, status in enumerate(heard):
        trace_id, span_id = parent_of(nth)
        span = by_trace[trace_id]
        assert (span.parent, span.attributes["rpc.grpc.status_code"]) == (span_id, status)
        children = [child.name for child in receiver.spans if child.parent == span.id and child.trace == trace_id]
        assert sorted(children) == ([] if status else ["fold", "journal wait"])
        # Who is refused did something wrong; the server did not.
        assert span.status == 0
    assert {span.resource["service.name"] for span in receiver.spans} == {"billaged"}
    assert len({span.id for span in receiver.spans}) == len(receiver.spans) == 600 + 2 * 598
    the_same_as_on_the_page(receiver, page)


def the_same_as_on_the_page(receiver: OtlpReceiver, page: Page) -> None:
    """What came over OTLP has the names, the kinds and the numbers that Prometheus is shown."""
    kinds = {"sum": "counter", "gauge": "gauge", "histogram": "histogram"}
    with_values = {name for name in page.families if any(each.startswith(name) for each, _ in page.values)}
    assert receiver.metrics.keys() == with_values
    for name, metric in receiver.metrics.items():
        assert kinds[str(metric.WhichOneof("data"))] == page.families[name].type, name
    for name, count in (("billaged_usage_records_processed_total", 2 * 598.0), ("billaged_active_vms", 10.0)):
        assert receiver.numbers(name) == {(): count}
        assert page(name) == count
    requests = receiver.numbers("billaged_requests_total")
    for code, count in (("OK", 598), ("INVALID_ARGUMENT", 1), ("FAILED_PRECONDITION", 1)):
        assert requests["grpc", "SendMetricsBatch", code] == count


def spans_by_outcome(daemon: DaemonProcess) -> dict[str, float]:
    return dict(scrape(daemon).labelled("billaged_spans_total", "outcome"))


def test_killing_the_collector_slows_no_rpc_and_its_return_is_noticed(tmp_path: Path) -> None:
    now_ns = time.time_ns() - 600 * SECOND
    times = iter(range(now_ns, now_ns + 600 * SECOND, SECOND))

    def turn() -> float:
        heard, waited = send_each(daemon, [batch("vm-1", next(times)) for _ in range(150)])
        assert set(heard) == {0}
        return median(waited)

    port = free_port()
    with OtlpReceiver() as receiver, DaemonProcess(tmp_path / "var", traced(port)) as daemon:
        with collector(tmp_path, port, receiver.endpoint) as process:
            turn()
            with_it = turn()
            until(lambda: spans_by_outcome(daemon)["sent"] == 900, "all spans sent", WITHIN_SECONDS)
            process.kill()
            process.wait()
        without = turn()
        ratio = without / with_it
        print(f"median {with_it * 1e3:.2f} ms with a collector, {without * 1e3:.2f} ms without, ratio {ratio:.2f}")
        assert ratio < 4.0
        said = daemon.wait_for(lambda line: "spans cannot be sent" in line["message"], "that the collector is away")
        assert said["level"] == "warning"
        with collector(tmp_path, port, receiver.endpoint):
            turn()
            daemon.wait_for(lambda line: "spans are sent again" in line["message"], "that the collector is back")
            assert daemon.stop() == 0
    outcomes = [line["message"] for line in daemon.log if line["message"].startswith("spans ")]
    assert len(outcomes) == 2
