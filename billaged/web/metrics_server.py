"""The port for Prometheus, a server of its own: who sends usage cannot keep it out, nor the other way round."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from billaged.doors.listening import is_loopback
from billaged.settings import Http, Metrics
from billaged.telemetry.metrics.exposition import Exposition
from billaged.web.health import State
from billaged.web.metrics_app import CONNECTIONS_MAX, MetricsApp
from billaged.web.server import HttpServer, Place

_log: Final = logging.getLogger("billaged.web")

_ADDRESS: Final = "UNKEY_BILLAGED_OTEL_PROMETHEUS_INTERFACE"
_PORT: Final = "UNKEY_BILLAGED_OTEL_PROMETHEUS_PORT"


class MetricsServer:
    """Serves an exposition, and closes it. Started and stopped once each; does nothing where it is not wanted."""

    def __init__(self, exposition: Exposition, state: Callable[[], State], settings: Metrics) -> None:
        self._settings = settings
        self._exposition = exposition
        place = Place(settings.address, settings.port, _ADDRESS, _PORT)
        app = MetricsApp(exposition, state)
        # A scrape is sent at once and soon over: whoever holds a place for longer is none, and keeps none out.
        self._server = HttpServer(app, Http(), connections_max=CONNECTIONS_MAX, place=place, oldest_makes_way=True)

    async def start(self) -> int | None:
        """Serve; returns the port, None where it is not wanted.

        Raises:
            StartError: the port cannot be had.
        """
        settings = self._settings
        if not settings.enabled:
            return None
        if not is_loopback(settings.address):
            whose = ", names of VMs and customers among them" if settings.high_cardinality else ""
            _log.warning("%s=%s: everybody who can connect reads the metrics%s", _ADDRESS, settings.address, whose)
        return await self._server.start()

    async def stop(self, grace_seconds: float) -> None:
        await self._server.stop(grace_seconds)
        self._exposition.close()
