"""What /metrics says, read as Prometheus reads it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx
from daemon_process import DaemonProcess
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as text_families

TIMEOUT_SECONDS = 30.0
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0; q=0.9, text/plain; q=0.5"}

Labels = frozenset[tuple[str, str]]


class Family(NamedTuple):
    type: str
    help: str


class Page:
    """One scrape."""

    def __init__(self, text: str, *, is_open: bool = False) -> None:
        self.text = text
        self.families: dict[str, Family] = {}
        self.values: dict[tuple[str, Labels], float] = {}
        parse: Any = open_families if is_open else text_families
        for family in parse(text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            self.families[name] = Family(family.type, family.documentation)
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.values, key
                self.values[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """The value of exactly this series."""
        return self.values[name, frozenset(labels.items())]

    def sum(self, name: str, **labels: str) -> float:
        """Over all series that have these labels, as sum() does."""
        wanted = frozenset(labels.items())
        return sum(value for (each, have), value in self.values.items() if each == name and wanted <= have)

    def labelled(self, name: str, label: str) -> Mapping[str, float]:
        """The series of a metric by one label."""
        return {dict(have)[label]: value for (each, have), value in self.values.items() if each == name}


def metrics_url(daemon: DaemonProcess) -> str:
    serving = daemon.wait_for(lambda line: line["message"] == "serving", "serving")
    return f"http://{serving['metrics']}"


def scrape(daemon: DaemonProcess, headers: Mapping[str, str] | None = None) -> Page:
    answer = httpx.get(f"{metrics_url(daemon)}/metrics", headers=headers, timeout=TIMEOUT_SECONDS)
    answer.raise_for_status()
    return Page(answer.text, is_open=headers is not None)


def promtool_says(text: str) -> str | None:
    """What Prometheus' own tool complains of, as a text; None where there is no such tool."""
    if (promtool := shutil.which("promtool")) is None:
        return None
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode or done.stderr else ""
