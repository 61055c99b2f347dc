"""The dashboards and alert rules as files: Grafana can take them, and they name nothing that is not there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from dashboard_files import ALERTS, BOARDS, FOLDER, Board
from free_ports import free_port

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "import_dashboards.py"
DOCUMENTED = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
SEEDED = {
    "Usage Records Rate": "billaged_usage_records_processed_total",
    "Avg Aggregation Duration": "billaged_aggregation_duration_seconds",
    "Active VMs": "billaged_active_vms",
    "Error Rate": "billaged_billing_errors_total",
    "Usage Record Processing Rate": "billaged_usage_records_processed_total",
    "Aggregation Duration Percentiles": "billaged_aggregation_duration_seconds",
    "Errors by Type": "billaged_billing_errors_total",
    "CPU Usage": "process_cpu_seconds_total",
    "Memory Usage": "process_resident_memory_bytes",
    "Threads & Asyncio Tasks": "billaged_threads",
}
EVERY_BOARD = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.file.stem)


def metrics_in(expression: str) -> set[str]:
    """The metrics that a query names, without what histograms append."""
    names = set(re.findall(r"\b(?:billaged|process)_\w+", re.sub(r'"[^"]*"', "", expression)))
    return {name if name in DOCUMENTED else re.sub("_(bucket|sum|count)$", "", name) for name in names}


# --- the dashboards --------------------------------------------------------------


@EVERY_BOARD
def test_grafana_can_import_it(board: Board) -> None:
    assert board.json["id"] is None
    assert re.fullmatch(r"[a-z-]{1,40}", board.json["uid"])
    assert board.json["uid"] == board.file.stem
    assert board.json["schemaVersion"] >= 36
    assert "__inputs" not in board.json
    assert "dashboard" not in board.json
    ids = [panel["id"] for panel in board.all_panels]
    assert len(ids) == len(set(ids))
    for panel in board.panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert [target["refId"] for target in panel["targets"]] == ["A", "B", "C"][: len(panel["targets"])]


@EVERY_BOARD
def test_the_panels_stand_side_by_side(board: Board) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in board.all_panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


@EVERY_BOARD
def test_the_data_source_is_chosen_by_whoever_looks(board: Board) -> None:
    assert board.variables["datasource"]["query"] == "prometheus"
    assert set(sources(board.json)) == {("prometheus", "${datasource}")}


def sources(part: Any) -> Iterator[tuple[str, str]]:
    """Every data source that is named anywhere."""
    if isinstance(part, dict):
        if "datasource" in part:
            yield part["datasource"]["type"], part["datasource"]["uid"]
        for value in part.values():
            yield from sources(value)
    elif isinstance(part, list):
        for value in part:
            yield from sources(value)


@EVERY_BOARD
def test_every_metric_is_documented(board: Board) -> None:
    for expression in board.expressions:
        assert metrics_in(expression) <= DOCUMENTED, expression
        assert metrics_in(expression) or "up{" in expression or "ALERTS{" in expression


@EVERY_BOARD
def test_every_rate_has_the_interval_that_fits_the_zoom(board: Board) -> None:
    for expression in board.expressions:
        assert set(re.findall(r"\[([^\]]*)\]", expression)) <= {"$__rate_interval"}, expression
        assert len(re.findall(r"\b(?:rate|increase|changes)\(", expression)) == expression.count("[$__rate_interval]")


@EVERY_BOARD
def test_every_series_is_of_the_chosen_job_and_instance(board: Board) -> None:
    for expression in board.expressions:
        selectors = re.findall(r"\b(billaged_\w+|process_\w+|up|ALERTS)\b(\{[^}]*\})?", expression)
        assert selectors
        for name, selector in selectors:
            # Some alerts are of no daemon, since there is none.
            more = "|" if name == "ALERTS" else ""
            assert f'job=~"$job{more}", instance=~"$instance{more}"' in selector, expression


@EVERY_BOARD
def test_variables_that_are_used_are_there(board: Board) -> None:
    used = set(re.findall(r"\$(\w+)", " ".join(board.expressions))) - {"__rate_interval"}
    assert used | {"datasource"} == set(board.variables)


def test_the_overview_has_the_panels_that_were_promised() -> None:
    [overview] = [board for board in BOARDS if board.file.name == "billaged-overview.json"]
    panels = {panel["title"]: panel for panel in overview.panels}
    for title, metric in SEEDED.items():
        assert any(metric in target["expr"] for target in panels[title]["targets"]), title
    rows = [panel["title"] for panel in overview.all_panels if panel["type"] == "row"]
    assert rows[1:4] == ["Usage Processing", "Active VMs & Errors", "System Health"]


def test_names_of_vms_are_asked_for_in_a_closed_row_and_by_a_variable_only() -> None:
    [overview] = [board for board in BOARDS if board.file.name == "billaged-overview.json"]
    assert overview.variables["breakdown"]["current"]["value"] == "off"
    closed = [panel for row in overview.json["panels"] if row.get("collapsed") for panel in row["panels"]]
    named = [panel for panel in overview.panels if re.search(r"\$breakdown|vm_id|customer", str(panel["targets"]))]
    assert named == closed != []


# --- the alert rules -------------------------------------------------------------


def test_every_rule_names_documented_metrics_and_a_section_that_has_it() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    sections = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-"): text
        for title, text in re.findall(r"^### (.+)\n((?:(?!#).*\n)*)", page, re.MULTILINE)
    }
    assert len(ALERTS) >= 30
    for alert in ALERTS:
        assert metrics_in(alert.expression) <= DOCUMENTED, alert.name
        assert alert.severity in ("critical", "warning", "info")
        assert alert.summary
        assert alert.description.endswith(".")
        path, _, anchor = alert.runbook.partition("#")
        assert path == "docs/operations.md"
        assert f"`{alert.name}`" in sections[anchor], alert.name
    assert len({alert.name for alert in ALERTS}) == len(ALERTS)
    told = set(re.findall(r"`(Billaged\w+)`", page))
    assert told == {alert.name for alert in ALERTS}


def test_every_alert_has_a_unit_test() -> None:
    tested = set(re.findall(r'name: "(\w+)', (FOLDER / "alerts_test.yml").read_text()))
    assert tested == {alert.name for alert in ALERTS}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian: apt install prometheus)")
@pytest.mark.parametrize("arguments", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_promtool_is_content(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- the page --------------------------------------------------------------------


def test_the_page_names_what_is_there() -> None:
    page = (FOLDER / "README.md").read_text()
    files = set(re.findall(r"^\| `([\w.-]+)` \|", page, re.MULTILINE))
    assert files == {file.name for file in FOLDER.iterdir()} - {"README.md"}
    for target, anchor in re.findall(r"\]\(([^)#]+)(?:#([^)]*))?\)", page):
        assert (FOLDER / target).exists(), target
        assert anchor in ("", "what-to-do-for-each-alert")
    settings = (ROOT / "docs" / "configuration.md").read_text()
    for text in (page, (FOLDER / "alerts.yml").read_text()):
        for setting in re.findall(r"UNKEY_BILLAGED_\w+", text):
            assert f"`{setting}`" in settings, setting
    rows = [panel["title"] for board in BOARDS for panel in board.all_panels if panel["type"] == "row"]
    for title in re.findall(r"\*\*([^*]+)\*\*", page.partition("## Overview")[2]):
        assert any(row.lower().startswith(title.lower()) for row in rows), title


# --- the import ------------------------------------------------------------------


class Asked(NamedTuple):
    path: str
    authorization: str | None
    body: Any


class Grafana(ThreadingHTTPServer):
    """Grafana's end of the API: keeps what it is asked, says what it is told to."""

    def __init__(self, status: int, answer: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), GrafanaHandler)
        self.status, self.answer, self.headers = status, answer, headers
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class GrafanaHandler(BaseHTTPRequestHandler):
    server: Grafana

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(Asked(self.path, self.headers["Authorization"], json.loads(body)))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, format: str, *args: object) -> None:
        """What it was asked is in ``asked``."""


