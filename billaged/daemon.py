"""The composition root: builds the stages, joins them, starts and stops them in order.

    doors -> intake -> journal writer -> aggregator -> ledger
                                              └-> summaries -> log, watchers

Start: stores, fold state, replay, threads, then the doors. Stop: the intake refuses,
each stage ends once the one before it has handed everything on, the doors come last:
whoever waits for an answer or watches gets what is due.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any, Final

from billaged import __version__
from billaged.aggregator.worker import Aggregator
from billaged.archive import Archive
from billaged.chores import feed_watchdog, replay_pieces, tell_head, tell_heads, tick, watch_disk
from billaged.directory import DataDirectory
from billaged.doors.connect import ConnectDoor
from billaged.doors.grpc_server import GrpcDoor
from billaged.doors.http_admission import HttpAdmission
from billaged.doors.listening import room_for_connections
from billaged.doors.watchers import Watchers
from billaged.following import Following
from billaged.intake.clock import ClockWatch
from billaged.intake.segments import FOLDER_NAME as SEGMENTS
from billaged.intake.segments import Segments
from billaged.intake.service import Intake
from billaged.intake.validation import Limits
from billaged.intake.writer import JournalWriter
from billaged.meters import Meters
from billaged.model.errors import Broken, StartError
from billaged.model.records import JournalEntry, Tick
from billaged.model.time import NANOS, format_duration
from billaged.observation import Observation, Stages
from billaged.room import room_to_start
from billaged.security import Security
from billaged.settings import Settings
from billaged.storage import Stores, open_stores
from billaged.summaries.broadcast import Broadcast
from billaged.summaries.feed import WatchedSummaries
from billaged.summaries.log import SummaryLog
from billaged.telemetry import logs
from billaged.telemetry.metrics.collector import DaemonCollector
from billaged.telemetry.metrics.exposition import Exposition
from billaged.telemetry.systemd import ServiceManager
from billaged.web.app import http_app
from billaged.web.health import State
from billaged.web.metrics_server import MetricsServer
from billaged.web.server import REQUESTS_MAX, HttpServer

_log = logging.getLogger("billaged.daemon")

# What a stop may take altogether, and running RPCs of it.
_STOP_SECONDS: Final = 9.0
_GRACE_SECONDS: Final = 3.0
# And watchers, to read the last summaries.
_WATCHERS_SECONDS: Final = 1.0
# And a collector, to take the last spans and metrics.
_TELEMETRY_SECONDS: Final = 1.5
# What folding one group of a replay may take, its commit to the ledger included.
_REPLAY_STEP_SECONDS: Final = 120.0
# And what goes unheard of a migration of the ledger.
_MIGRATION_STEP_SECONDS: Final = 300.0


class SystemClock:
    """The machine's clocks (``model.time.Clock``)."""

    def wall_nanos(self) -> int:
        return time.time_ns()

    def monotonic_nanos(self) -> int:
        return time.monotonic_ns()


