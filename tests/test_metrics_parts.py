"""The parts the metrics are made of: histograms, the lag, labels with a limit, and a server that nobody can hurt."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager, suppress

import httpx
import pytest
from daemon_process import ROOT
from door_fixtures import until
from prometheus_client.registry import Collector
from scraping import OPENMETRICS, Page

from billaged.aggregator.changes import FACT_COLUMNS, Checkpoint, LedgerChanges
from billaged.meters import ANOMALY_KINDS, DEAD_LETTER_REASONS, FoldMeter
from billaged.reports.ledger_check import words
from billaged.settings import Http
from billaged.telemetry.metrics import catalog, labels
from billaged.telemetry.metrics.collector import DaemonCollector, Reading
from billaged.telemetry.metrics.exposition import Exposition
from billaged.telemetry.metrics.histogram import Histogram
from billaged.telemetry.metrics.journal import JournalMeter
from billaged.telemetry.metrics.labels import LabelledCounts
from billaged.telemetry.metrics.requests import DoorMeter
from billaged.web.metrics_app import CONNECTIONS_MAX, MetricsApp
from billaged.web.server import HttpServer, Place


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


# --- counting --------------------------------------------------------------------


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    histogram = Histogram((1, 10))
    for value in (0, 1, 1.5, 10, 11):
        histogram.observe(value)
    counted = histogram.counted()
    assert (list(counted.up_to), counted.sum) == ([2, 4, 5], 23.5)


def test_a_code_of_nobody_is_counted_as_unknown() -> None:
    meter = DoorMeter("grpc", ("A",), ("B",))
    meter.of("A")("NO_SUCH_CODE", 0.1)
    meter.of("B")("OK", 3600.0)
    unary, stream = meter.read()
    assert (unary.by_code["UNKNOWN"], sum(unary.by_code.values())) == (1, 1)
    assert (stream.by_code["OK"], stream.durations) == (1, None)


def test_the_lag_is_that_of_the_oldest_row_the_ledger_lacks() -> None:
    clock = Clock()
    meter = JournalMeter(clock)
    assert meter.lag_seconds(0, 0) == 0
    for second in range(10):
        clock.seconds = 1000.0 + second
        meter.committed(second * 5 + 1, 5, 0.001)
    clock.seconds = 1020.0
    assert meter.lag_seconds(50, 0) == 20
    # Row 11 came with the third group.
    assert meter.lag_seconds(50, 10) == 18
    assert meter.lag_seconds(50, 50) == 0
    meter.committed(51, 1, 0.001)
    clock.seconds = 1021.0
    assert meter.lag_seconds(51, 50) == 1
    assert meter.lag_seconds(51, 51) == 0


def test_a_ledger_that_is_stuck_for_long_takes_no_more_memory() -> None:
    clock = Clock()
    meter = JournalMeter(clock)
    for group in range(20_000):
        clock.seconds = 1000.0 + group
        meter.committed(group + 1, 1, 0.001)
    assert len(meter._marks) <= 4_096
    assert meter.lag_seconds(20_000, 0) == 19_999
    assert 9_999 <= meter.lag_seconds(20_000, 10_000) <= 9_999 + 32


def test_labels_have_a_limit_and_what_is_beyond_is_summed_up(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    counts = LabelledCounts(2, 3, clock)
    counts.add((((f"vm-{vm}", "acme"), vm + 1)) for vm in range(3))
    assert not counts.is_full
    with caplog.at_level(logging.WARNING):
        counts.add([(("vm-9", "acme"), 5), (("vm-8", "acme"), 6), (("vm-0", "acme"), 1), (("vm-7", "acme"), 0)])
        counts.add([(("vm-6", "acme"), 1)])
    assert [record.message for record in caplog.records] == [
        "metrics have labels for 3 VMs; those of more are summed up as 'other'"
    ]
    assert counts.is_full
    assert dict(counts.read()) == {
        ("vm-0", "acme"): 2, ("vm-1", "acme"): 2, ("vm-2", "acme"): 3, ("other", "other"): 12,
    }  # fmt: skip
    # One that is not heard makes room in the end; a VM that is called so stays with the others.
    clock.seconds += 3500
    counts.add([(("vm-1", "acme"), 1), (("vm-2", "acme"), 1)])
    clock.seconds += 200
    counts.add([(("vm-9", "acme"), 1), (("other", "other"), 1)])
    assert dict(counts.read()) == {
        ("vm-1", "acme"): 3, ("vm-2", "acme"): 4, ("vm-9", "acme"): 1, ("other", "other"): 13,
    }  # fmt: skip


def test_what_a_flush_brought_is_counted_by_its_kind() -> None:
    changes = LedgerChanges(0, Checkpoint(9))
    changes.tallies = {"samples": 7, "backfilled": 2, "duplicates": 1, "conflicts": 1, "late": 3, "ticks": 4}
    changes.dead_letters = [
        (n, "metrics", reason, 0, "", b"") for n, reason in enumerate(["wrong_owner"] * 2 + ["overflow"])
    ]
    changes.anomalies = [(1, 0, "late", "vm-1", 0, 1, "{}"), (2, 0, "late", "vm-1", 0, 1, "{}")]
    fact = dict.fromkeys(FACT_COLUMNS, 0) | {"vm_id": "vm-1", "customer_id": "acme"}
    changes.facts = [[tuple((fact | {"samples": 4}).values())], [tuple((fact | {"samples": 2}).values())]]
    changes.corrections = [(3, *(fact | {"samples": 1}).values(), "backfill")]
    meter = FoldMeter(by_vm=True)
    for _ in range(2):
        meter.flushed(changes, 0.01)
    assert meter.samples == 14
    assert meter.outcomes == {"accepted": 10, "backfilled": 4, "duplicate": 2, "conflict": 2, "late": 6}
    assert meter.dead_letters == {"wrong_owner": 4, "overflow": 2, "fold_failed": 0}
    assert (meter.anomalies["late"], sum(meter.anomalies.values())) == (4, 4)
    assert meter.by_vm is not None
    assert meter.by_vm.read() == [(("vm-1", "acme"), 14)]


def test_the_documented_limit_is_the_one_in_force() -> None:
    text = next(metric.help for metric in catalog.METRICS if metric is catalog.LABELS_FULL)
    assert f"{labels.LABELLED_MAX:,}" in text


def test_the_kinds_of_anomalies_are_all_there_are() -> None:
    # Each is there from the beginning, so that the first of it is an increase.
    page = (ROOT / "docs" / "billing-semantics.md").read_text()
    assert [kind for kind in ANOMALY_KINDS if f"`{kind}`" not in page] == []
    assert set(ANOMALY_KINDS) == words.ANOMALY_KINDS
    assert set(DEAD_LETTER_REASONS) == words.DEAD_LETTER_REASONS


# --- writing ---------------------------------------------------------------------


def collector(read: Callable[[], Iterable[Reading]]) -> Collector:
    return DaemonCollector(read)


def test_a_value_of_the_wrong_kind_is_a_bug_that_is_told() -> None:
    with pytest.raises(TypeError, match="billaged_journal_group_records is a histogram"):
        list(collector(lambda: [Reading(catalog.GROUP, 1.0)]).collect())
    with pytest.raises(TypeError, match="billaged_watchers is no histogram"):
        list(collector(lambda: [Reading(catalog.WATCHERS, Histogram((1,)).counted())]).collect())


class Served(tuple[str, int]):
    """Host and port."""

    _server: HttpServer

    def __new__(cls, host: str, port: int, server: HttpServer) -> Served:
        place = super().__new__(cls, (host, port))
        place._server = server
        return place

    def connections(self) -> int:
        """Those that are open."""
        assert self._server._server is not None
        return len(self._server._server.server_state.connections)


@asynccontextmanager
async def served(
    read: Callable[[], Iterable[Reading]], *, wait_seconds: float = 8.0, answer_seconds: float = 20.0
) -> AsyncIterator[Served]:
    """A metrics server over these readings."""
    exposition = Exposition(collector(read), wait_seconds)
    app = MetricsApp(exposition, lambda: "ok", answer_seconds)
    place = Place("127.0.0.1", 0)
    server = HttpServer(app, Http(), connections_max=CONNECTIONS_MAX, place=place, oldest_makes_way=True)
    port = await server.start()
    try:
        yield Served("127.0.0.1", port, server)
    finally:
        await server.stop(1.0)
        exposition.close()


async def get(place: Served, path: str = "/metrics", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=20.0) as client:
        return await client.get(f"http://{place[0]}:{place[1]}{path}", headers=headers)


async def test_scrapes_at_once_are_one_and_each_connection_ends() -> None:
    reads = 0

    def read() -> list[Reading]:
        nonlocal reads
        reads += 1
        return [Reading(catalog.WATCHERS, reads)]

    async with served(read) as place:
        answers = await asyncio.gather(*(get(place) for _ in range(10)))
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.headers["connection"] for answer in answers} == {"close"}
        # The process's numbers and all else are of one moment.
        assert reads == 1
        assert len({answer.text for answer in answers}) == 1


async def test_a_scrape_is_soon_made_anew() -> None:
    values = iter(range(1, 1000))
    async with served(lambda: [Reading(catalog.WATCHERS, next(values))]) as place:
        first = Page((await get(place)).text)("billaged_watchers")
        answers = [first]

        async with asyncio.timeout(20):
            while answers[-1] == first:
                answers.append(Page((await get(place)).text)("billaged_watchers"))


async def test_a_scrape_that_hangs_is_answered_and_holds_up_nobody() -> None:
    go_on = threading.Event()

    def read() -> list[Reading]:
        go_on.wait(30)
        return [Reading(catalog.WATCHERS, 7)]

    async with served(read, wait_seconds=0.2) as place:
        answer = await get(place)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "within 0.2 s" in answer.text
        assert (await get(place, "/health")).status_code == 200
        go_on.set()
        async with asyncio.timeout(20):
            while (answer := await get(place)).status_code != 200:
                pass
        assert Page(answer.text)("billaged_watchers") == 7


async def test_a_bug_is_logged_and_fails_the_scrape_only(caplog: pytest.LogCaptureFixture) -> None:
    def read() -> list[Reading]:
        raise ZeroDivisionError("a bug")

    async with served(read) as place:
        answer = await get(place)
        assert (answer.status_code, "a bug" in answer.text) == (500, False)
        assert (await get(place, "/health")).status_code == 200
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "the metrics could not be read"
    ]


async def test_who_does_not_read_a_large_scrape_is_cut_off() -> None:
    customers = [Reading(catalog.ACTIVE_VMS_BY_CUSTOMER, 1, (f"{n:01000d}",)) for n in range(12_000)]
    async with served(lambda: customers, answer_seconds=3.0) as place:
        with socket.socket() as unread:
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            unread.connect(place)
            unread.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: place.connections() == 1, "the connection")
            assert (await get(place, "/health")).status_code == 200
            await until(lambda: place.connections() == 0, "no connection any more")
            # What was on its way comes, and then the end, long before all of it.
            unread.settimeout(10)
            size = 0
            with suppress(ConnectionResetError):
                while received := unread.recv(2**20):
                    size += len(received)
            assert 1_000 < size < 12_000_000


async def test_whoever_holds_a_place_without_a_request_makes_way_for_a_scrape() -> None:
    async with served(list) as place:
        with ExitStack() as taken:
            idle = [taken.enter_context(socket.create_connection(place)) for _ in range(CONNECTIONS_MAX)]
            await until(lambda: place.connections() == CONNECTIONS_MAX, "all places taken")
            assert (await get(place)).status_code == 200
            # It was the oldest one's place.
            idle[0].settimeout(10)
            with suppress(ConnectionResetError):
                assert idle[0].recv(1) == b""
            for _ in range(10 * CONNECTIONS_MAX):
                taken.enter_context(socket.create_connection(place)).sendall(b"GET /metrics HTTP/1.1\r\n")
            assert (await get(place, "/health")).status_code == 200
            assert place.connections() <= CONNECTIONS_MAX
        await until(lambda: place.connections() == 0, "no connection any more")
        assert (await get(place)).status_code == 200


@pytest.mark.parametrize(
    ("accept", "is_open"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4;q=0.5", False),
        ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75", True),
        (OPENMETRICS["Accept"], True),
        ("application/json, " + "x" * 5000, False),
    ],
)
async def test_the_format_is_what_is_asked_for(accept: str, is_open: bool) -> None:
    async with served(lambda: [Reading(catalog.DENIED, 1, ('for"bid\nden\\',))]) as place:
        answer = await get(place, Accept=accept)
    assert ("openmetrics" in answer.headers["content-type"]) is is_open
    page = Page(answer.text, is_open=is_open)
    assert page("billaged_requests_denied_total", outcome='for"bid\nden\\') == 1
    assert re.search(r"\d$", answer.text.split("# EOF")[0].strip())