@contextmanager
def grafana(
    status: int = 200,
    answer: bytes = b'{"status": "success", "uid": "u", "url": "/grafana/d/u/x"}',
    headers: Mapping[str, str] | None = None,
) -> Iterator[Grafana]:
    with Grafana(status, answer, headers or {}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(*arguments: str | Path, url: str = "", token: str = "s3cret-t0ken") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, *arguments],
        env={"GRAFANA_URL": url, "GRAFANA_TOKEN": token, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_all_dashboards_are_put_where_the_token_may() -> None:
    with grafana() as server:
        done = run(url=f"{server.url}/grafana/")
    assert (done.returncode, done.stderr) == (0, "")
    assert [asked.path for asked in server.asked] == ["/grafana/api/dashboards/db"] * len(BOARDS)
    assert {asked.authorization for asked in server.asked} == {"Bearer s3cret-t0ken"}
    for board, asked in zip(BOARDS, server.asked, strict=True):
        assert asked.body["dashboard"] == board.json
        assert asked.body["overwrite"] is True
        assert "folderUid" not in asked.body
        assert f"{board.file.name}: {server.url}/grafana/d/u/x" in done.stdout


def test_one_dashboard_goes_into_a_folder_and_loses_the_number_it_had(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"id": 17, "uid": "u", "title": "Mine", "panels": []}')
    with grafana() as server:
        assert run("--url", server.url, "--folder", "money", mine).returncode == 0
    [asked] = server.asked
    assert asked.body["dashboard"] == {"id": None, "uid": "u", "title": "Mine", "panels": []}
    assert asked.body["folderUid"] == "money"


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (401, b'{"message": "Invalid API key"}', "HTTP 401: Invalid API key (GRAFANA_TOKEN is wrong"),
        (403, b'{"message": "Permission denied"}', "needs the role Editor"),
        (404, b"<html>", "this is no Grafana"),
        (412, b'{"message": "name exists"}', "HTTP 412: name exists (one of the same title"),
        (500, b"[]", "HTTP 500: Internal Server Error"),
        (200, b"<html>", "is no Grafana"),
        (200, b"[]", "did not say that it took it"),
    ],
)
def test_what_grafana_refuses_is_said(status: int, answer: bytes, said: str) -> None:
    with grafana(status, answer) as server:
        done = run(url=server.url)
    assert done.returncode == 1
    assert done.stderr.count(said) == len(BOARDS), done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_token_follows_no_redirect() -> None:
    with grafana() as elsewhere, grafana(302, b"", {"Location": f"{elsewhere.url}/login"}) as server:
        done = run(url=server.url)
    assert done.returncode == 1
    assert f"redirects to {elsewhere.url}/login" in done.stderr
    assert elsewhere.asked == []


def test_nobody_there_is_said() -> None:
    done = run(url=f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), ("{}", "not a dashboard"), (None, "No such file")])
def test_what_is_no_dashboard_is_said_and_the_others_go_on(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "other.json"
    if text is not None:
        file.write_text(text)
    with grafana() as server:
        done = run(file, BOARDS[0].file, url=server.url)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("url", "token", "said"),
    [
        ("", "t", "GRAFANA_URL"),
        ("grafana:3000", "t", "http://"),
        ("http://x", "", "GRAFANA_TOKEN"),
        ("http://x", "a\nb", "GRAFANA_TOKEN"),
    ],
)
def test_used_wrongly_it_says_how_to(url: str, token: str, said: str) -> None:
    done = run(url=url, token=token)
    assert done.returncode == 2
    assert said in done.stderr