class Daemon:
    """One daemon, from its stores to its doors. Built and run on the event loop."""

    def __init__(
        self,
        settings: Settings,
        security: Security,
        following: Following,
        directory: DataDirectory | None,
        *,
        readable_log: bool,
    ) -> None:
        """``security`` has been started; the daemon stops it.

        Raises:
            StartError: something that it needs cannot be used; the message says what to do.
        """
        self._settings = settings
        self._security = security
        self._following = following
        self._directory = directory
        self._service_manager = ServiceManager()
        self._meters = Meters(settings.metrics)
        self._clock = SystemClock()
        self._loop = asyncio.get_running_loop()
        self._started_ns = self._clock.monotonic_nanos()
        self._stop = asyncio.Event()
        self._fatal: BaseException | None = None
        self._stopping = False

        self._stores: Stores = open_stores(
            directory, lambda said: self._service_manager.waiting(said, _MIGRATION_STEP_SECONDS)
        )
        # When the last row was taken, before this start; 0 for never. A journal that was begun anew has none yet: then
        # the last tick's time.
        last_tick_ns = self._stores.ledger.checkpoint().clock.time_ns
        self._down_from_ns = self._stores.journal.newest_received_ns() or last_tick_ns or 0
        weights = settings.score.weights()
        self._feed = WatchedSummaries(self._loop, weights, settings.grpc.watcher_queue_max)
        self._broadcast = Broadcast([SummaryLog(settings.summaries.log, weights, readable=readable_log), self._feed])
        self._aggregator = Aggregator(
            self._stores.ledger,
            self._broadcast,
            self._clock,
            settings.aggregation.flush_interval_ns,
            self._on_fatal,
            following.fold(self._meters.fold),
        )
        self._writer = JournalWriter(
            self._stores.journal,
            self._aggregator,
            self._loop,
            settings.intake.group_max_records,
            settings.intake.group_max_bytes,
            self._on_fatal,
            self._meters.journal,
        )
        limits = settings.intake
        self._intake = Intake(
            self._writer,
            self._aggregator,
            ClockWatch(self._clock, self._down_from_ns),
            Limits(
                limits.max_samples_per_batch,
                limits.max_active_vms_per_heartbeat,
                limits.max_sample_age_ns,
                limits.max_future_ns,
            ),
            limits.queue_max_records,
            limits.queue_max_bytes,
            settings.aggregation.max_vms,
            following.intake,
        )
        room = room_for_connections(settings.grpc.max_connections, settings.http.max_connections)
        if room != (settings.grpc.max_connections, settings.http.max_connections):
            _log.warning(
                "the limit of open files leaves room for %d gRPC and %d HTTP connections only; raise it (LimitNOFILE)",
                *room,
            )
        self._watchers = watchers = Watchers(
            self._feed, settings.grpc.watchers_max, settings.grpc.watchers_max_per_identity
        )
        self._grpc = GrpcDoor(
            self._intake,
            watchers,
            settings.grpc.model_copy(update={"max_connections": room.grpc}),
            security.gate("grpc", self._intake, settings.grpc.max_rpcs_per_identity, tls=True),
            meter=self._meters.grpc,
            tracer=following.grpc,
        )
        admit = HttpAdmission(
            security.gate("http", self._intake, REQUESTS_MAX // 2, tls=security.https), security.http_caller()
        )
        self._connect = ConnectDoor(
            self._intake, watchers, settings.grpc, admit, meter=self._meters.http, tracer=following.connect
        )
        self._http = HttpServer(
            http_app(self._connect, self._state, self._stats, admit),
            settings.http,
            security.keeper if security.https else None,
            settings.grpc.handshake_timeout_ns / NANOS,
            room.http,
        )
        journal, stages = self._stores.journal, (self._intake, self._aggregator, self._broadcast, watchers)
        self._observation = Observation(
            Stages(journal, *stages, self._grpc, self._connect, security, directory),
            self._meters,
            settings,
            self._clock,
        )
        self._observation.spans = following.spans
        # What other ways out of the same numbers read as well.
        self._collector = DaemonCollector(self._observation.read)
        self._metrics = MetricsServer(Exposition(self._collector), self._state, settings.metrics)

    # --- life --------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until a signal or a fault.

        Raises:
            StartError: it could not start, or a fault ended it.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            # A start may wait for an identity for minutes; a stop need not wait for that.
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await self._serve(stopping)
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            await self._shut_down()
        if self._fatal is not None:
            if isinstance(self._fatal, StartError):
                raise self._fatal
            raise Broken(f"billaged stopped on an unexpected error: {self._fatal!r}") from self._fatal

    def _reload(self) -> None:
        logs.reopen()
        self._security.reload()

    async def _serve(self, stopping: asyncio.Task[bool]) -> None:
        chores = [
            asyncio.create_task(chore)
            for chore in (
                tick(self._intake, self._clock, self._settings.aggregation.aggregation_interval_ns),
                self._security.watch(self._set_serving, self._watchers.renew),
                feed_watchdog(self._service_manager, self._intake, self._aggregator),
                *self._chores_of_the_directory(),
            )
        ]
        for task in chores:
            task.add_done_callback(self._chore_ended)
        await stopping
        for task in chores:
            task.cancel()

    def _chores_of_the_directory(self) -> Iterator[Coroutine[Any, Any, None]]:
        if self._directory is None:
            return
        storage = self._settings.storage
        if storage.min_free_bytes:
            yield watch_disk(self._intake, self._directory, storage.min_free_bytes)
        journal, segments = self._stores.journal, Segments(self._directory.path / SEGMENTS)
        archive = Archive(journal, self._writer, self._aggregator, self._directory, segments, self._clock, storage)
        yield archive.run()
        yield tell_heads(self._stores.journal)

    async def _start(self) -> None:
        self._aggregator.load()
        replayed = self._aggregator.replay(self._not_in_ledger())
        status = self._aggregator.status()
        _log.info(
            "ledger is up to date",
            extra={"replayed": replayed, "position": status.position, "active_vms": status.active_vms},
        )
        self._broadcast.start()
        self._aggregator.start()
        self._writer.start()
        if self._aggregator.rules != (rules := self._settings.aggregation.fold_rules()):
            self._intake.submit_own(rules)
        self._observation.replayed_records = replayed
        metrics_port = await self._metrics.start()
        self._following.start(self._collector)
        # Health is told while there is no identity yet, where that needs none.
        http_port = None if self._security.https else await self._http.start()
        await self._security.wait(self._service_manager.waiting)
        grpc_port = await self._grpc.start(self._security.grpc_credentials(), self._security.grpc_caller())
        if http_port is None:
            http_port = await self._http.start()
        self._security.listens("grpc", grpc_port)
        self._security.listens("http", http_port)
        if self._down_from_ns:
            down_ns = self._clock.wall_nanos() - self._down_from_ns
            self._observation.downtime_seconds = max(0, down_ns) / NANOS
            self._intake.resumed_after(self._down_from_ns)
        self._intake.open()
        self._service_manager.ready(f"serving gRPC on port {grpc_port}, HTTP on port {http_port}")
        _calm_collector()
        _log.info(
            "serving",
            extra={
                "version": __version__,
                "grpc": f"{self._settings.grpc.address}:{grpc_port}",
                "http": f"{self._settings.http.address}:{http_port}",
                "metrics": None if metrics_port is None else f"{self._settings.metrics.address}:{metrics_port}",
                "tls": self._settings.tls.mode,
                "store": self._settings.storage.store,
            },
        )

    def _not_in_ledger(self) -> Iterator[list[JournalEntry]]:
        """What to replay, piece by piece told to the service manager: a long replay is no start that hangs."""
        journal = self._stores.journal

        def tell(sequence: int) -> None:
            self._service_manager.waiting(
                f"replaying the journal: at row {sequence} of {journal.position}", _REPLAY_STEP_SECONDS
            )

        return replay_pieces(journal.read(self._aggregator.position), self._aggregator, self._clock, tell)

    async def _shut_down(self) -> None:
        self._stopping = True
        self._service_manager.stopping()
        if self._intake.serving:
            _log.info("stopping")
        # Whatever hangs must not keep the process: what was acknowledged is durable already.
        deadline = threading.Timer(_STOP_SECONDS, os._exit, (1,))
        deadline.daemon = True
        deadline.start()
        was_serving = self._intake.serving
        # From here on requests are refused; those taken before are committed by the writer's stop.
        self._intake.close("billaged is stopping")
        await self._grpc.announce_stop()
        if was_serving and self._fatal is None:
            # The summaries of the interval that ends early. It stands for no silence.
            self._intake.submit_own(Tick(self._clock.wall_nanos(), 0, closes_interval=True))
        for stage in (self._writer.stop, self._aggregator.stop, self._broadcast.stop):
            await asyncio.to_thread(stage)
        await self._feed.end(_WATCHERS_SECONDS)
        self._connect.stop()
        await asyncio.gather(
            self._grpc.stop(_GRACE_SECONDS), self._http.stop(_GRACE_SECONDS), self._metrics.stop(_GRACE_SECONDS)
        )
        # What was followed has ended, and what the metrics are read of is still open.
        await asyncio.to_thread(self._following.stop, _TELEMETRY_SECONDS)
        self._connect.close()
        if was_serving and self._directory is not None:
            tell_head(self._stores.journal)
        self._stores.close()
        await asyncio.to_thread(self._security.stop)
        deadline.cancel()
        if was_serving:
            _log.info("stopped")

    def _chore_ended(self, task: asyncio.Task[None]) -> None:
        """A chore that breaks is a fault: without ticks nothing closes, without the disk's watch nothing is refused."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fatal(error)

    def _on_fatal(self, error: BaseException) -> None:
        """From any thread: nothing more can be made durable, so end."""

        def end() -> None:
            if self._fatal is None:
                self._fatal = error
                self._intake.close("billaged has failed and restarts")
                self._stop.set()

        try:
            self._loop.call_soon_threadsafe(end)
        except RuntimeError:
            _log.debug("the loop is closed already")

    # --- for /health and /stats --------------------------------------------------

    def _state(self) -> State:
        if self._stopping:
            return "stopping"
        if self._security.unusable() is not None:
            return "expired"
        return "ok" if self._intake.serving else "starting"

    async def _set_serving(self) -> None:
        """Health says no while the daemon's own certificate is not good any more."""
        unusable = self._security.unusable()
        self._service_manager.status(unusable or "serving")
        await self._grpc.set_serving(serving=unusable is None)

    def _uptime_seconds(self) -> float:
        return (self._clock.monotonic_nanos() - self._started_ns) / NANOS

    def _stats(self) -> dict[str, Any]:
        status = self._aggregator.status()
        journal = self._stores.journal
        return {
            "active_vms": status.active_vms,
            "aggregation_interval": format_duration(self._settings.aggregation.aggregation_interval_ns),
            "known_vms": status.known_vms,
            "customers": status.customers,
            "samples": status.samples_folded,
            "gaps": status.gaps_seen,
            "anomalies": status.anomalies_seen,
            "dead_letters": status.dead_letters_seen,
            "silent_vms": status.silent_vms,
            "silent_instances": status.silent_instances,
            "queue_depth": self._intake.in_flight,
            "queue_bytes": self._intake.in_flight_bytes,
            "taking_usage": self._intake.taking,
            "journal": {
                "id": journal.journal_id,
                "position": journal.position,
                "folded_position": status.position,
                "ledger_position": status.ledger_position,
                "lag": journal.position - status.ledger_position,
                "groups_committed": self._writer.groups,
            },
            "summaries_dropped": self._broadcast.dropped,
            "security": self._security.status(),
            "uptime_seconds": round(self._uptime_seconds(), 3),
        }


def _calm_collector() -> None:
    """What lives from now on lives for good: the cycle collector need not look at it again and again.

    Records come and go without cycles; at the usual thresholds the collector would walk
    everything in flight each few hundred of them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def serve(settings: Settings, *, readable_log: bool) -> None:
    """Run a daemon on this thread until it is told to stop.

    Raises:
        StartError: it cannot start, or a fault ended it.
    """
    import uvloop

    # The watchdog's SIGABRT leaves what each thread was doing in the log.
    faulthandler.enable()
    # Files of the data directory are nobody else's.
    os.umask(0o077)
    for name in settings.not_yet:
        _log.warning("%s is set, but does nothing in this version", name)
    following = Following(settings.otel)
    # First of all: nothing is made or opened for a daemon that could not prove who it is.
    security = Security(settings, SystemClock())
    security.start()
    directory = None
    if settings.storage.store == "memory":
        _log.warning("UNKEY_BILLAGED_STORE=memory: nothing is written to disk, all usage is lost at the end")
    else:
        directory = DataDirectory(settings.storage.data_dir)

    async def live() -> None:
        if directory is not None and not await room_to_start(
            directory, settings.storage.min_free_bytes, ServiceManager()
        ):
            security.stop()
            return
        await Daemon(settings, security, following, directory, readable_log=readable_log).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(live())
    finally:
        if directory is not None:
            directory.release()
