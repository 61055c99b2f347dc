"""Names that a later version brings: accepted today, reported as doing nothing yet."""

from __future__ import annotations

from typing import Final, NamedTuple


class Coming(NamedTuple):
    """What a name will be. A ``secret``'s value is shown nowhere and kept nowhere."""

    description: str
    secret: bool = False


COMING: Final = {
    "OTEL_ENABLED": Coming("OpenTelemetry on or off"),
    "ENABLE_OTEL": Coming("another name of OTEL_ENABLED"),
    "OTEL_SERVICE_NAME": Coming("service name in traces and metrics"),
    "OTEL_SERVICE_VERSION": Coming("service version in traces and metrics"),
    "OTEL_SAMPLING_RATE": Coming("part of the traces that is kept"),
    "OTEL_ENDPOINT": Coming("where traces and metrics are sent"),
    "OTEL_PROMETHEUS_ENABLED": Coming("Prometheus endpoint on or off"),
    "OTEL_PROMETHEUS_PORT": Coming("port of the Prometheus endpoint"),
    "OTEL_PROMETHEUS_INTERFACE": Coming("address of the Prometheus endpoint"),
    "OTEL_HIGH_CARDINALITY_ENABLED": Coming("labels with VM and customer on or off"),
    "DATABASE_URL": Coming("the ledger's database", secret=True),
}
